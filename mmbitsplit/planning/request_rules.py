"""How a request says what is done with a name: patterns, scope, overrides, the given plan."""

import fnmatch
from dataclasses import replace

from mmbitsplit.planning.given_plan import IN_FLOAT_BY_PLAN, given_in_float, row_of
from mmbitsplit.structures import QuantSpec, WeightSpec, merge
from mmbitsplit.structures.given_plan import AS_REQUESTED


def matches(name: str, pattern: str) -> bool:
    """Whether a layer name matches a shell pattern, case and all."""
    return fnmatch.fnmatchcase(name, pattern)


def left_in_float(name: str, spec: QuantSpec) -> str:
    """Why a request leaves a layer in float; empty where it does not. A given plan decides."""
    given = given_in_float(name, spec)
    if given is not None:
        return IN_FLOAT_BY_PLAN if given else ''
    if not _in_scope(name, spec.scope):
        return f"outside scope '{spec.scope}'"
    return 'skipped by an override' if _skipped(name, spec) else ''


def weight_of(name: str, weight: WeightSpec, spec: QuantSpec) -> WeightSpec:
    """Weight settings of something that has weights alone: overrides, then the given plan.

    Args:
        name: Dotted name in the model.
        weight: Settings of its role.
        spec: The request.
    """
    for index, override in enumerate(spec.overrides):
        if matches(name, override.match):
            weight = merge(weight, override.weight, f'quantization.overrides[{index}].weight')
    row = row_of(name, spec)
    if row is None:
        return weight
    weight = merge(weight, row.weight, f"quantization.plan, layer '{name}', weight")
    return weight if row.weight_bits == AS_REQUESTED else replace(weight, num_bits=row.weight_bits)


def _in_scope(name: str, scope: str) -> bool:
    return scope == 'all' or name.split('.')[0] in scope.split('+')


def _skipped(name: str, spec: QuantSpec) -> bool:
    return any(o.skip and matches(name, o.match) for o in spec.overrides)
