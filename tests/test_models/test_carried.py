"""Tensors are found whatever carries them."""

from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmbitsplit.models.watch.carried import tensors_in

A, B = torch.zeros(1), torch.ones(2)


@dataclass
class Result:
    scores: torch.Tensor
    rest: list = field(default_factory=list)


@dataclass(frozen=True)
class Slotted:
    __slots__ = ('boxes', 'labels')
    boxes: torch.Tensor
    labels: torch.Tensor


class Output(OrderedDict):
    """As of libraries whose outputs are dicts with attributes."""


class Sample:

    def __init__(self, **values):
        self._hidden = values


class Kind(Enum):
    ONE = 1


Pair = namedtuple('Pair', ['left', 'right'])


@pytest.mark.parametrize('value', [
    A, [A, B], (A, {'b': B}), {'a': [A], 'b': (B, 3)}, Pair(A, B), OrderedDict(a=A, b=B),
    Output(a=A, b=B), deque([A, [B]]), Result(A, [B]), Slotted(A, B), Sample(a=A, b=[B]),
    SimpleNamespace(a=A, b=SimpleNamespace(c=B)), [Sample(a=Result(A, [{'b': B}]))],
    [None, 'text', 3, 1.5, Kind.ONE, torch.float32, A, B]])
def test_tensors_are_found(value):
    found = tensors_in(value)
    assert [id(tensor) for tensor in found] == [id(A), id(B)][:len(found)]
    assert len(found) == (1 if value is A else 2)


def test_a_tensor_met_twice_and_an_object_that_holds_itself():
    sample = SimpleNamespace(a=A, same=A)
    sample.me = [sample]
    assert tensors_in([sample, A]) == [A]


@pytest.mark.parametrize('value', [
    None, 3, 'abc', nn.Linear(2, 2), torch.zeros, lambda: A, Result,
    SimpleNamespace(net=nn.ReLU())])
def test_models_functions_and_classes_are_not_looked_into(value):
    assert tensors_in(value) == []


def test_what_is_nested_without_end_has_an_end():
    value = [A]
    for _ in range(5000):
        value = [value]
    assert tensors_in(value) == []
