"""What JSON does not know is described by what it is, never by where it lies in memory."""

import functools
import json
import math
import operator
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mmbitsplit.calibration.journal.identity import describe

SOURCE = """
import functools, math, operator
def named(x): return x
def outer(width):
    def inner(x, scale=2): return inner if x is None else x * width * scale
    return inner
class Thing:
    def __init__(self, size): self.size, self.act = size, named
    def go(self): return self.size
class Circle:
    def __init__(self): self.me = self
WORDS = [f'word {number}' for number in range(20)]
VALUES = {
    'named': named, 'lambda': lambda x: x + 1, 'other lambda': lambda x: x + 2,
    'nested lambda': lambda x: (lambda y: y * 3)(x), 'closure': outer(3), 'closure 4': outer(4),
    'partial': functools.partial(named, 3, key=outer(1)), 'builtin': math.sqrt,
    'class': Thing, 'thing': Thing(3), 'thing 4': Thing(4), 'method': Thing(3).go,
    'circle': Circle(), 'set': set(WORDS), 'frozen': frozenset(WORDS[:3]),
    'getter': operator.itemgetter(2), 'generator': (x for x in WORDS)}
"""


def values() -> dict:
    """Everything of the source, made anew: other objects, as in another process."""
    scope = {'__name__': 'somewhere'}
    exec(SOURCE, scope)
    return scope['VALUES']


def described(value) -> str:
    return json.dumps(value, default=describe)


@pytest.mark.parametrize('name', sorted(values()))
def test_the_same_in_every_process(name):
    first, again = described(values()[name]), described(values()[name])
    assert first == again and ' at 0x' not in first


def test_the_same_with_another_order_of_hashes():
    code = (f'import json\nfrom mmbitsplit.calibration.journal.identity import describe\n{SOURCE}\n'
            'print(json.dumps(VALUES, default=describe))')
    outputs = {subprocess.run([sys.executable, '-c', code], text=True, capture_output=True,
                              check=True, env={**__import__('os').environ,
                                               'PYTHONHASHSEED': seed}).stdout
               for seed in ('1', '2')}
    assert len(outputs) == 1


@pytest.mark.parametrize('one, other', [
    ('lambda', 'other lambda'), ('lambda', 'nested lambda'), ('closure', 'closure 4'),
    ('thing', 'thing 4'), ('named', 'builtin'), ('set', 'frozen'), ('partial', 'named')])
def test_what_differs_is_told_apart(one, other):
    known = values()
    assert described(known[one]) != described(known[other])


def test_names_say_where_something_comes_from():
    assert describe(math.sqrt) == 'math.sqrt'
    assert describe(functools.reduce) == '_functools.reduce'
    assert describe(json.dumps) == 'json.dumps'
    assert describe(functools.partial(json.dumps, 1)) == {
        'partial': 'json.dumps', 'args': [1], 'keywords': {}}
    assert describe(torch.relu).endswith('relu')


def test_what_has_a_value_is_told_by_it():
    assert describe(torch.tensor([1, 2])) == [1, 2]
    assert describe(torch.float32) == 'torch.float32'
    assert describe(SimpleNamespace(a=1)) == 'namespace(a=1)'
    assert describe(operator.add) == '_operator.add'
