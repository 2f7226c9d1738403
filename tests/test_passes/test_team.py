"""Really spawned processes give what one gives, and none waits for one that is lost."""

import ast
import time
from pathlib import Path

import pytest
import torch
from team_start import start

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name('team_process.py')
SAME = ('name', 'kind', 'shape', 'role', 'weight_bits', 'activation_bits', 'activation_mode',
        'activation_symmetry', 'strength', 'guard_taken', 'rows', 'calls', 'unit', 'unit_taken',
        'unit_errors')


def assigned(name):
    """A table of ``team_process.py``, which is not imported here: keys of it, or the tuple."""
    for node in ast.parse(SCRIPT.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
            return [key.value for key in keys]


def finish(processes, seconds):
    """Waits for all; returns their statuses, and when each had ended, in seconds."""
    began, ended = time.monotonic(), {}
    try:
        while len(ended) < len(processes):
            for rank, process in enumerate(processes):
                if rank not in ended and process.exitcode is not None:
                    ended[rank] = time.monotonic() - began
            assert time.monotonic() - began < seconds, f'only {sorted(ended)} ended'
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes], ended


def together(task, folder, size, names=(), seconds=400):
    statuses, _ = finish(start(task, folder, size, names), seconds)
    assert statuses == [0] * size, ''.join(
        (folder / f'errors {rank}').read_text()[-2000:] for rank in range(size))


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope='module')
def results(request, tmp_path_factory):
    """Where three processes have left the results of all cases that chosen tests look at."""
    folder = tmp_path_factory.mktemp('team')
    wanted = {item.callspec.params['name'] for item in request.session.items
              if item.path == request.path and 'name' in getattr(item, 'fixturenames', ())}
    together('calibrations', folder, 3, [name for name in assigned('CASES') if name in wanted])
    return folder


def assert_same(found, expected):
    """What several processes found against what one did."""
    assert [layer['name'] for layer in found['layers']] == \
        [layer['name'] for layer in expected['layers']]
    for ours, theirs in zip(found['layers'], expected['layers']):
        assert {key: ours[key] for key in SAME} == {key: theirs[key] for key in SAME}
        assert ours['error'] == pytest.approx(theirs['error'], rel=1e-5, abs=1e-12)
    for name, value in expected['state'].items():
        assert torch.equal(found['state'][name], value), name


@pytest.mark.parametrize('name, size', [
    *((name, 2) for name in assigned('CASES')), *((name, 3) for name in assigned('OF_THREE'))])
def test_several_processes_give_what_one_gives(name, size, results):
    first, *others = (load(results / f'{name} {size} {rank}.pt') for rank in range(size))
    for other in others:
        assert first['state'].keys() == other['state'].keys()
        for key, value in first['state'].items():
            assert torch.equal(value, other['state'][key]), key
        for ours, theirs in zip(first['layers'], other['layers'], strict=True):
            assert {**ours, 'seconds': 0} == {**theirs, 'seconds': 0}
    expected = load(results / f'{name} 1 0.pt')
    assert first['calibration'] == {**expected['calibration'], 'processes': size}
    assert_same(first, expected)


@pytest.mark.parametrize('name', ['tuned'])
def test_what_is_tuned_in_several_processes_is_really_tuned(name, results):
    assert all('were tuned' in row['notes'][-1]
               for row in load(results / f'{name} 2 0.pt')['layers'])


def test_one_process_s_journal_serves_all(tmp_path):
    together('resumed', tmp_path, 2)
    whole = load(tmp_path / 'whole 0.pt')
    for name, count in (('resumed', 3), ('again', 7)):
        for rank in range(2):
            found = load(tmp_path / f'{name} {rank}.pt')
            assert found['calibration'] == {**whole['calibration'], 'layers_taken_over': count}
            for key, value in whole['state'].items():
                assert torch.equal(value, found['state'][key]), key


@pytest.mark.parametrize('name', assigned('OF_UNITS'))
def test_units_are_learned_in_earnest(name, results):
    """What several processes are compared in would be little if nothing had been learned."""
    taken = {layer['unit_taken'] for layer in load(results / f'{name} 1 0.pt')['layers']}
    assert taken >= {'learned scale'} or taken >= {'learned rounding'}


def test_nothing_times_out_while_one_process_learns(tmp_path):
    together('learns_long', tmp_path, 2)


def test_what_is_refused_in_the_process_that_learns_is_refused_in_all(tmp_path):
    statuses, _ = finish(start('refuses', tmp_path, 2), 120)
    assert statuses == [1, 1]
    for rank in range(2):
        text = (tmp_path / f'errors {rank}').read_text()
        assert 'ValueError: unit stem cannot be learned' in text, text


def test_what_several_processes_were_learning_one_goes_on_with(tmp_path):
    statuses, _ = finish(start('dies_learning', tmp_path, 2), 120)
    assert statuses == [9, 1]
    (tmp_path / 'store').unlink(missing_ok=True)
    together('goes_on_alone', tmp_path, 1)
    assert (tmp_path / 'steps').read_text() == repr([*range(6, 12)])
    alone, whole = load(tmp_path / 'alone.pt'), load(tmp_path / 'whole.pt')
    assert 'learned scale' in {layer['unit_taken'] for layer in whole['layers']}
    for name, value in whole['state'].items():
        assert torch.equal(alone['state'][name], value), name


@pytest.mark.parametrize('task, size, status', [
    ('dies', 3, 9), ('fails', 2, 1), ('dies_waiting', 2, 9)])
def test_the_others_end_with_an_error_when_one_is_lost(task, size, status, tmp_path):
    statuses, ended = finish(start(task, tmp_path, size), 120)
    assert statuses == [1] * (size - 1) + [status]
    assert max(ended.values()) - ended[size - 1] < 30  # at once, on a busy machine
    for rank in range(size - 1):
        text = (tmp_path / f'errors {rank}').read_text()
        assert 'Connection closed by peer' in text or 'Connection reset by peer' in text, text
    if task == 'fails':
        assert 'the model fails' in (tmp_path / f'errors {size - 1}').read_text()
