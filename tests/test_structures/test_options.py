"""Options are held to the annotations of their fields, however they are made."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmbitsplit.structures import (
    ActivationSpec,
    BudgetSpec,
    CalibrationSpec,
    FirstLastSpec,
    Options,
    OverrideSpec,
    PlannedProduct,
    PlannedStream,
    PlanRow,
    PlanSpec,
    ProductSpec,
    QuantSpec,
    Range,
    WeightSpec,
    from_mapping,
)
from mmbitsplit.structures.options import check_value
from mmbitsplit.structures.widths import Bits

if TYPE_CHECKING:
    from nowhere import Unknown  # noqa: F401

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 10) | st.floats()
    | st.floats(-1, 3) | st.text(max_size=3) | st.sampled_from(['auto', 'mse', 'True', '3']),
    lambda inner: st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple)
    | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=4)


def is_int(value):
    return type(value) is int


def is_number(value):
    return type(value) in (int, float) and -math.inf < value < math.inf


# What an annotation means, said a second time by hand.
MEANINGS = [
    (bool, lambda value: value is True or value is False, 'True or False'),
    (int, is_int, 'an integer'), (float, is_number, 'a number'),
    (str, lambda value: isinstance(value, str), 'a string'),
    (Bits, lambda value: is_int(value) and 2 <= value <= 8, 'an integer from 2 to 8'),
    (Bits | None, lambda value: value is None or (is_int(value) and 2 <= value <= 8),
     'an integer from 2 to 8 or None'),
    (Annotated[float | None, 'a note', Range(0)],
     lambda value: value is None or (is_number(value) and value >= 0), 'a number from 0 or None'),
    (Annotated[float, Range(0, above=True)], lambda value: is_number(value) and value > 0,
     'a number above 0'),
    (Annotated[float, Range(0, math.inf)],
     lambda value: value == math.inf and type(value) is float or is_number(value) and value >= 0,
     'a number from 0 to inf'),
    (Literal['auto', 'mse'], lambda value: value in ('auto', 'mse'), 'Allowed: auto, mse'),
    (Literal[1], lambda value: is_int(value) and value == 1, 'Allowed: 1'),
    (bool | Literal['auto'], lambda value: isinstance(value, bool) or value == 'auto',
     "True or False or 'auto'"),
    (Literal['auto'] | Annotated[float, Range(0, 1)],
     lambda value: value == 'auto' or (is_number(value) and 0 <= value <= 1),
     "'auto' or a number from 0 to 1"),
    (Sequence[Annotated[int, Range(0)] | None],
     lambda value: isinstance(value, (list, tuple)) and all(
         item is None or (is_int(item) and item >= 0) for item in value),
     'a list, each item an integer from 0 or None'),
    (tuple[str, ...], lambda value: isinstance(value, (list, tuple)) and all(
        isinstance(item, str) for item in value), 'a list, each item a string'),
    (Mapping[str, Any] | None, lambda value: value is None or isinstance(value, dict),
     'a dict or None'),
    (Any, lambda value: True, ''), (int | complex, lambda value: True, ''),
    (tuple[int, str], lambda value: True, ''),
]


@pytest.mark.parametrize(('hint', 'meant', 'allowed'), MEANINGS, ids=lambda item: str(item)
                         if not callable(item) or isinstance(item, type) else '')
@given(value=VALUES)
@example(value=10 ** 400)
@example(value=True)
@example(value=1.0)
def test_a_value_is_taken_exactly_where_the_annotation_means_it(hint, meant, allowed, value):
    if meant(value):
        check_value('option', value, hint)
    else:
        with pytest.raises(ValueError) as caught:
            check_value('option', value, hint)
        assert str(caught.value).startswith(f'option={value!r} is not ')
        assert allowed in str(caught.value)


def test_a_misspelled_word_among_numbers_is_answered():
    with pytest.raises(ValueError, match="strength='atuo'.*did you mean 'auto'\\? Allowed is "
                                         "'auto' or a number from 0 to 1"):
        ActivationSpec(strength='atuo')


BITS = ('an integer from 2 to 8', [1, 9, 4.0, '4', True, [4]])
SETTINGS = ('a dict', [4, None, 'x', ['a']])
PART = ('a number above 0 or None', [0, -1.0, 'half', True])
COUNT = ('an integer from 0', [-1, 2.0, True, '3'])
# Of every field: what an error says is allowed, and values that are not.
REFUSED = {
    WeightSpec: {
        'num_bits': ('an integer from 2 to 8', [*BITS[1], None]),
        'scale_search': ('Allowed: minmax, mse', ['auto', None]),
        'reduce_range': ("True or False or 'auto'", ['yes', 1, None])},
    ActivationSpec: {
        'num_bits': BITS, 'output_bits': ('an integer from 2 to 8', [*BITS[1], None]),
        'mode': ('Allowed: ecaq, per_channel, per_tensor', ['ECAQ', None]),
        'symmetry': ('Allowed: asymmetric, auto, signed, unsigned', ['both', True]),
        'scale_search': ('Allowed: aciq_gauss, aciq_laplace, auto, kl, lp, minmax, mse',
                         ['aciq', 2]),
        'strength': ("'auto' or a number from 0 to 1", [1.5, -0.1, True, math.nan, None]),
        'placement': ('Allowed: brecq, calibtip, deploy, inputs, qdrop, residual', ['outputs']),
        'norm': ('a number from 1', [0.5, math.inf, '2', None]),
        'bit_allocation': ('Allowed: aciq, uniform', ['mixed', 8])},
    FirstLastSpec: {'weight_bits': BITS, 'activation_bits': BITS},
    CalibrationSpec: {
        'num_images': COUNT, 'seed': COUNT, 'batch_size': ('an integer from 1', [0, True]),
        'rows_per_layer': ('an integer from 64', [63, 100.0]),
        'sampling': ('Allowed: confidence, even, importance', ['evenly', None]),
        'unreached': ('Allowed: error, float', ['skip', None]),
        'row_mask': ('a string or None', [5, True, ['attention_mask']]),
        'holdout': ('a number from 0 to 0.5', [0.6, -0.1, 'some']),
        'memory_budget': ('a number above 0 to inf or None', [0, -1.0, '3', math.nan, True]),
        'dataloader': ('a dict or None', [5, [1]])},
    OverrideSpec: {'match': ('a string', [3, None]), 'skip': ('True or False', ['no', 0, None]),
                   'weight': SETTINGS, 'activation': SETTINGS,
                   'unit': ("'layer' or 'module' or None", ['block', True, ['layer']])},
    QuantSpec: {
        'weight': (r'WeightSpec\(\.\.\.\)', [4, None, {'num_bits': 4}]),
        'activation': (r'ActivationSpec\(\.\.\.\)', ['x', WeightSpec()]),
        'first_last': (r'FirstLastSpec\(\.\.\.\)', [8]),
        'calibration': (r'CalibrationSpec\(\.\.\.\)', [None]),
        'method': SETTINGS, 'scope': ('a string', [3, None, ['neck']]),
        'overrides': (r'a list, each item OverrideSpec\(\.\.\.\)', [{}, [{}], OverrideSpec('a')]),
        'tuning': ('a dict or a list, each item a dict', ['OutputTuning', 5, [3], None]),
        'plan': (r'PlanSpec\(\.\.\.\) or None', ['plan.json', {'layers': []}, PlanRow('a')]),
        'pipeline': ('a string or a dict or None', [5, ['CalibTIPLight'], True]),
        'budget': (r'BudgetSpec\(\.\.\.\) or None', [4.5, '12MB', {'weight_bits': 4}]),
        'products': (r'ProductSpec\(\.\.\.\) or None', [4, {'num_bits': 4}]),
        'evaluate_widths': ('True or False', ['yes', 1, None])},
    ProductSpec: {'num_bits': BITS, 'granularity': ('Allowed: head, tensor', ['heads', None]),
                  'softmax': ('Allowed: log2, uniform', ['log', None])},
    BudgetSpec: {
        'weight_bits': ('a number from 2 to 8 or None', [1.9, '4', True]),
        'bytes': ('a number above 0 or a string or None', [0, [1]]),
        'bitops': PART, 'latency': PART, 'latency_table': ('a string or None', [3]),
        'widths': ('a list, each item an integer from 2 to 8', [4, [1], [4.0], None]),
        'activation_widths': ("'tied' or a list, each item an integer from 2 to 8 or None",
                              ['tide', 4, [9]]),
        'shared_inputs': ('True or False', ['no', 0, None]),
        'sensitivity': ('Allowed: error, fisher, measured', ['rounded', None]),
        'loss': ('Allowed: auto, block_kl, cross_entropy, kl, raw', ['mse', None]),
        'method': ('a dict or None', ['MSERound']), 'evaluations': ('an integer from 1', [0, 2.0]),
        'max_drop': ('a number from 0 or None', [-0.1, '1'])},
    PlanRow: {
        'name': ('a string', [3, None]), 'role': ('a string', [None]),
        'weight': SETTINGS, 'activation': SETTINGS,
        **dict.fromkeys(('weight_bits', 'input_bits', 'output_bits'), (
            "an integer from 2 to 8 or None or 'request'", BITS[1]))},
    PlanSpec: {
        'layers': (r'a list, each item PlanRow\(\.\.\.\)', [None, PlanRow('a'), [{}]]),
        'streams': (r'a list, each item PlannedStream\(\.\.\.\)', [None, PlanRow('a'), [{}]]),
        'products': (r'a list, each item PlannedProduct\(\.\.\.\)', [None, PlanRow('a'), [{}]]),
        'format': ('an integer', ['1', None]), 'weight': SETTINGS, 'activation': SETTINGS},
    PlannedStream: {'name': ('a string', [3, None]), 'num_bits': BITS},
    PlannedProduct: {'name': ('a string', [3, None]), 'a_bits': BITS, 'b_bits': BITS},
}


@pytest.mark.parametrize('cls', REFUSED, ids=lambda cls: cls.__name__)
def test_every_field_of_the_request_is_held_to_its_declaration(cls):
    assert set(REFUSED[cls]) == {field.name for field in dataclasses.fields(cls)}
    needed = {OverrideSpec: {'match': 'a'}, PlanRow: {'name': 'a'}, PlanSpec: {'layers': ()},
              PlannedStream: {'name': 'a', 'num_bits': 4},
              PlannedProduct: {'name': 'a', 'a_bits': 4, 'b_bits': 4},
              BudgetSpec: {'weight_bits': 4}}.get(cls, {})
    made = cls(**needed)
    for name, (allowed, values) in REFUSED[cls].items():
        for value in values:
            wanted = re.escape(f'{name}={value!r} is not ') + f'.*{allowed}'
            with pytest.raises(ValueError, match=wanted):
                cls(**{**needed, name: value})
            with pytest.raises(ValueError, match=wanted):
                replace(made, **{name: value})
            if cls not in (QuantSpec, PlanSpec):
                with pytest.raises(ValueError, match=f'^the.place: {wanted}'):
                    from_mapping(cls, {**needed, name: value}, 'the.place')


@pytest.mark.parametrize(('part', 'changes', 'message'), [
    ('weight', {'num_bits': 9}, 'num_bits=9.*2 to 8'),
    ('weight', {'bits': 4}, "Unknown key 'bits'.*did you mean 'num_bits'"),
    ('activation', {'scale_search': 'kl', 'symmetry': 'asymmetric'}, "scale_search='kl'")])
def test_an_override_is_checked_where_the_request_is_made_in_python(part, changes, message):
    override = OverrideSpec('a', **{part: changes})
    with pytest.raises(ValueError, match=message) as caught:
        QuantSpec(overrides=(OverrideSpec('b'), override))
    assert f'quantization.overrides[1].{part}' in str(caught.value)


@pytest.mark.parametrize('method', [{}, {'init': 'mse'}, {'type': 3}, {'type': ['BitSplit']}])
def test_a_method_is_named_by_a_word(method):
    with pytest.raises(ValueError, match="method=.*'type'"):
        QuantSpec(method=method)


@pytest.mark.parametrize('spec', [
    ActivationSpec(strength=1, norm=2), CalibrationSpec(memory_budget=math.inf, holdout=0),
    QuantSpec(overrides=[OverrideSpec('a')])], ids=lambda spec: type(spec).__name__)
def test_what_could_always_be_given_can_still(spec):
    assert spec == replace(spec)


def test_numbers_of_numpy_become_numbers_that_json_takes():
    spec = QuantSpec(WeightSpec(np.int64(3)), ActivationSpec(strength=np.float32(0.5)))
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


# A user's class, whose annotations are strings as after `from __future__ import annotations`.
@dataclass(frozen=True)
class Own(Options):
    """Somebody's options."""

    steps: 'Annotated[int, Range(1)]' = 3
    late: 'Unknown' = 'anything'
    broken: 'np.no_such_type | int' = 0
    maker: 'type' = dict
    sloppy: int = None
    derived: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, 'derived', self.steps + 1)  # does not call Options' own


