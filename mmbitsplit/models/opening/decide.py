"""Decides what each module gets for the calls that were found in it."""

import fnmatch
import json
import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmbitsplit.models.opening.find_calls import Found
from mmbitsplit.models.opening.opened_module import Openings
from mmbitsplit.models.opening.rows import Row, View

LEFT_CLOSED = 'left closed by the request'
_PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')
# Names that children may have.
_POSSIBLE = ('in_proj', 'out_proj', *_PROJECTIONS, 'product_qk', 'product_av', *(
    f'{kind}_{number}' for kind in ('product', 'product_qk', 'product_av', 'linear', 'conv')
    for number in range(20)))


def may_be_opened(pattern: str) -> bool:
    """Whether a name, or a shell pattern, may be meant for what opening a module puts into it."""
    last = pattern.rpartition('.')[2]
    return any(fnmatch.fnmatchcase(name, last) for name in _POSSIBLE)


def decide(model: nn.Module, found: Found, closed: Container[str] = (),
           hidden: tuple[str, ...] = ()) -> dict[str, Openings]:
    """What is to be put into which modules.

    Args:
        model: That was run.
        found: What was seen; calls that stay as they are are added to its ``closed``.
        closed: Names of modules that are left alone.
        hidden: See ``Openings``.

    Returns:
        By name of the module, in the order in which their calls were over.
    """
    openings = {}
    for name, calls in found.sequences.items():
        if all(row['kind'] == 'pass' for rows in calls for row in rows):
            continue
        module = model.get_submodule(name)
        reason = LEFT_CLOSED if name in closed else _why_not(module, calls)
        if reason:
            for function in dict.fromkeys(row['function'] for rows in calls for row in rows
                                          if row['kind'] != 'pass'):
                found.close(name, function, reason)
            continue
        chosen = _Children(name, module, found).of(_merged(calls))
        if chosen.children:
            chosen.hidden = hidden
            openings[name] = chosen
    return openings


def _why_not(module: nn.Module, calls: list[list[Row]]) -> str:
    if 'forward' in vars(module):
        return 'its forward has been replaced on the module itself'
    # A layer of several calls takes runs of all that is around them (PointRend: of its mask head,
    # ten times as long as without).
    if len(calls) > 1 and any(row['kind'] == 'convolution' and row['function'] == 'conv1d'
                              for row in calls[0]):
        return 'a convolution in one dimension that is called several times'
    if len({len(rows) for rows in calls}) > 1:
        return 'their number differs from call to call'
    if any(len({_key(row) for row in place}) > 1 for place in zip(*calls)):
        return 'they differ from call to call'
    return ''


def _key(row: Row) -> str:
    """What must be the same in every call."""
    return json.dumps({name: value for name, value in row.items()
                       if name not in ('together', 'softmax')}, sort_keys=True)


def _merged(calls: list[list[Row]]) -> list[Row]:
    """Rows for all calls: projections are together where they were so in all of them."""
    rows = [dict(row) for row in calls[0]]
    for index, row in enumerate(rows):
        if row['kind'] == 'multi_head':
            row['together'] = all(other[index]['together'] for other in calls)
    return rows


