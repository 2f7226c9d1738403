"""A disk that fails and a process that is killed lose nothing that a journal has confirmed."""

import dataclasses
import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from journal_entries import IDENTITY, assert_entries, entry, names, resume, write

from mmbitsplit.calibration.journal import Journal, JournalEntry

ROOT = Path(__file__).parents[2]
FULL = OSError(errno.ENOSPC, 'No space left on device')


# Files that cannot be written or read


@pytest.mark.parametrize('function', ['replace', 'fsync'])
def test_a_full_disk_is_one_clear_error_and_leaves_the_journal_whole(
        function, tmp_path, monkeypatch):
    journal = write(tmp_path, [entry(0)])

    def fail(*args):
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(ValueError, match='0001.layer cannot be written: .*No space left.*'
                                             'free some space, or choose another'):
            journal.append(entry(1))
        with pytest.raises(ValueError, match='header.json cannot be written'):
            journal.remember(metric=1)
    assert journal.facts == {} and names(tmp_path) == ['0000.layer', 'header.json']
    journal.append(entry(1))
    again = resume(tmp_path)
    assert_entries(again, [entry(0), entry(1)])
    assert again.problems == []


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_synced(number, tmp_path, monkeypatch):
    """Some network file systems cannot; that is no reason to stop, a broken disk is."""
    real = os.fsync

    def fail_for_folders(descriptor):
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    journal = write(tmp_path, [entry(0)])
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fail_for_folders)
        if number == errno.EIO:
            with pytest.raises(ValueError, match='0001.layer cannot be written'):
                journal.append(entry(1))
        else:
            journal.append(entry(1))
    assert_entries(resume(tmp_path), [entry(0), entry(1)])


@pytest.mark.parametrize('resumed', [True, False])
def test_a_folder_that_is_a_file(resumed, tmp_path):
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(ValueError, match='file.* cannot be written: .*--work-dir'):
            Journal.open(folder, IDENTITY, resume=resumed)


@pytest.mark.parametrize('name', ['header.json', '0000.layer'])
def test_what_cannot_be_read_is_an_error_and_not_lost(name, tmp_path):
    write(tmp_path, [entry(0)])
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f'{name} cannot be read: .*run without --resume'):
        resume(tmp_path)
    assert names(tmp_path) == ['0000.layer', 'header.json']


# Interrupted at any moment


class _KilledError(BaseException):
    """Stands for a kill: no handler for exceptions sees it, and nothing is cleaned up."""


ACTIONS = {
    'append': lambda journal: journal.append(entry(2)),
    'remember': lambda journal: journal.remember(old=2, new=3),
    'finish': lambda journal: journal.finish(),
    'wipe': lambda journal: write(journal.folder, []),
}


def stopped(action, journal: Journal, steps: int, patch) -> bool:
    """Runs until so many changes to the disk are made; returns whether it came to its end."""
    left = iter(range(steps))

    def counted(real):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise _KilledError
            return real(*args, **kwargs)
        return call

    for owner, name in ((os, 'fsync'), (os, 'replace'), (Path, 'unlink')):
        patch.setattr(owner, name, counted(getattr(owner, name)))
    try:
        action(journal)
    except _KilledError:
        return False
    return True


@pytest.mark.parametrize('action', ACTIONS)
def test_stopped_at_every_single_step_on_the_disk(action, tmp_path, monkeypatch):
    for steps in range(50):
        folder = tmp_path / str(steps)
        journal = write(folder, [entry(0), entry(1)])
        journal.remember(old=1)
        with monkeypatch.context() as patch:
            complete = stopped(ACTIONS[action], journal, steps, patch)
        again = resume(folder)
        before = len(again.entries) == 2 and again.facts == {'old': 1} and not again.finished
        after = {
            'append': len(again.entries) == 3 and again.facts == {'old': 1},
            'remember': len(again.entries) == 2 and again.facts == {'old': 2, 'new': 3},
            'finish': again.finished and names(folder) == ['header.json'],
            'wipe': not again.entries and not again.facts,
        }[action]
        assert after if complete else before or after, steps
        assert_entries(again, [entry(index) for index in range(len(again.entries))])
        assert not [name for name in names(folder) if name.endswith('.tmp')]
        assert again.problems == [] or action == 'wipe'
        if complete:
            break
    assert complete and steps > 3


CHILD = '''
import os, pickle, sys
from dataclasses import replace
import torch
from mmbitsplit.calibration.journal import Journal

torch.set_num_threads(1)
with open(sys.argv[1], 'rb') as file:
    identity, template = pickle.load(file)
for folder in sys.stdin:
    child = os.fork()  # torch is imported once, not once a kill
    if child:
        print('child', child, flush=True)
        os.waitpid(child, 0)
        print('dead', flush=True)
        continue
    journal = Journal.open(folder.strip(), identity, resume=True)
    index = len(journal.entries)
    while True:
        scale = torch.full((3,), float(index))
        journal.append(replace(template, name=f'layer{index}',
                               solution=replace(template.solution, weight_scale=scale)))
        print('appended', index, flush=True)
        journal.remember(last=index)
        index += 1
'''


def numbered(index: int) -> JournalEntry:
    solution = dataclasses.replace(entry().solution, weight_scale=torch.full((3,), float(index)))
    return dataclasses.replace(entry(), name=f'layer{index}', solution=solution)


def test_killed_at_random_moments(tmp_path):
    """One journal, killed and resumed again and again: a whole prefix, and nothing confirmed
    is ever lost."""
    (tmp_path / 'template.pickle').write_bytes(pickle.dumps((IDENTITY, entry())))
    folder, moments = tmp_path / 'journal', random.Random(0)
    confirmed, last = -1, -1
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    with subprocess.Popen([sys.executable, '-c', CHILD, tmp_path / 'template.pickle'],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=environment) as server:
        for _ in range(10):
            server.stdin.write(f'{folder}\n')
            server.stdin.flush()
            word, child = server.stdout.readline().split()
            assert word == 'child'
            time.sleep(moments.uniform(0, 0.15))
            os.kill(int(child), signal.SIGKILL)
            for line in iter(server.stdout.readline, 'dead\n'):
                assert line.startswith('appended'), 'the child ended by itself'
                confirmed = int(line.split()[1])
            journal = resume(folder)
            assert journal.problems == []
            # At most one was written and not yet reported.
            assert confirmed + 1 <= len(journal.entries) <= confirmed + 2
            assert_entries(journal, [numbered(index) for index in range(len(journal.entries))])
            assert last <= journal.facts.get('last', -1) < max(len(journal.entries), 1)
            confirmed, last = len(journal.entries) - 1, journal.facts.get('last', -1)
        server.stdin.close()
    assert server.returncode == 0 and confirmed > 0
