"""What tensors say of a batch."""

import pytest
import torch

from mmbitsplit.passes.batches import batch_size, divided, images_in, mirrored


def image(*shape):
    return torch.arange(int(torch.tensor(shape).prod())).view(shape)


@pytest.mark.parametrize('batch, count', [
    (image(5, 3, 4, 6), 5), ([image(3, 4, 6)] * 7, 7), (dict(inputs=[image(3, 4, 6)]), 1),
    ((image(8, 3, 4, 6), torch.zeros(8)), 8), (dict(ids=image(6, 12), mask=image(6, 12)), 6),
    ('text', 1)])
def test_images_are_counted(batch, count):
    assert images_in(batch) == count


def test_left_and_right_change_places_and_nothing_else():
    batch = dict(inputs=[image(3, 4, 6), image(1, 2, 2)], rows=image(4, 3), names=['a', 'b'])
    found = mirrored(batch)
    assert torch.equal(found['inputs'][0][..., 0], batch['inputs'][0][..., 5])
    assert torch.equal(found['rows'], batch['rows']) and found['names'] == ['a', 'b']
    again = mirrored(found)
    assert all(map(torch.equal, again['inputs'], batch['inputs']))


def test_a_batch_without_images_has_no_mirror():
    with pytest.raises(ValueError, match='mirrored=True needs tensors'):
        mirrored(dict(ids=image(6, 12)))


def test_a_stack_of_samples_is_cut_into_about_equal_parts():
    whole = dict(inputs=image(10, 3, 4, 6), data_samples=list('abcdefghij'))
    parts = divided(whole, 3)
    assert [len(part['data_samples']) for part in parts] == [2, 3, 2, 3]
    assert torch.equal(torch.cat([part['inputs'] for part in parts]), whole['inputs'])
    assert sum((part['data_samples'] for part in parts), []) == whole['data_samples']
    assert [len(part) for part in divided(image(3, 3, 4, 6), 1)] == [1, 1, 1]


@pytest.mark.parametrize('batch', [
    image(1, 3, 4, 6), torch.tensor(5), [image(3, 4, 6), image(3, 4, 6)], 'text', {},
    dict(ids=image(6, 12), names=['a']), dict(ids=image(6, 12), scale=2.0)])
def test_what_is_no_stack_of_samples_stays_whole(batch):
    for size in (1, None):
        part, = divided(batch, size)
        assert part is batch


@pytest.mark.parametrize(('batch', 'size'), [
    (torch.zeros(2, 3, 4), 24), ((torch.zeros(2), 'name', 5), 2), ([], 1), (None, 1),
    ({'img': [torch.zeros(2, 3), torch.zeros(4)], 'meta': {'id': 7}}, 10), (torch.zeros(0), 1)])
def test_size_of_a_batch(batch, size):
    assert batch_size(batch) == size
