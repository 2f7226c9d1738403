"""Sampled positions are a pure function of their key."""

import pytest
import torch

from mmbitsplit.passes.sampling import (
    draw_by_importance,
    is_held_out,
    rows_per_call,
    sample_positions,
)

KEY = (0, 'backbone.conv1', 0, 3)


# Below, at, just above the number of rows, where drawing changes over, and far above.
@pytest.mark.parametrize('num_positions', [0, 1, 63, 64, 65, 255, 256, 257, 100_000])
def test_count_range_order_and_no_repeats(num_positions):
    positions = sample_positions(num_positions, 64, KEY)
    assert positions.dtype == torch.int64
    assert positions.shape == (min(num_positions, 64),)
    assert (positions.diff() > 0).all()  # sorted and without repeats
    assert ((positions >= 0) & (positions < num_positions)).all()


@pytest.mark.parametrize('num_positions', [100, 10_000])
def test_pure_function_of_the_key(num_positions):
    torch.manual_seed(1)
    first = sample_positions(num_positions, 32, KEY)
    torch.manual_seed(2)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(sample_positions(num_positions, 32, KEY), first)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the global generator alone


@pytest.mark.parametrize('key', [
    (1, *KEY[1:]), (0, 'backbone.conv2', 0, 3), (*KEY[:2], 1, 3), (*KEY[:3], 4),
    (*KEY, 'inputs')])
@pytest.mark.parametrize('num_positions', [100, 10_000])
def test_every_part_of_the_key_matters(key, num_positions):
    assert not torch.equal(sample_positions(num_positions, 32, key),
                           sample_positions(num_positions, 32, KEY))


@pytest.mark.parametrize('num_positions', [90, 2000])
def test_no_position_is_preferred(num_positions):
    draws = 400
    hits = torch.zeros(num_positions)
    for seed in range(draws):
        hits[sample_positions(num_positions, 30, (seed, 'layer', 0, 0))] += 1
    share = 30 / num_positions
    for part in hits.chunk(5):  # a fifth of the image each; five standard deviations
        spread = (draws * share * (1 - share) / part.numel()) ** 0.5
        assert abs(part.mean().item() - draws * share) < 5 * spread


@pytest.mark.parametrize('importance', [0.0, 2.5])
@pytest.mark.parametrize('num_positions', [0, 40, 90, 2000])
def test_where_all_matter_alike_positions_are_drawn_evenly(num_positions, importance):
    drawn = draw_by_importance(torch.full((num_positions,), importance), 64, KEY)
    assert torch.equal(drawn, sample_positions(num_positions, 64, KEY))


def test_by_importance_positions_are_sorted_without_repeats_and_a_pure_function_of_the_key():
    importance = torch.rand(300, generator=torch.Generator().manual_seed(0)) ** 8
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = draw_by_importance(importance, 64, KEY)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw_by_importance(importance, 64, KEY), drawn)
    assert not torch.equal(draw_by_importance(importance, 64, (1, *KEY[1:])), drawn)
    assert drawn.shape == (64,) and (drawn.diff() > 0).all() and 0 <= drawn[0] <= drawn[-1] < 300
    assert torch.equal(draw_by_importance(importance, 300, KEY), torch.arange(300))


def test_seventy_per_cent_follow_importance_and_thirty_none():
    importance, draws = torch.zeros(1000), 3000
    importance[:10], importance[10:20] = 3.0, 1.0
    hits = torch.zeros(1000)
    for seed in range(draws):
        hits[draw_by_importance(importance, 1, (seed, 'layer', 0, 0))] += 1
    for part, share in ((hits[:10], 0.7 * 0.75 + 0.3 * 0.01),
                        (hits[10:20], 0.7 * 0.25 + 0.3 * 0.01), (hits[20:], 0.3 * 0.98)):
        spread = (draws * share * (1 - share)) ** 0.5
        assert abs(float(part.sum()) - draws * share) < 4 * spread


def test_rows_are_shared_among_batches_and_calls():
    for rows, batches, calls in ((16384, 32, 1), (16384, 32, 5), (100, 7, 3), (64, 1000, 2)):
        each = rows_per_call(rows, batches, calls)
        assert each >= 1 and each * batches * calls >= rows
        assert each == 1 or (each - 1) * batches * calls < rows


@pytest.mark.parametrize('holdout', [0.5, 0.25, 0.125])
@pytest.mark.parametrize('num_batches', [8, 16, 32])
def test_whole_batches_are_held_out_when_there_are_enough(holdout, num_batches):
    masks = [is_held_out(batch, num_batches, 10, holdout) for batch in range(num_batches)]
    assert all(mask.dtype == torch.bool and mask.shape == (10,) for mask in masks)
    assert all(mask.all() or not mask.any() for mask in masks)
    assert sum(bool(mask.all()) for mask in masks) == round(holdout * num_batches)


@pytest.mark.parametrize('num_batches', [1, 3, 7])
def test_rows_are_held_out_when_batches_are_few(num_batches):
    for batch in range(num_batches):
        mask = is_held_out(batch, num_batches, 80, 0.125)
        assert mask.sum() == 10


@pytest.mark.parametrize('holdout', [0.4, 0.3, 0.35, 0.45, 0.375, 0.07, 1 / 3, 0.5, 0.125, 0.001])
@pytest.mark.parametrize('whole_batches', [False, True])
def test_the_part_that_is_asked_for_is_held_out_at_even_steps(holdout, whole_batches):
    if whole_batches:
        mask = torch.stack([is_held_out(batch, 2000, 1, holdout)[0] for batch in range(2000)])
    else:
        mask = is_held_out(0, 1, 2000, holdout)
    held_out = mask.cumsum(0)
    exact = holdout * torch.arange(1, 2001, dtype=torch.float64)
    assert (held_out <= exact + 1e-6).all() and (held_out > exact - 1 - 1e-6).all()


@pytest.mark.parametrize('every', [2, 3, 4, 5, 7, 8, 10, 16])
@pytest.mark.parametrize('num_batches', [1, 7, 8, 40])
def test_one_of_so_many_is_always_the_last(every, num_batches):
    for batch in range(num_batches):
        mask = is_held_out(batch, num_batches, 50, 1 / every)
        if num_batches >= every:
            assert mask.tolist() == [batch % every == every - 1] * 50
        else:
            assert mask.nonzero().flatten().tolist() == list(range(every - 1, 50, every))


@pytest.mark.parametrize('num_rows', [0, 5])
def test_no_holdout(num_rows):
    assert not is_held_out(0, 4, num_rows, 0).any()
    assert is_held_out(3, 4, 0, 0.25).shape == (0,)
