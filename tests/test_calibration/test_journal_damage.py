"""Of a damaged journal, the entries before the damage are taken and nothing else."""

import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from journal_entries import IDENTITY, assert_entries, changed, entry, names, resume, write

from mmbitsplit.calibration.journal.entries import to_payload
from mmbitsplit.calibration.journal.frames import framed


@pytest.fixture
def no_sync(monkeypatch):
    """For loops over thousands of journals; what is tested there is not the disk."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


def assert_ends_at(folder: Path, kept: int, reason: str, later: int) -> None:
    """Resumes; the first ``kept`` entries are left, on disk too, and the problem is named."""
    journal = resume(folder)
    assert_entries(journal, [entry(index) for index in range(kept)])
    assert len(journal.problems) == 1
    problem = journal.problems[0]
    assert f'{kept:04d}.layer' in problem and reason in problem
    assert f'{later} later layer(s)' in problem
    assert names(folder) == [*(f'{index:04d}.layer' for index in range(kept)), 'header.json']
    journal.append(entry(kept))
    again = resume(folder)
    assert_entries(again, [entry(index) for index in range(kept + 1)])
    assert again.problems == []


def test_every_flipped_byte_of_an_entry_is_detected(tmp_path, no_sync):
    journal = write(tmp_path, [entry(0, 'none', bias=False)])
    path = tmp_path / '0000.layer'
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        journal = resume(tmp_path)
        assert journal.entries == [] and len(journal.problems) == 1, position
        assert not path.exists()


def test_every_truncation_of_an_entry_is_detected(tmp_path, no_sync):
    write(tmp_path, [entry(0, 'none', bias=False)])
    path = tmp_path / '0000.layer'
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = resume(tmp_path)
        assert journal.entries == [], length
        assert len(journal.problems) == 1 and 'is truncated' in journal.problems[0], length
    path.write_bytes(whole + b'\0')
    assert resume(tmp_path).entries == []


def test_every_flipped_byte_and_truncation_of_a_header_is_detected(tmp_path, no_sync):
    small = {'weights': 'a', 'images': [1, 2.5]}
    write(tmp_path, [], small).remember(metric=0.25)
    path = tmp_path / 'header.json'
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))] + [whole + b'\n', b'[' * 100000]
    for position in range(len(whole)):
        for bit in (position % 8, 5):  # 5: from one white space to another letter and back
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            damaged.append(bytes(flipped))
    damaged.append(whole.replace(b'\n ', b'\n\t'))
    for data in damaged:
        path.write_bytes(data)
        journal = resume(tmp_path, small)
        assert journal.facts == {} and len(journal.problems) == 1, data
        assert 'header.json is truncated or damaged' in journal.problems[0]
    assert resume(tmp_path, small).problems == []


def test_a_damaged_header_drops_the_layers(tmp_path):
    write(tmp_path, [entry(0), entry(1)])
    (tmp_path / 'header.json').write_bytes(b'\xff{')
    journal = resume(tmp_path)
    assert journal.entries == [] and names(tmp_path) == ['header.json']
    assert '2 solved layer(s) dropped' in journal.problems[0]


def test_a_damaged_entry_takes_all_later_ones_with_it(tmp_path):
    write(tmp_path, [entry(index) for index in range(5)])
    path = tmp_path / '0002.layer'
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert_ends_at(tmp_path, 2, 'has a wrong checksum', later=2)


@pytest.mark.parametrize(('missing', 'later'), [(0, 3), (1, 2), (2, 1)])
def test_a_missing_entry_takes_all_later_ones_with_it(missing, later, tmp_path):
    write(tmp_path, [entry(index) for index in range(4)])
    (tmp_path / f'{missing:04d}.layer').unlink()
    assert_ends_at(tmp_path, missing, 'is missing', later)


def test_a_missing_last_entry_is_just_a_shorter_journal(tmp_path):
    write(tmp_path, [entry(0), entry(1)])
    (tmp_path / '0001.layer').unlink()
    journal = resume(tmp_path)
    assert_entries(journal, [entry(0)])
    assert journal.problems == []


def test_swapped_entries_are_detected(tmp_path):
    write(tmp_path, [entry(index) for index in range(4)])
    first, second = tmp_path / '0001.layer', tmp_path / '0002.layer'
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert_ends_at(tmp_path, 1, 'does not follow the entry before it', later=2)


@pytest.mark.parametrize(('index', 'identity', 'first'), [
    (0, changed(scope='neck'), 0),  # of another request: the first entry knows the identity
    (1, IDENTITY, 7),               # of the same request, after another layer
])
def test_an_entry_of_another_journal_is_detected(index, identity, first, tmp_path):
    ours, other = tmp_path / 'ours', tmp_path / 'other'
    write(ours, [entry(0), entry(1)])
    write(other, [entry(first), entry(1)], identity)
    shutil.copy(other / f'{index:04d}.layer', ours)
    assert_ends_at(ours, index, 'does not follow the entry before it', later=1 - index)


def test_an_entry_with_the_fields_of_another_version_is_solved_again(tmp_path):
    journal = write(tmp_path, [entry(0)])
    payload = to_payload(entry(1), journal._last)
    content = torch.load(io.BytesIO(payload), weights_only=True)
    content['report']['later_field'] = 1
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    (tmp_path / '0001.layer').write_bytes(framed(b'mmbs-lyr', payload))
    assert_ends_at(tmp_path, 1, 'cannot be parsed', later=0)


def test_nothing_in_an_entry_is_executed(tmp_path):
    """A pickle that would run code is refused, although its checksum is right."""
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / 'executed',))

    write(tmp_path, [])
    buffer = io.BytesIO()
    torch.save({'previous': Trap()}, buffer)
    payload = buffer.getvalue()
    (tmp_path / '0000.layer').write_bytes(framed(b'mmbs-lyr', payload))
    assert_ends_at(tmp_path, 0, 'cannot be parsed', later=0)
    assert not (tmp_path / 'executed').exists()
