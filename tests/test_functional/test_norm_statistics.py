"""Statistics of outputs, and the norm that gives them others: against torch's own batch norm."""

import pytest
import torch
from torch.nn.functional import batch_norm

from mmbitsplit.functional.norm_statistics import (
    MOST_GROWTH,
    mean_and_variance,
    output_moments,
    renormalization,
)
from mmbitsplit.structures import FoldedNorm, LayerGeometry


def geometry(kind, channels):
    return LayerGeometry(kind=kind, in_channels=channels, out_channels=channels)


@pytest.mark.parametrize('kind, shape', [('linear', (6, 3, 5)), ('linear', (7, 5)),
                                         ('conv2d', (3, 5, 4, 2)), ('conv2d', (5, 4, 2))])
def test_the_rebuilt_norm_is_torch_s(kind, shape):
    generator = torch.Generator().manual_seed(1)
    output = 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    norm = FoldedNorm(torch.randn(5, generator=generator, dtype=torch.float64),
                      torch.randn(5, generator=generator, dtype=torch.float64), 1e-2)
    moments = output_moments(output, geometry(kind, 5))
    factor, shift = renormalization(*mean_and_variance(moments), norm)
    rows = output.movedim(-1 if kind == 'linear' else -3, -1).flatten(0, -2)
    wanted = batch_norm(rows, None, None, (norm.gamma.square() + norm.eps).sqrt(), norm.beta,
                        training=True, eps=norm.eps)
    assert torch.allclose(factor * rows + shift, wanted)
    halves = [output_moments(part, geometry(kind, 5)) for part in output.split([1, shape[0] - 1])] \
        if len(shape) != 3 or kind == 'linear' else [moments, torch.zeros_like(moments)]
    assert torch.allclose(sum(halves), moments)


def test_what_is_as_the_norm_says_stays():
    norm = FoldedNorm(torch.tensor([0.5, -2.0, 0.0]).double(), torch.tensor([1.0, 0, 3]).double(),
                      1e-5)
    factor, shift = renormalization(norm.beta, norm.gamma.square(), norm)
    assert torch.allclose(factor, torch.ones(3).double())
    assert torch.allclose(shift, torch.zeros(3).double(), atol=1e-12)


def test_a_channel_that_stands_still_is_not_blown_up():
    norm = FoldedNorm(torch.ones(2).double(), torch.zeros(2).double(), 1e-5)
    factor, shift = renormalization(torch.tensor([4.0, 4]).double(),
                                    torch.tensor([0.0, 1.0]).double(), norm)
    assert factor.tolist() == pytest.approx([MOST_GROWTH, 1.0])
    assert (factor * 4 + shift).abs().max() < 1e-12  # the mean is put right all the same
