"""A file is there whole or as it was, and on the disk before its name is."""

import os
import stat

import pytest

from mmbitsplit.files import replacing


@pytest.mark.parametrize('old', [None, b'old'])
@pytest.mark.parametrize('error', [OSError, RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_everything_as_it_was(error, old, tmp_path):
    path = tmp_path / 'file'
    if old:
        path.write_bytes(old)
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_bytes(b'half')
        assert path.read_bytes() == old if old else not path.exists()
        raise error
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] \
        == ([('file', old)] if old else [])


def test_the_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    path, calls = tmp_path / 'file', []
    real = {name: getattr(os, name) for name in ('fsync', 'replace')}

    def fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append('folder' if is_folder else os.fstat(descriptor).st_size)
        real['fsync'](descriptor)

    def replace(*args):
        calls.append('name')
        real['replace'](*args)

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(os, 'replace', replace)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        file.write(b'whole')  # not flushed yet
    assert calls == [5, 'name', 'folder'] and path.read_bytes() == b'whole'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / 'file'):
        pass
    assert not list(tmp_path.iterdir())