@dataclass
class _Children:
    """Chooses and names the children of one module."""

    name: str
    module: nn.Module
    found: Found
    children: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, rows: list[Row]) -> Openings:
        taken, partial = self._parameters(rows)
        rows = [self._checked(row, partial) for row in rows]
        parts = _parts_of_attention(rows)
        done = [self._row(row, part) for row, part in zip(rows, parts)]
        shapes = {name: tuple(self.module._parameters[name].shape) for name in taken}
        return Openings(self.name, done, self.children, shapes=shapes,
                        order=tuple(self.module._parameters))

    def _parameters(self, rows: list[Row]) -> tuple[set[str], set[str]]:
        """Names of parameters that children would hold whole, and of those only in part."""
        views: dict[str, list[View]] = {}
        for row in rows:
            for view in _views(row):
                views.setdefault(view.parameter, []).append(view)
        whole = {name for name, parts in views.items() if _partition(
            self.module._parameters[name], list(dict.fromkeys(parts)))}
        return whole, views.keys() - whole

    def _checked(self, row: Row, partial: set[str]) -> Row:
        """Leaves a call alone whose weight would be held twice, or in part."""
        wrong = next((view.parameter for view in _views(row) if view.parameter in partial), None)
        if wrong is None and row['kind'] in ('linear', 'convolution'):
            inner = row['layer'].get('inner')
            full = f'{self.name}.{inner}'.lstrip('.')
            if inner and full in self.found.called:
                return self._closed(row, f"the weight of '{full}', which is called too")
        if wrong is None:
            return row
        return self._closed(row, f"of its parameter '{wrong}' it takes parts that overlap or are "
                            'not all')

    def _closed(self, row: Row, reason: str) -> Row:
        self.found.close(self.name, row['function'], reason)
        return {'function': row['function'], 'kind': 'pass'}

    def _row(self, row: Row, part: str) -> Row:
        made = {'function': row['function'], 'kind': row['kind']}
        if row['kind'] == 'product':
            return {**made, 'child': self._add(
                part or 'product', {'make': 'product', 'softmax': row['softmax']}, bool(part))}
        if row['kind'] == 'attention':
            return {**made, **self._products()}
        if row['kind'] in ('linear', 'convolution'):
            kind = 'linear' if row['kind'] == 'linear' else 'conv'
            child = self._layer(kind, row['layer'], alone=False)
            return {**made, 'child': child,
                    **{key: row[key] for key in ('side', 'added') if key in row}}
        if row['kind'] == 'multi_head':
            return {**made, 'projections': self._projections(row),
                    'out': self._layer('out_proj', row['out'], alone=True), **self._products()}
        return made

    def _products(self) -> dict[str, str]:
        return {'qk': self._add('product_qk', {'make': 'product', 'softmax': None}),
                'av': self._add('product_av', {'make': 'product', 'softmax': 'a'})}

    def _projections(self, row: Row) -> list[str]:
        weights = [View.from_row(view) for view in row['weights']]
        bias = None if row['bias'] is None else View.from_row(row['bias'])
        if row['together']:
            return [self._add('in_proj', _linear(weights[0], bias))]
        parts = weights if len(weights) == 3 else _thirds(weights[0])
        biases = [None] * 3 if bias is None else _thirds(bias)
        return [self._add(name, _linear(*sides))
                for name, *sides in zip(_PROJECTIONS, parts, biases)]

    def _layer(self, name: str, layer: dict[str, Any], alone: bool) -> str:
        """Name of the child for a weight, the same for the same weight."""
        if 'inner' in layer:
            self.children[layer['inner']] = {'make': 'called'}
            return layer['inner']
        made = {'make': 'linear', 'weight': layer['weight'], 'bias': layer['bias']}
        if 'options' in layer:
            made.update(make='conv2d', options=layer['options'])
        for known, other in self.children.items():
            if other == made:
                return known
        return self._add(name, made, alone)

    def _add(self, name: str, made: dict[str, Any], alone: bool = True) -> str:
        """Adds a child by a name that is free, with a number from 0, or from 1 if ``alone``."""
        names = ([name] if alone else []) + [f'{name}_{number}' for number in range(
            1 if alone else 0, len(self.children) + 1000)]
        free = next(one for one in names if one not in self.children
                    and not hasattr(self.module, one))
        self.children[free] = made
        return free


def _parts_of_attention(rows: list[Row]) -> list[str]:
    """For each row the name that its product has by its part in attention, else nothing.

    What multiplies by a softmax is one; the first product before it is the other.
    """
    parts, before = [''] * len(rows), []
    for index, row in enumerate(rows):
        if row['kind'] == 'product' and row['softmax']:
            parts[index] = 'product_av'
            if before:
                parts[before[0]] = 'product_qk'
            before = []
        elif row['kind'] == 'product':
            before.append(index)
    return parts


def _linear(weight: View, bias: View | None) -> dict[str, Any]:
    return {'make': 'linear', 'weight': weight.row(), 'bias': None if bias is None else bias.row()}


def _thirds(view: View) -> list[View]:
    size = view.size[0] // 3
    return [view.rows(start * size, (start + 1) * size) for start in range(3)]


def _views(row: Row) -> list[View]:
    """Parts of the module's own parameters that a row's layers would hold."""
    found = [*row.get('weights', ()), row.get('bias')]
    for layer in (row.get('layer'), row.get('out')):
        if layer is not None:
            found += [layer.get('weight'), layer.get('bias')]
    return [View.from_row(view) for view in found if view is not None]


def _partition(parameter: torch.Tensor, views: list[View]) -> bool:
    """Whether views are all of a parameter, each element once."""
    if not parameter.is_contiguous() or sum(math.prod(view.size) for view in views) \
            != parameter.numel():
        return False
    seen = torch.zeros(parameter.shape, dtype=torch.bool)
    for view in views:
        view.look(seen).fill_(True)
    return bool(seen.all())


