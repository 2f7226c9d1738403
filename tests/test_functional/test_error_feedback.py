"""Error feedback gives the same factor however many threads share the work."""

import pytest
import torch

from mmbitsplit.functional.solvers.error_feedback import FeedbackFactor


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('inputs', [150, 600])
def test_the_factor_is_the_same_with_any_number_of_threads(inputs, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, inputs, inputs + 50, generator=generator, dtype=dtype)
    gram = x @ x.mT + 10 * torch.eye(inputs, dtype=dtype)
    cross = torch.randn(1, 20, inputs, generator=generator, dtype=dtype)
    before, factors = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            factors.append(FeedbackFactor(gram, cross))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for factor in factors[1:]:
        assert torch.equal(factor.lower, factors[0].lower)
        assert torch.equal(factor.target, factors[0].target)
