"""Any torch module, from batches in any form that it takes."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.structures import QuantSpec


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, a, b):
        return self.out(torch.relu(self.left(a) + self.right(b)))


@pytest.fixture
def adder():
    torch.manual_seed(0)
    return Adder()


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(2, 16, 4, generator=generator)) for _ in range(3)]


def test_tuples_dicts_and_runs_are_alike(pairs):
    states = []
    for batches, run in ((pairs, None), ([dict(a=a, b=b) for a, b in pairs], None),
                         (pairs, lambda model, batch: model(b=batch[1], a=batch[0]))):
        torch.manual_seed(0)
        model = Adder()
        quantize_model(model, batches, run=run)
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])


def test_a_tensor_is_a_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(),
                          nn.Conv2d(4, 2, 1))
    batches, wanted = [torch.randn(2, 3, 8, 8)], []
    with torch.no_grad():
        wanted = model.eval()(batches[0])
    report = quantize_model(model, batches)
    assert [layer.weight_bits for layer in report.layers] == [8, 4, 8]
    with torch.no_grad():
        error = (model(batches[0]) - wanted).square().mean() / wanted.var()
    assert error < 0.02


def test_the_spec_may_be_a_dict_an_object_or_nothing(adder, pairs):
    request = dict(weight=dict(num_bits=3), first_last=dict(weight_bits=None))
    report = quantize_model(adder, pairs, request)
    assert {layer.weight_bits for layer in report.layers} == {3}
    torch.manual_seed(0)
    other = Adder()
    quantize_model(other, pairs, QuantSpec.from_dict(request))
    assert all(torch.equal(value, other.state_dict()[name])
               for name, value in adder.state_dict().items())


def test_labels_and_progress(adder, pairs):
    steps = []
    quantize_model(adder, pairs, progress=steps.append)
    assert len(steps) == 3 + 3
    pairs[2][0][0, 0] = float('nan')
    torch.manual_seed(0)
    with pytest.raises(ValueError, match='on the third'):
        quantize_model(Adder(), pairs, labels=['the first', 'the second', 'the third'])


def test_a_request_that_is_no_dict_is_refused_in_words(adder, pairs):
    with pytest.raises(ValueError, match="quantization must be a dict, got 'W4A8'"):
        quantize_model(adder, pairs, 'W4A8')


def test_a_wrong_key_changes_nothing(adder, pairs):
    with pytest.raises(ValueError, match="'nbits'.*did you mean 'num_bits'"):
        quantize_model(adder, pairs, dict(weight=dict(nbits=4)))
    assert not any(isinstance(module, QuantizedLayer) for module in adder.modules())
