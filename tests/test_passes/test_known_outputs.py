"""Outputs inside a repeated call are forgotten when nobody can ask for them any more."""

import pytest
import torch

from mmbitsplit.passes.known_outputs import KnownOutputs
from mmbitsplit.passes.probes import Digest
from mmbitsplit.passes.true_inputs import TrueInputs

COUNTS = {'a': 2, 'b': 2, 'c': 2}


@pytest.fixture
def outputs():
    """Layer a is read by b alone, b by c alone; all calls of a and b are answered."""
    known = KnownOutputs({'a': frozenset('b'), 'b': frozenset('c')}, COUNTS)
    for name in 'ab':
        for index in range(2):
            known.keep((name, index), torch.tensor(float(index)))
    return known


def test_an_output_goes_when_its_readers_have_all_outputs(outputs):
    outputs.forget()
    assert outputs.forgotten == {'a'} and {*outputs} == {('b', 0), ('b', 1)}
    outputs.keep(('c', 0), torch.ones(()))
    outputs.forget()
    assert outputs.forgotten == {'a'}  # one call of c is open
    outputs.keep(('c', 1), torch.ones(()))
    outputs.forget()
    assert outputs.forgotten == {'a', 'b'}


def test_what_feeds_layers_that_may_change_is_kept(outputs):
    outputs.unsettled = {'b'}
    outputs.forget()
    assert not outputs.forgotten and outputs.get(('a', 0)) is not None
    outputs.renew(['b'])
    assert outputs.get(('b', 0)) is None and outputs.get(('a', 1)) is not None
    outputs.unsettled = set()
    outputs.forget()
    assert not outputs.forgotten  # b has no outputs now


def test_an_output_of_a_wrong_input_does_not_count(outputs):
    outputs.drop(('b', 1))
    outputs.forget()
    assert not outputs.forgotten
    outputs.keep(('b', 1), torch.ones(()))
    outputs.forget()
    assert outputs.forgotten == {'a'}


def test_after_all_is_remembered_nothing_goes(outputs):
    outputs.forget()
    outputs.remember_all()
    for index in range(2):
        outputs.keep(('c', index), torch.ones(()))
    outputs.forget()
    assert not outputs.forgotten


def test_an_input_that_becomes_another_is_a_mistake_unless_its_unit_was_renewed():
    one, other = (Digest.of(torch.arange(4.0) + shift) for shift in (0, 1))
    for renewed in (False, True):
        inputs = TrueInputs()
        inputs.note(('a', 0), one)
        inputs.trust()
        if renewed:
            inputs.renew(['a'])
        inputs.compare(('a', 0), other)
        assert inputs.mistaken == (None if renewed else 'a')


def test_inputs_that_a_run_with_numbers_changes_are_rejected():
    inputs, x = TrueInputs(), torch.arange(4.0)
    for index in range(2):
        inputs.note(('a', index), Digest.of(x))
    inputs.begin_confirming()
    assert inputs.confirms(('a', 0), x) and not inputs.confirms(('a', 1), x + 1)
    assert inputs.reject_others(same_run=False) == [('a', 1)]
    assert [*inputs.seen] == [('a', 0)] and inputs.mistaken is None
    assert inputs.reject_others(same_run=True) == [] and inputs.mistaken is None
