"""One rounding for several widths against the paper's Eq. 3."""

import numpy as np
import pytest
import torch

from mmbitsplit.functional.quantizers.shared_rounding import first_rounding, shared_codes


@pytest.mark.parametrize('bits', [2, 3, 8])
def test_codes_are_those_of_the_papers_formula(bits):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(40, generator=generator)
    rounding = torch.rand(40, generator=generator)
    scale = 2.0 / 2 ** (bits - 1)  # weights beyond 2 are clipped
    found = shared_codes((weight / scale).floor(), rounding, bits)
    wanted = np.clip(np.floor(weight.numpy() / scale) + rounding.numpy(),
                     -2 ** (bits - 1), 2 ** (bits - 1) - 1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_a_weight_of_one_width_begins_as_it_is_and_of_several_on_average():
    positions = torch.tensor([[-1.25, 0.5, 3.0], [-2.75, 1.0, 6.5]])
    for one in positions:
        torch.testing.assert_close(one.floor() + first_rounding([one]), one)
    torch.testing.assert_close(first_rounding([*positions]), torch.tensor([0.5, 0.25, 0.25]))
