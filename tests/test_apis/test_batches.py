"""Calibration inputs in all the forms that users have."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mmbitsplit.apis import quantize_model

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(3))
PAIRS = TensorDataset(IMAGES, torch.arange(16))


class Items(Dataset):
    """A Dataset that ends by its length, as torch's own examples do."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return IMAGES[4 * index:4 * index + 4], index


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def state_after(batches, **options):
    net = make_net()
    quantize_model(net, batches, **options)
    return net.state_dict()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize('batches', [
    DataLoader(IMAGES, 4), DataLoader(PAIRS, 4), list(DataLoader(PAIRS, 4)), Items(),
    (part for part in IMAGES.split(4)), IMAGES.split(4), map(tuple, DataLoader(PAIRS, 4)),
    [part.numpy() for part in IMAGES.split(4)], [part.double().numpy() for part in IMAGES.split(4)],
    [[part.numpy(), np.arange(4)] for part in IMAGES.split(4)],
    [dict(input=part.numpy()) for part in IMAGES.split(4)], [(part,) for part in IMAGES.split(4)],
], ids=['loader', 'loader of pairs', 'list of pairs', 'dataset', 'generator', 'tuple', 'iterator',
        'arrays', 'doubles', 'arrays of pairs', 'dicts of arrays', 'tuples'])
def test_what_is_plain_gives_what_a_list_of_tensors_gives(batches):
    assert_same(state_after(batches), state_after(list(IMAGES.split(4))))


def test_a_shuffling_loader_is_read_once():
    class Counting(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    generator = torch.Generator().manual_seed(5)
    state_after(DataLoader(Counting(IMAGES), 4, shuffle=True, generator=generator))
    assert Counting.reads == len(IMAGES)


def test_a_second_argument_that_the_model_takes_is_given_to_it():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 4, 1), []

        def forward(self, x, factor=None):
            self.seen.append(factor)
            return self.conv(x)

    model = Scaled()
    quantize_model(model, [(IMAGES, 2.0)])
    assert set(model.seen) == {2.0}


@pytest.mark.parametrize(('batches', 'said'), [
    (None, 'batches is None'), (IMAGES, r'one tensor of shape \(16, 3, 12, 12\).*split'),
    (IMAGES.numpy(), r'one array of shape'), (dict(input=IMAGES), 'a dict of input'),
    ('images/', 'of type str'), (7, 'of type int'),
    (['a.jpg'], 'A batch is of type str'), ([None], 'A batch is None'), ([3.5], 'of type float'),
    ([dict(image=IMAGES, label=3)], "a dict of image, label.*Sequential.forward"),
    ([(IMAGES, IMAGES, IMAGES)], r'a tuple of 3.*Sequential.forward'),
    (list(IMAGES), r'one tensor of shape \(3, 12, 12\).*expected 4D'),  # batch norm's own words
    ([IMAGES[:, :2]], r'shape \(16, 2, 12, 12\).*RuntimeError'),
], ids=str)
def test_anything_else_is_told_with_the_way_out(batches, said):
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=rf'(?s){said}.*run=') as caught:
        quantize_model(net, batches)
    assert 'batches: a sequence' in str(caught.value)
    assert_same(net.state_dict(), before)
    assert all(module.training for module in net.modules())


def test_arrays_count_in_the_estimate_of_memory_as_tensors_do():
    parts = [IMAGES[:1], IMAGES[1:9], IMAGES[9:]]
    tensors, arrays = (quantize_model(make_net(), batches).estimated_bytes
                       for batches in (parts, [part.numpy() for part in parts]))
    assert arrays == tensors


def test_run_gets_every_batch_as_it_is():
    seen = []

    def run(model, batch):
        seen.append(batch)
        return model(IMAGES[batch:batch + 4])

    assert_same(state_after((number for number in (0, 4, 8, 12)), run=run),
                state_after(list(IMAGES.split(4))))
    assert set(seen) == {0, 4, 8, 12}


def test_an_error_that_is_not_of_the_inputs_stays_what_it_is(monkeypatch):
    module = importlib.import_module('mmbitsplit.passes.watching')

    def broken(model, run, *more, **options):
        run()
        raise RuntimeError('of our own')

    monkeypatch.setattr(module, 'watch', broken)
    with pytest.raises(RuntimeError, match='of our own'):
        quantize_model(make_net(), [IMAGES])
