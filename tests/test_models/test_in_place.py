"""A module of another class stays the module that it was."""

import copy
import io
import pickle
from abc import ABCMeta

import pytest
import torch
from torch import nn

from mmbitsplit.models.layers.in_place import become, has, mixins, revert, was


class Doubled(nn.Module):
    in_place_name = 'Doubling'

    def forward(self, x):
        return 2 * super().forward(x)


class Shifted:
    def forward(self, x):
        return super().forward(x) + 1


class Own(nn.Linear, metaclass=ABCMeta):
    """With a metaclass, as mmengine's modules, and attributes that do not all travel."""

    def __init__(self):
        super().__init__(3, 2)
        self.note, self.cache = ['kept'], object()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != 'cache'}


class MadeByReduce(nn.Linear):
    def __reduce__(self):
        return MadeByReduce, (self.in_features, self.out_features, False), {'weight': self.weight}

    def __setstate__(self, state):
        self.weight = state['weight']


class WithArguments(nn.ReLU):
    def __new__(cls, *, word):
        made = super().__new__(cls)
        made.word = word
        return made

    def __init__(self, *, word):
        super().__init__()
        self.word = word

    def __getnewargs_ex__(self):
        return (), {'word': self.word}


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, copy.copy, saved, lambda module: pickle.loads(pickle.dumps(module)),
          lambda module: pickle.loads(pickle.dumps(module, protocol=0))]


def test_class_alone_changes_and_comes_back():
    layer = nn.Conv2d(1, 1, 1)
    before, x = dict(vars(layer)), torch.rand(1, 1, 2, 2)
    expected = layer(x)
    become(layer, Doubled)
    assert isinstance(layer, nn.Conv2d) and isinstance(layer, Doubled)
    assert type(layer).__name__ == 'DoublingConv2d' and repr(layer).startswith('DoublingConv2d(')
    assert torch.equal(layer(x), 2 * expected)
    kind = type(layer)
    become(layer, Doubled)  # a second time changes nothing
    assert type(layer) is kind and was(layer) is nn.Conv2d and has(layer, Doubled)
    other = nn.Conv2d(2, 2, 1)
    become(other, Doubled)
    assert type(other) is kind
    revert(layer, Doubled)
    revert(layer, Doubled)
    assert type(layer) is was(layer) is nn.Conv2d and vars(layer) == before


def test_mixins_stack_and_are_taken_back_in_any_order():
    x = torch.rand(4, 3)
    layer = Own()
    expected = layer(x)
    become(layer, Doubled)
    become(layer, Shifted)
    assert mixins(layer) == [Shifted, Doubled] and was(layer) is Own
    assert type(layer).__name__ == 'ShiftedDoublingOwn'
    assert torch.allclose(layer(x), 2 * expected + 1)
    revert(layer, Doubled)
    assert mixins(layer) == [Shifted] and torch.allclose(layer(x), expected + 1)
    become(layer, Doubled)
    assert torch.allclose(layer(x), 2 * (expected + 1))
    revert(layer, Doubled)
    revert(layer, Shifted)
    assert type(layer) is Own


@pytest.mark.parametrize('copied', COPIES)
@pytest.mark.parametrize('make', [lambda: nn.Linear(3, 2), Own, lambda: MadeByReduce(3, 2, False),
                                  lambda: WithArguments(word='w')])
@pytest.mark.parametrize('stack', [[Doubled], [Doubled, Shifted]])
def test_copies_and_files(copied, make, stack):
    layer, x = make(), torch.rand(4, 3)
    layer.register_forward_hook(_hook)
    for mixin in stack:
        become(layer, mixin)
    other = copied(layer)
    assert type(other) is type(layer) and other is not layer
    assert torch.equal(other(x), layer(x))
    for mixin in stack:
        revert(other, mixin)
    assert type(other) is was(layer) and type(layer) is not was(layer)
    if isinstance(other, Own):  # as its own class says
        assert other.note == ['kept'] and not hasattr(other, 'cache')


def _hook(module, args, output):
    return output
