"""Tokens that only fill a sentence up are no calibration rows."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.passes.row_masks import real_rows, row_masks

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]]) != 0


@pytest.mark.parametrize(('sizes', 'expected'), [
    ((2, 3), [0, 1, 2, 3]), ((6,), [0, 1, 2, 3]), ((2, 2, 3), [0, 1, 2, 3, 4, 5, 6, 9]),
    ((2,), None), ((2, 4), None), ((3, 2), None)])
def test_real_rows_are_counted_over_all_sizes(sizes, expected):
    found = real_rows(MASK, sizes)
    assert found is None if expected is None else found.tolist() == expected


@pytest.mark.parametrize('mask', [None, torch.ones(2, 3) > 0, torch.ones(2, 3) < 0])
def test_without_something_to_leave_out_all_rows_count(mask):
    assert real_rows(mask, (2, 3)) is None


def test_masks_are_entries_of_batches_that_are_mappings():
    batches = {0: {'attention_mask': MASK.long()}, 1: MASK, 2: {'ids': MASK},
               3: {'attention_mask': MASK[None]}, 4: {'attention_mask': None}}
    found = row_masks(batches, 'attention_mask')
    assert found.keys() == {0} and torch.equal(found[0], MASK)
    assert not row_masks(batches, None) and row_masks(batches, 'ids').keys() == {2}


class Net(nn.Module):
    """Gives what fills a sentence up values that no token has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x, attention_mask=None):
        x = self.first(x)
        if attention_mask is not None:
            x = torch.where(attention_mask.unsqueeze(-1) != 0, x, x + 100 * x.sin())
        return self.last(x)


def batches(fill):
    torch.manual_seed(1)
    x, mask = torch.randn(6, 5, 10, 8), torch.ones(6, 5, 10, dtype=torch.long)
    mask[:, :3, 6:] = 0
    return [{'x': torch.where(one.unsqueeze(-1) != 0, batch, batch * fill), 'attention_mask': one}
            for batch, one in zip(x, mask)]


def quantized(fill, **calibration):
    net = Net()
    report = quantize_model(net, batches(fill), {
        'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}, 'method': {
            'type': 'BitSplit', 'effort': 'fast'}, 'first_last': {'weight_bits': None},
        'calibration': calibration, 'tuning': []})
    return net.state_dict(), {layer.name: layer for layer in report.layers}


@pytest.mark.parametrize('options', [{}, {'rows_per_layer': 64}])
def test_what_fills_sentences_up_changes_nothing(options):
    state, layers = quantized(1.0, **options)
    other, _ = quantized(7.0, **options)
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
    assert layers['last'].rows == min(6 * 38, options.get('rows_per_layer', 228) + 2)


def test_without_the_option_all_tokens_count():
    state, layers = quantized(1.0, row_mask=None)
    other, _ = quantized(7.0, row_mask=None)
    assert layers['last'].rows == 300
    assert any(not torch.equal(value, other[name]) for name, value in state.items())
