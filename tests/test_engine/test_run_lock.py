"""One run at a time in a work directory; dead runs stop nobody."""

import fcntl
import json
import multiprocessing
import os
import platform
import signal
import time

import pytest

from mmbitsplit.engine.files.run_lock import LOCK, only_run_in

FORK = multiprocessing.get_context('fork')


def hold(work_dir, pipe):
    with only_run_in(work_dir):
        pipe.send('held')
        pipe.recv()


@pytest.fixture
def other_run(tmp_path):
    """Another process that works in the directory until it is told to stop.

    Told through a pipe: an event would wait for ever for a waiting process that was killed.
    """
    pipe, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert pipe.poll(20)
    pipe.recv()
    yield process, lambda: pipe.send('stop')
    process.kill()
    process.join(20)


def test_the_second_run_is_refused_and_told_who_works_there(other_run, tmp_path):
    process, stop = other_run
    for _ in range(2):  # asking takes nothing away
        with pytest.raises(ValueError, match=rf'process {process.pid} on {platform.node()}, '
                                             r'since 20\d\d.*--work-dir'):
            with only_run_in(tmp_path):
                pass
    with only_run_in(tmp_path, first=False):  # of the same run
        pass
    stop()
    process.join(20)
    with only_run_in(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_run_is_taken_over(other_run, tmp_path):
    process, _ = other_run
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert (tmp_path / LOCK).is_file()
    with only_run_in(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()


def test_a_worker_that_outlives_its_run_holds_nothing(tmp_path):
    """Forked workers of data loaders notice late that their run was killed."""
    forked, done = FORK.Event(), FORK.Event()

    def run():
        with only_run_in(tmp_path):
            worker = FORK.Process(target=done.wait)
            worker.start()
            forked.set()
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=run)
    process.start()
    assert forked.wait(20)
    # Not joined: the worker has inherited what joining waits for.
    while process.exitcode is None:
        time.sleep(0.02)
    try:
        with only_run_in(tmp_path):
            pass
    finally:
        done.set()


@pytest.mark.parametrize('content', ['', '{"pid": 1', '[]', 'held'])
def test_what_stands_in_the_file_decides_nothing(content, tmp_path):
    (tmp_path / LOCK).write_text(content)
    with only_run_in(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_it_is_released_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match='mine'), only_run_in(tmp_path):
            raise RuntimeError('mine')


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(38, 'Function not implemented')

    said = []
    monkeypatch.setattr(fcntl, 'lockf', refuse)
    monkeypatch.setattr('mmbitsplit.engine.files.run_lock.print_log',
                        lambda message, **more: said.append(message))
    with only_run_in(tmp_path):
        pass
    assert len(said) == 1 and 'without locks' in said[0]
