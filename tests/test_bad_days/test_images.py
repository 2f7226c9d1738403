"""Calibration images as they come: missing, broken, odd, too many."""

import numpy as np
import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import Team
from mmbitsplit.engine.data.calibration_data import load_calibration_data
from mmbitsplit.engine.data.calibration_images import MOST_UNREADABLE, reading_data_set
from mmbitsplit.engine.run.quantize import read_spec

pytestmark = pytest.mark.usefixtures('det_scope')
BROKEN = {'missing.png': None, 'empty.png': b'', 'text.png': b'no picture',
          'half.png': b'\x89PNG\r\n\x1a\n' + bytes(40)}


class Two(Team):
    """One of two processes that read the same folder; sees what the other, ``seen``, has."""

    size = 2

    def __init__(self, rank, seen=None):
        self.rank, self.seen, self.said = rank, seen, None

    def gather(self, value):
        self.said = value
        return [value] if self.seen is None else [value, self.seen]


def load(cfg, team=None):
    return load_calibration_data(cfg, read_spec(cfg).calibration, [], team)


def quantize(data):
    """Quantizes a small network on what was loaded; returns its outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    batches = [image.float()[None] for batch in data.batches for image in batch['inputs']]
    report = quantize_model(model, batches, dict(calibration=dict(rows_per_layer=256)))
    assert len(report.layers) == 2
    with torch.no_grad():
        return [model(batch) for batch in batches]


@pytest.mark.parametrize('name', BROKEN)
def test_an_unreadable_image_is_left_out_and_counted(name, coco):
    folder = coco(39)
    folder.add(name, BROKEN[name])
    data = load(folder.config(num_images=40))
    assert len(data.batches) == len(data.paths) == len(data.labels) == len(data.image_ids) == 39
    (path, reason), = data.unreadable.items()
    assert path.endswith(name) and ': ' in reason and '\n' not in reason
    assert not any(name in kept for kept in data.paths) and 40 not in data.image_ids
    assert all(torch.isfinite(output).all() for output in quantize(data))


def test_more_than_5_percent_unreadable_is_an_error(coco):
    folder = coco(38)
    for name in list(BROKEN)[:2]:
        folder.add(name, BROKEN[name])
    assert len(load(folder.config(num_images=40)).unreadable) == 2 == MOST_UNREADABLE * 40
    folder.add('text.png', BROKEN['text.png'])
    with pytest.raises(ValueError, match=r'3 of 41 calibration images cannot be read: .*'
                                         r'missing.png \(.*\); .*Up to 5 % are left out'):
        load(folder.config(num_images=41))


@pytest.mark.parametrize('batch_size', [1, 3])
def test_several_processes_leave_the_same_images_out(batch_size, coco):
    folder = coco(39)
    folder.add('missing.png', None)
    cfg = folder.config(num_images=40, batch_size=batch_size)
    alone = load(cfg)
    first, second = Two(0), Two(1)
    for team in (first, second):  # once to know what each says, as if at the same time
        load(cfg, team)
    parts = [load(cfg, Two(0, second.said)), load(cfg, Two(1, first.said))]
    assert [part.unreadable for part in parts] == [alone.unreadable] * 2
    assert [part.paths for part in parts] == [alone.paths] * 2
    assert [*parts[0].labels, *parts[1].labels] == alone.labels[::2] + alone.labels[1::2]
    for number, batch in enumerate(alone.batches):
        theirs = parts[number % 2].batches[number // 2]['inputs']
        assert all(map(torch.equal, batch['inputs'], theirs))


@pytest.mark.parametrize('shape', [(48, 64), (48, 64, 4), (48, 64, 1), (1, 1, 3), (8000, 8000)])
def test_gray_rgba_tiny_and_huge_images_are_images(shape, coco):
    folder = coco(3)
    pixels = np.full(shape, 200, np.uint8)
    pixels[0, 0] = 10
    folder.add('odd.png', pixels)
    data = load(folder.config(num_images=4))
    assert not data.unreadable and len(data.batches) == 4
    assert all(image.shape[0] == 3 for batch in data.batches for image in batch['inputs'])
    assert all(torch.isfinite(output).all() for output in quantize(data))


def test_sixteen_bit_images_are_images(coco):
    folder = coco(3)
    folder.add('deep.png', np.full((48, 64, 3), 40000, np.uint16))
    data = load(folder.config(num_images=4))
    assert data.batches[3]['inputs'][0].dtype == torch.uint8 and not data.unreadable


def test_an_image_without_height_after_resizing_counts_as_unreadable(coco):
    folder = coco(39)
    folder.add('line.png', np.zeros((1, 4000, 3), np.uint8))
    assert [path.rsplit('/', 1)[1] for path in load(folder.config(num_images=40)).unreadable] \
        == ['line.png']


def test_huge_inputs_are_refused_before_they_are_computed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(ValueError, match=r'budget is 0\.1 GB.*(about \d+|not one) images? would'):
        quantize_model(model, [torch.rand(1, 3, 2000, 2000)] * 2,
                       dict(calibration=dict(memory_budget=0.1)))
    assert all(type(layer) is not nn.Identity for layer in model)  # nothing was changed


def test_many_more_images_than_there_are(coco):
    with pytest.raises(ValueError, match='has 4 images, num_images=10000 are asked for; lower'):
        load(coco(4).config(num_images=10000))


def test_ten_thousand_images_where_a_hundred_fit_are_refused_at_once(coco):
    folder = coco(8)
    folder.entries = [{**folder.entries[number % 8], 'id': number + 1}
                      for number in range(10000)]
    budget = 100 * 32 * 24 * 3 / 1e9  # of images as loaded
    with pytest.raises(ValueError, match=r'10000 calibration images would take.*About 100 would '
                                         r'fit.*lower quantization.calibration.num_images'):
        load(folder.config(num_images=10000, memory_budget=budget))
    assert len(load(folder.config(num_images=90, memory_budget=budget)).batches) == 90


def test_one_image_of_many_is_enough(coco):
    assert all(torch.isfinite(output).all() for output in quantize(load(
        coco(12).config(num_images=1))))


@pytest.mark.parametrize('content, error', [
    ('{"images": [', 'JSONDecodeError'), ('', 'JSONDecodeError'), ('[1, 2]', 'Error'),
    ('{"images": []}', '')])
def test_annotations_that_do_not_parse_are_named(content, error, coco):
    folder = coco(4)
    cfg = folder.config(num_images=2)
    (folder.root / 'boxes.json').write_text(content)
    with pytest.raises(ValueError, match=f'The calibration set.*{error}') as raised:
        load(cfg)
    assert 'boxes.json' in str(raised.value) or 'is empty' in str(raised.value)


def test_annotations_of_the_evaluation_are_named_too():
    config = dict(type='RepeatDataset', dataset=dict(type='CocoDataset', ann_file='val.json'))
    with pytest.raises(ValueError, match='The evaluation set cannot be read: KeyError: .*'
                                         'Its annotations: val.json; look'), \
            reading_data_set('evaluation set', config):
        raise KeyError('images')


def test_duplicate_image_ids_are_one_image(coco):
    folder = coco(6)
    folder.add('again.png', np.zeros((48, 64, 3), np.uint8), number=3)
    data = load(folder.config(num_images=6))
    assert sorted(data.image_ids) == [1, 2, 3, 4, 5, 6]  # pycocotools keeps the last of an id
    assert len(set(data.paths)) == 6 and any('again' in path for path in data.paths)
    with pytest.raises(ValueError, match='has 6 images, num_images=7'):
        load(folder.config(num_images=7))


def test_unicode_and_spaces_in_paths(coco):
    folder = coco(2, 'meine Bilder – 画像')
    folder.add('Straße mit Bäumen 木.png', np.zeros((48, 64, 3), np.uint8))
    data = load(folder.config(num_images=3))
    assert not data.unreadable and 'Straße mit Bäumen 木.png' in data.labels[2]
