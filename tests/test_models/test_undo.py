"""A model is as it was after whatever went wrong."""

import copy

import pytest
import torch
from torch import nn

from mmbitsplit.models.layers.in_place import become
from mmbitsplit.models.surgery.undo import ModelState, as_it_was_on_error


def snapshot(model):
    """Everything of a model that a caller can see."""
    return [(name, id(module), type(module), module.training, {key: id(value) for key, value in
                                                 vars(module).items()},
             [list(value.items()) for value in (
                 module._forward_hooks, module._forward_pre_hooks, module._modules)])
            for name, module in model.named_modules()]


class Identity:
    """What a module is turned into."""

    def forward(self, x):
        return x


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('count', torch.zeros(2))
        self.layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.seen = 0

    def forward(self, x):
        self.count += 1
        self.seen += 1
        self.last = self.layer(x + torch.rand(2))
        return self.last


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_what_is_done_inside_is_undone(error):
    model = Stateful().train()
    handle = model.layer.register_forward_hook(lambda *args: None)
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    with pytest.raises(error), as_it_was_on_error(model):
        model.eval()
        model(torch.ones(3, 2))
        become(model.layer[1], Identity)
        model.layer[0] = nn.Conv2d(1, 1, 1)
        model.layer.register_forward_pre_hook(lambda *args: None)
        model.layer.forward = lambda x: x
        model.requires_grad_(False)
        raise error
    assert snapshot(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    handle.remove()  # still knows where its hook is
    assert not model.layer._forward_hooks


def test_what_succeeds_stays():
    model = nn.Sequential(nn.Linear(2, 2))
    with as_it_was_on_error(model):
        become(model[0], Identity)
        model.eval()
    assert isinstance(model[0], Identity) and not model.training


def test_two_states_of_a_model_are_put_back_in_turn():
    model = Stateful().eval()
    float_layer, first, before = model.layer[0], ModelState(model), snapshot(model)
    model.layer[0] = nn.Linear(2, 2)
    become(model.layer[1], Identity)
    model(torch.ones(3, 2))
    second, after = ModelState(model), snapshot(model)
    for _ in range(2):
        first.put_back()
        assert snapshot(model) == before and model.layer[0] is float_layer and not model.count.any()
        model(torch.ones(3, 2))
        second.put_back()
        assert snapshot(model) == after and model.count.tolist() == [1, 1]
