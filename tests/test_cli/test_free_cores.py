"""Threads follow the cores that are free, unless the user chose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmbitsplit.cli import free_cores
from mmbitsplit.cli.free_cores import idle_cores, take_free_cores, usable_cores

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Notes what torch is told; the number of this process stays."""
    told = []
    monkeypatch.setattr(torch, 'set_num_threads', told.append)
    return told


@pytest.mark.parametrize('cores, idle, wanted', [
    (2, 1.0, 1), (2, 0.1, 1), (8, 5.4, 5), (8, 7.6, None), (8, 8.0, None), (1, 0.0, None)])
def test_as_many_threads_as_cores_are_idle(cores, idle, wanted, threads):
    environ = {}
    said = take_free_cores(environ, lambda: cores, lambda: idle)
    assert environ.get('OMP_NUM_THREADS') == (wanted and str(wanted))
    assert threads == ([wanted] if wanted else []) and bool(said) == bool(wanted)
    assert not said or f'{cores - round(idle)} of {cores} cores are busy' in said


@pytest.mark.parametrize('environ', [{'OMP_NUM_THREADS': '7'}, {'WORLD_SIZE': '2'}])
def test_what_the_user_or_a_launcher_chose_stays(environ, threads):
    before = dict(environ)
    assert take_free_cores(environ, lambda: 8, lambda: 0.0) == ''
    assert environ == before and not threads


def test_busy_cores_are_counted_from_what_the_kernel_says(monkeypatch):
    """Two cores, one of them busy, by a stand-in for the kernel's counters."""
    seen = iter([{0: (100, 200), 1: (100, 200)}, {0: (110, 210), 1: (100, 210)}])
    monkeypatch.setattr(free_cores, '_ticks', lambda cores: next(seen))
    monkeypatch.setattr(free_cores, '_share', lambda: None)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1})
    assert idle_cores(0) == 1.0
    monkeypatch.setattr(free_cores, '_ticks', lambda cores: {})
    assert idle_cores(0) == 2.0  # nothing is known


def test_counters_and_shares_are_read_as_the_kernel_writes_them(tmp_path):
    stat, share = tmp_path / 'stat', tmp_path / 'cpu.max'
    stat.write_text('cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 40 5 0 0 1 7 7\n'
                    'cpu1 0 0 0 9 0 0 0 0 0 0\nintr 5 5\n')
    assert free_cores._ticks({0}, stat) == {0: (45, 52)}
    assert free_cores._ticks({0}, tmp_path / 'none') == {}
    for text, cores in (('max 100000', None), ('150000 100000', 1.5), ('odd', None)):
        share.write_text(text)
        assert free_cores._share(share) == cores


def test_this_machine_says_something_sensible():
    assert 1 <= usable_cores() <= os.cpu_count()
    assert 0 <= idle_cores(0.05) <= len(os.sched_getaffinity(0))


def test_a_command_looks_and_a_look_at_the_help_does_not():
    """In processes with the kernel's answer replaced by one busy core of two."""
    code = ('import sys; sys.argv = ["mmbitsplit", *sys.argv[1:]]; '
            'from mmbitsplit.cli import free_cores, main; '
            'free_cores.usable_cores = lambda: 2; free_cores.idle_cores = lambda: 1.0; '
            'main.start()')
    environ = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}

    def run(*args, **more):
        return subprocess.run([sys.executable, '-c', code, *args], cwd=PROJECT, text=True,
                              capture_output=True, env={**environ, **more}).stderr

    assert run('inspect', 'none.pth').startswith('note: 1 of 2 cores are busy')
    assert 'note:' not in run('--help') + run('inspect', 'none.pth', OMP_NUM_THREADS='2')
