"""A unit's state serves for the unit and the journal that it was kept for, or for nothing."""

import pytest
import torch
from journal_entries import IDENTITY, entry, resume, write

from mmbitsplit.calibration import Journal
from mmbitsplit.calibration.journal import unit_state

STATE = {'step': 7, 'codes': torch.arange(6.0).view(2, 3), 'rest': [1.5, None, {0: (True, 'a')}]}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Keeps every state."""
    monkeypatch.setattr(unit_state, 'EVERY', 0.0)


def test_a_state_comes_back_as_it_was_kept(tmp_path):
    journal = write(tmp_path, [entry(0)])
    part = torch.arange(1000.0)[:3].requires_grad_()
    journal.unit_state('blocks.1').save({**STATE, 'part': part})
    assert (tmp_path / 'unit.state').stat().st_size < 3000  # not the storage of a view
    found = resume(tmp_path).unit_state('blocks.1').load()
    assert torch.equal(found.pop('codes'), STATE['codes'])
    assert found.pop('part').tolist() == [0, 1, 2]
    assert found == {'step': 7, 'rest': STATE['rest']}


def test_no_other_unit_and_nothing_after_other_layers_gets_it(tmp_path):
    journal = write(tmp_path, [entry(0), entry(1)])
    journal.unit_state('blocks.1').save(STATE)
    assert journal.unit_state('blocks.2').load() is None
    journal.keep_first(1)
    assert journal.unit_state('blocks.1').load() is None
    journal.append(entry(1))
    assert journal.unit_state('blocks.1').load() is not None  # the same layers again
    journal.append(entry(2))
    assert journal.unit_state('blocks.1').load() is None


def test_a_damaged_state_is_no_state(tmp_path):
    state = write(tmp_path, []).unit_state('blocks.1')
    state.save(STATE)
    path = tmp_path / 'unit.state'
    whole = path.read_bytes()
    for data in (whole[:-1], b'', whole[:-9] + b'\0' + whole[-8:], whole[:60]):
        path.write_bytes(data)
        assert state.load() is None
    path.write_bytes(whole)
    assert state.load() is not None


@pytest.mark.parametrize('remove', [
    lambda journal, folder: journal.unit_is_done(),
    lambda journal, folder: journal.begin_again(),
    lambda journal, folder: journal.finish(),
    lambda journal, folder: Journal.open(folder, IDENTITY, resume=False)])
def test_it_goes_with_what_it_belongs_to(remove, tmp_path):
    journal = write(tmp_path, [entry(0)])
    journal.unit_state('blocks.1').save(STATE)
    remove(journal, tmp_path)
    assert not (tmp_path / 'unit.state').exists()


def test_it_is_kept_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(unit_state, 'EVERY', 100.0)
    state = write(tmp_path, []).unit_state('blocks.1')
    assert not state.due()
    state.save(STATE)
    assert state.load() is None
    state.kept -= 101
    assert state.due()
    state.save(STATE)
    assert state.load() is not None and not state.due()


def test_what_could_not_be_read_back_is_refused_by_name(tmp_path):
    state = write(tmp_path, []).unit_state('blocks.1')
    with pytest.raises(ValueError, match=r"'blocks.1'\['a'\]\[1\] is of Generator"):
        state.save({'a': [1, torch.Generator()]})
