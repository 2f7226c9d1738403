"""Modules that nobody designed: whatever is called a unit keeps what a unit promises."""

import random
from typing import Any

import pytest
import torch
from divided_nets import divide
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from unit_oracle import assert_alone, assert_isolated, following

PROGRAMS = 6  # a test


class Program(nn.Module):
    """Runs steps on a growing list of tensors of one shape.

    Args:
        steps: An operation and two numbers, which say what tensors it takes. An operation is the
            number of a part or a word: ``'keep'`` puts a tensor on a board that all programs
            share, ``'fetch'`` takes the last from it.
        parts: Layers and programs.
        board: Of the whole model.
        pair: Whether the last two tensors are returned.
    """

    def __init__(self, steps: list[tuple], parts: list[nn.Module], board: list[Tensor],
                 pair: bool):
        super().__init__()
        self.steps, self.parts, self.board, self.pair = steps, nn.ModuleList(parts), board, pair

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for operation, one, other in self.steps:
            a, b = values[one % len(values)], values[other % len(values)]
            if isinstance(operation, int):
                given = self.parts[operation](a)
                values += given if isinstance(given, tuple) else [given]
            elif operation == 'keep':
                self.board.append(a)
            elif operation == 'fetch':
                values.append(self.board[-1] if self.board else a)
            else:
                values.append(OPERATIONS[operation](a, b))
        return tuple(values[-2:]) if self.pair else values[-1]


OPERATIONS = {
    'add': lambda a, b: a + b, 'relu': lambda a, b: a.relu(), 'change': lambda a, b: a.relu_(),
    'add to': lambda a, b: a.add_(b), 'decide': lambda a, b: a if a.mean() > b.mean() else -a,
    'pick': lambda a, b: a[:, b.mean((0, 2, 3)).argsort()], 'like': lambda a, b: a - a.mean()}
WEIGHTS = {'add': 6, 'relu': 6, 'like': 2, 'change': 2, 'add to': 2, 'keep': 3, 'fetch': 3,
           'decide': 1, 'pick': 1}


def make_program(dice: random.Random, board: list[Tensor], depth: int) -> nn.Module:
    """Calls each of its parts, and does something else now and then."""
    parts = [make_part(dice, board, depth) for _ in range(dice.randint(2, 4))]
    calls = [*range(len(parts)), *([0] if dice.random() < 0.1 else [])]
    steps: list[tuple] = []
    for number in calls:
        steps.append((number, -1 if dice.random() < 0.7 else dice.randint(0, 5), 0))
        while dice.random() < 0.35:
            (word,) = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
            steps.append((word, -1 if dice.random() < 0.7 else dice.randint(0, 5),
                          dice.randint(0, 5)))
    return Program(steps, parts, board, dice.random() < 0.1)


def make_part(dice: random.Random, board: list[Tensor], depth: int) -> nn.Module:
    kind = dice.random()
    if depth and kind < 0.75:
        return make_program(dice, board, depth - 1)
    if depth and kind < 0.85:
        return nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2)), nn.ReLU())
    return nn.Conv2d(2, 2, 3, padding=1)


@pytest.mark.parametrize('seed', range(4))
def test_units_of_any_program(seed):
    found = 0
    for number in range(PROGRAMS * seed, PROGRAMS * (seed + 1)):
        torch.manual_seed(number)
        board: list[Tensor] = []
        model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1),
                              make_program(random.Random(number), board, 2)).eval()
        x = torch.randn(2, 2, 4, 4)

        def run(model: nn.Module = model, batch: Tensor = x, board: list[Tensor] = board) -> Any:
            board.clear()
            return model(batch.clone())

        units = divide(model, [x], run=run)
        with following(model, units) as calls, torch.no_grad():
            wanted = run()
        assert_alone(model, units, calls, board.clear)
        got = assert_isolated(model, units, calls, run)
        assert all(map(torch.equal, tree_leaves(got), tree_leaves(wanted)))
        found += sum(len(unit.layers) > 1 for unit in units)
    assert found >= PROGRAMS
