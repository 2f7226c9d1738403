"""How much memory there is, on a machine and in a container."""

import re
from pathlib import Path

import pytest
import torch

from mmbitsplit.passes import free_memory
from mmbitsplit.passes.free_memory import available_bytes


def test_memory_is_available():
    available = available_bytes(torch.device('cpu'))
    assert 0 < available
    if Path('/proc/meminfo').is_file():
        total = int(re.search('MemTotal: *([0-9]+) kB', Path('/proc/meminfo').read_text()).group(1))
        assert available <= 1024 * total


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes the files that a machine tells its memory by."""
    monkeypatch.setattr(free_memory, 'Path', lambda *parts: tmp_path.joinpath(
        *(part.lstrip('/') for part in parts)))

    def write(**files):
        for name, text in {'proc/meminfo': 'MemTotal: 9000 kB\nMemAvailable:    4000 kB',
                           **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{text}\n')
    return write


NEW, OLD = 'sys/fs/cgroup/memory', 'sys/fs/cgroup/memory/memory'


@pytest.mark.parametrize(('files', 'available'), [
    ({}, 4096000),
    ({f'{NEW}.max': 'max', f'{NEW}.current': 500}, 4096000),
    ({f'{NEW}.max': 3000000, f'{NEW}.current': 500000}, 2500000),
    ({f'{NEW}.max': 9000000, f'{NEW}.current': 500000}, 4096000),
    ({f'{NEW}.max': 3000000, f'{NEW}.current': 3500000}, 0),
    ({f'{NEW}.max': 3000000}, 4096000),
    ({f'{OLD}.limit_in_bytes': 3000000, f'{OLD}.usage_in_bytes': 1000000}, 2000000),
    ({f'{OLD}.limit_in_bytes': 2 ** 63 - 4096, f'{OLD}.usage_in_bytes': 1000000}, 4096000)],
    ids=str)
def test_a_container_has_what_it_is_given(machine, files, available):
    machine(**files)
    assert available_bytes(torch.device('cpu')) == available


@pytest.mark.parametrize(('files', 'available'), [
    ({f'{NEW}.max': 3000000, f'{NEW}.current': 2500000,
      f'{NEW}.stat': 'anon 400000\nfile 2000000\ninactive_file 1900000'}, 2400000),
    ({f'{OLD}.limit_in_bytes': 3000000, f'{OLD}.usage_in_bytes': 2500000,
      f'{OLD}.stat': 'inactive_file 5\ntotal_inactive_file 1900000'}, 2400000)],
    ids=['new', 'old'])
def test_files_that_a_container_has_read_can_be_given_up(machine, files, available):
    """Else reading a data set would use up all memory."""
    machine(**files)
    assert available_bytes(torch.device('cpu')) == available


def test_an_unknown_system_refuses_nothing(machine):
    assert available_bytes(torch.device('cpu')) > 10 ** 12
