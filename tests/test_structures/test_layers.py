"""Geometry and statistics: derived sizes agree with torch, sums add up."""

import dataclasses

import pytest
import torch
from torch import nn

from mmbitsplit.structures import LayerGeometry, LayerStatistics, QParams, summary


@pytest.mark.parametrize(('geometry', 'module'), [
    (LayerGeometry('conv2d', 6, 4, groups=2, kernel_size=(3, 5)),
     nn.Conv2d(6, 4, (3, 5), groups=2)),
    (LayerGeometry('conv2d', 6, 6, groups=6, kernel_size=(3, 3)), nn.Conv2d(6, 6, 3, groups=6)),
    (LayerGeometry('conv_transpose2d', 6, 4, groups=2, kernel_size=(3, 5)),
     nn.ConvTranspose2d(6, 4, (3, 5), groups=2)),
    (LayerGeometry('linear', 6, 4), nn.Linear(6, 4)),
], ids=['conv', 'depthwise', 'transposed', 'linear'])
def test_weight_shape_and_inputs_agree_with_torch(geometry, module):
    assert geometry.weight_shape == tuple(module.weight.shape)
    assert geometry.inputs_per_output * geometry.out_channels == module.weight.numel()


def test_statistics_add_field_by_field():
    names = [field.name for field in dataclasses.fields(LayerStatistics)]
    first, second = (LayerStatistics(**{name: torch.full((1,), float(factor * k))
                                        for k, name in enumerate(names, 1)}) for factor in (1, 10))
    total = first + second
    assert [float(getattr(total, name)) for name in names] == [11, 22, 33, 44, 55, 66]
    assert float(first.gram) == names.index('gram') + 1  # the terms stay what they were


@pytest.mark.parametrize('value', [
    LayerGeometry('linear', 1, 1), QParams(torch.ones(1), torch.zeros(1), 0, 255)],
    ids=lambda value: type(value).__name__)
def test_structures_are_frozen(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)


def test_summary_is_smallest_and_largest_as_floats():
    assert summary(torch.tensor([3, -1, 2])) == (-1.0, 3.0)
