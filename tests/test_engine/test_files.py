"""Files are written whole or not at all, and what cannot be written is one clear error."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmbitsplit.export.writing import (
    check_work_dir,
    write_checkpoint,
    write_json,
    write_text,
)
from mmbitsplit.files import temporary_path

FULL = OSError(errno.ENOSPC, 'No space left on device')


def raising(error):
    def fail(*args, **kwargs):
        raise error
    return fail


def write_partly(error):
    def fail(value, file):
        file.write(b'half a file')
        file.flush()
        raise error
    return fail


def file_of_a_dead_process(folder, name):
    """What a writer leaves that is killed, by the name that a living one gives."""
    with pytest.MonkeyPatch.context() as patch:
        done = subprocess.Popen([sys.executable, '-c', ''])
        done.wait()
        patch.setattr(os, 'getpid', lambda: done.pid)
        path = temporary_path(folder / name)
    path.write_bytes(b'half')
    return path


def test_what_is_written_can_be_read(tmp_path):
    write_json(tmp_path / 'a.json', {'x': [1, 2.5, 'é']})
    write_text(tmp_path / 'a.txt', 'text')
    write_checkpoint(tmp_path / 'a.pth', {'x': torch.arange(3)})
    assert json.loads((tmp_path / 'a.json').read_text('utf-8')) == {'x': [1, 2.5, 'é']}
    assert (tmp_path / 'a.txt').read_text() == 'text'
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert torch.equal(loaded['x'], torch.arange(3))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize('error', [FULL, RuntimeError('PytorchStreamWriter failed')])
@pytest.mark.parametrize('old', [None, b'old'])
def test_a_failing_save_leaves_nothing_of_itself(error, old, tmp_path, monkeypatch):
    path = tmp_path / 'quantized.pth'
    if old:
        path.write_bytes(old)
    monkeypatch.setattr(torch, 'save', write_partly(error))
    with pytest.raises(ValueError, match='quantized.pth cannot be written.*another directory'):
        write_checkpoint(path, {})
    assert [p.name for p in tmp_path.iterdir()] == (['quantized.pth'] if old else [])
    assert not old or path.read_bytes() == old


def test_a_failing_rename_leaves_nothing_of_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'replace', raising(FULL))
    with pytest.raises(ValueError, match='No space left'):
        write_json(tmp_path / 'results.json', {})
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_say_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / 'results.json', {'x': object()})
    assert not list(tmp_path.iterdir())


def test_the_work_dir_is_made_and_left_empty(tmp_path):
    path = check_work_dir(tmp_path / 'a' / 'b')
    assert path == tmp_path / 'a' / 'b' and path.is_dir() and not list(path.iterdir())
    assert check_work_dir(str(path)) == path


def test_a_work_dir_that_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(ValueError, match='cannot be written.*another directory'):
            check_work_dir(path)


def test_a_work_dir_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, 'write_bytes', raising(PermissionError(errno.EACCES, 'denied')))
    with pytest.raises(ValueError, match='denied.*Make the directory writable'):
        check_work_dir(tmp_path)


def test_too_little_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    check_work_dir(tmp_path, 2**20)
    with pytest.raises(ValueError, match='1 MiB left and 5 MiB are needed'):
        check_work_dir(tmp_path, 5 * 2**20)


def test_the_bytes_of_a_checkpoint_do_not_depend_on_its_name(tmp_path):
    for name in ('a.pth', 'a_much_longer_name.pth'):
        write_checkpoint(tmp_path / name, {'x': torch.arange(3), 'y': [1, 'z']})
    first, second = (path.read_bytes() for path in tmp_path.iterdir())
    assert first == second


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path):
    stale = [file_of_a_dead_process(tmp_path, name) for name in ('quantized.pth', 'write-test')]
    living = temporary_path(tmp_path / 'results.json')
    elsewhere = tmp_path / '.quantized.pth.another-host.999999999.tmp'
    others = [living, elsewhere, tmp_path / 'mine.tmp', tmp_path / '.hidden']
    for path in others:
        path.write_bytes(b'x')
    assert all(path.exists() for path in stale)
    check_work_dir(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)
    check_work_dir(tmp_path)


def test_killed_while_writing(tmp_path):
    """The old file stays whole, and the next run finds nothing else."""
    path = tmp_path / 'quantized.pth'
    write_checkpoint(path, {'x': 1})
    code = (f"""
import os, signal, torch
from pathlib import Path
from mmbitsplit.export.writing import write_checkpoint
def save(value, file):
    file.write(b'half a file')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
write_checkpoint(Path({str(path)!r}), dict(x=2))
""")
    done = subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {'x': 1}
    assert len(list(tmp_path.iterdir())) == 2
    check_work_dir(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