def test_annotations_that_cannot_be_looked_up_leave_the_others_checked():
    own = from_mapping(Own, {'late': 5, 'broken': [], 'steps': 7, 'maker': list}, 'there')
    assert (own.late, own.broken, own.derived, own.sloppy) == (5, [], 8, None)
    with pytest.raises(ValueError, match="^there: steps='7'.*an integer from 1"):
        from_mapping(Own, {'steps': '7'}, 'there')


def test_a_default_is_its_authors_word():
    @dataclass(frozen=True)
    class Sloppy(Options):
        count: int = None

    assert Sloppy().count is Sloppy(None).count is None
    with pytest.raises(ValueError, match="count='3'.*an integer"):
        Sloppy('3')


def test_parts_are_read_at_any_depth_and_errors_name_the_place():
    @dataclass(frozen=True)
    class Inner(Options):
        size: Annotated[int, Range(0)] = 0

    @dataclass(frozen=True)
    class Outer(Options):
        one: Inner = dataclasses.field(default_factory=Inner)
        many: tuple[Inner, ...] = ()

    assert from_mapping(Outer, {'one': {'size': 1}, 'many': [{'size': 2}]}, 'top') == Outer(
        Inner(1), (Inner(2),))
    with pytest.raises(ValueError, match=r'^top\.many\[1\]: size=-1 .*from 0'):
        from_mapping(Outer, {'many': [{}, {'size': -1}]}, 'top')
    with pytest.raises(ValueError, match=r'^top\.one must be a dict'):
        from_mapping(Outer, {'one': 3}, 'top')
