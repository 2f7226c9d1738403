"""A bias in whole steps of its weight scale."""

import torch

from mmbitsplit.functional import whole_steps
from mmbitsplit.functional.quantizers.integer_bias import LARGEST_BIAS


def test_it_is_whole_steps_and_never_farther_than_half_a_step():
    torch.manual_seed(0)
    bias, scale = torch.randn(1000), torch.rand(1000) * 0.1 + 1e-4
    rounded = whole_steps(bias, scale)
    steps = rounded.double() / scale.double()
    assert rounded.dtype == bias.dtype
    torch.testing.assert_close(steps, steps.round(), rtol=1e-6, atol=1e-6)
    assert bool(((rounded - bias).abs() <= 0.5001 * scale).all())
    torch.testing.assert_close(whole_steps(rounded, scale), rounded)


def test_what_integers_would_not_hold_stays():
    bias = torch.tensor([1.0, 1.0])
    scale = torch.tensor([0.3, 0.5 / LARGEST_BIAS])
    assert torch.allclose(whole_steps(bias, scale), torch.tensor([0.9, 1.0]))
