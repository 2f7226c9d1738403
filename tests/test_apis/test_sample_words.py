"""Calibration data that are no images are called samples."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.apis.sample_words import are_images, of_samples


@pytest.mark.parametrize(('text', 'expected'), [
    ('Use images. Images on an image, see num_images=4.',
     'Use samples. Samples on a sample, see num_images=4.'),
    ("Layer 'image.fc' of each process's images; 'image' is \"image\"",
     "Layer 'image.fc' of each process's samples; 'image' is \"image\""),
    ('imagery and imagesets', 'imagery and imagesets')])
def test_words_change_and_names_do_not(text, expected):
    assert of_samples(text) == expected


@pytest.mark.parametrize(('batch', 'expected'), [
    (torch.zeros(2, 3, 8, 8), True), (torch.zeros(2, 7, 8, 8), True),
    ({'inputs': [torch.zeros(3, 8, 8, dtype=torch.uint8)]}, True),
    ({'input_ids': torch.zeros(2, 9, dtype=torch.long)}, False), (torch.zeros(2, 9, 4), False)])
def test_what_counts_as_images(batch, expected):
    assert are_images([batch]) is expected


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.image(x)


@pytest.mark.parametrize(('options', 'error'), [
    ({}, r'never reached by the calibration samples: never\. Use samples on which'),
    ({'calibration': {'unreached': 'float'}}, "Layer 'image' gets 1 of .* and that sample")])
def test_errors_of_a_model_of_vectors(options, error):
    x = torch.randn(3, 8, 4)
    if options:
        x[1, 2, 3] = float('nan')
    with pytest.raises(ValueError, match=error):
        quantize_model(Net(), [*x], options)


def test_reports_of_a_model_of_vectors():
    net = Net()
    report = quantize_model(net, [*torch.randn(3, 8, 4)], {
        'method': {'type': 'RoundToNearest'}, 'calibration': {'unreached': 'float'}})
    assert report.kept_float[0].reason.startswith('no calibration sample reaches it')
    maps = quantize_model(nn.Sequential(nn.Conv2d(3, 4, 1)), [torch.randn(2, 3, 4, 4)] * 2, {
        'method': {'type': 'RoundToNearest'}, 'calibration': {'num_images': 0},
        'activation': {'num_bits': None}})
    assert 'no image was looked at' in maps.layers[0].notes[0]
