"""An interrupted calibration finds whole entries only, in order, and only its own."""

import copy
import dataclasses
import errno
import hashlib
import io
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from mmbitsplit.calibration import journal as journal_module
from mmbitsplit.calibration.journal import Journal, JournalEntry
from mmbitsplit.structures import LayerReport, LayerSolution, QParams

ROOT = Path(__file__).parents[2]
IDENTITY = {
    'quantization': {'weight': {'num_bits': 4, 'scale_search': 'mse'}, 'scope': 'all',
                     'overrides': [{'match': 'head.*', 'skip': False}], 'strength': 0.5},
    'weights': hashlib.sha256(b'weights').hexdigest(),
    'images': list(range(100, 132)),
    'versions': {'torch': '2.13.0'},
}
FULL = OSError(errno.ENOSPC, 'No space left on device')


def entry(index: int = 0, qparams: str = 'per_tensor', bias: bool = True) -> JournalEntry:
    """A small solved layer that depends on its index alone."""
    generator = torch.Generator().manual_seed(index)
    channels = {'per_tensor': 1, 'per_channel': 2, 'none': 0}[qparams]
    inputs = None if not channels else QParams(
        scale=torch.rand(channels, generator=generator), zero_point=torch.zeros(channels),
        quant_min=0, quant_max=255, unit=channels == 1)
    solution = LayerSolution(
        codes=torch.randint(-7, 8, (3, 2, 1, 1), generator=generator, dtype=torch.int8),
        num_bits=4, weight_scale=torch.rand(3, generator=generator),
        bias=torch.randn(3, generator=generator) if bias else None, qparams=inputs,
        output_qparams=None if index % 2 else QParams(
            torch.rand(1, generator=generator), torch.tensor([7.0]), 0, 255, unit=False))
    report = LayerReport(
        name=f'layer{index}', kind='conv2d', shape=(3, 2, 1, 1), role='inner', weight_bits=4,
        activation_bits=8 if channels else None, activation_mode='ecaq' if channels else None,
        activation_symmetry='unsigned' if channels else None, strength=None,
        weight_scale=(0.1, 1 / 3), activation_scale=(1e-30, 2.5) if channels else None,
        error_rounding=float('inf'), error=0.1 + 0.2, sweeps=3, guard_taken=index % 2 == 0,
        calls=5, rows=1024, seconds=0.25, notes=['a note', 'é'],
        output_bits=None if index % 2 else 8)
    return JournalEntry(f'layer{index}', solution, report)


def plain(value):
    """Dataclasses as dicts, tensors as (dtype, shape, values): comparable with ``==``."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if dataclasses.is_dataclass(value):
        return type(value).__name__, {item.name: plain(getattr(value, item.name))
                                      for item in dataclasses.fields(value)}
    return value


def assert_entries(journal: Journal, expected: list[JournalEntry]) -> None:
    assert [plain(item) for item in journal.entries] == [plain(item) for item in expected]


def write(folder: Path, entries: list[JournalEntry], identity=IDENTITY) -> Journal:
    journal = Journal.open(folder, identity, resume=False)
    for item in entries:
        journal.append(item)
    return journal


def resume(folder: Path, identity=IDENTITY) -> Journal:
    return Journal.open(folder, identity, resume=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def changed(**changes):
    """The identity with values replaced at dotted paths (``__`` for the dot)."""
    identity = copy.deepcopy(IDENTITY)
    for path, value in changes.items():
        *parents, key = path.split('__')
        inner = identity
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    return identity


@pytest.fixture
def no_sync(monkeypatch):
    """For loops over thousands of journals; what is tested there is not the disk."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


# What is written comes back


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('qparams', ['per_tensor', 'per_channel', 'none'])
def test_an_entry_comes_back_in_every_field(qparams, bias, tmp_path):
    written = entry(1, qparams, bias)
    write(tmp_path, [written])
    journal = resume(tmp_path)
    assert_entries(journal, [written])
    assert journal.problems == [] and not journal.finished
    report = journal.entries[0].report
    assert all(type(getattr(report, name)) is type(getattr(written.report, name))
               for name in vars(report))


def test_entries_from_before_outputs_were_quantized_are_read(tmp_path, monkeypatch):
    to_plain, to_dict = journal_module._to_plain, journal_module.asdict

    def without(key, value):
        return {name: item for name, item in value.items() if name != key}
    monkeypatch.setattr(journal_module, '_to_plain', lambda value: without(
        'output_qparams', to_plain(value)) if isinstance(value, LayerSolution) else to_plain(value))
    monkeypatch.setattr(journal_module, 'asdict', lambda row: without('output_bits', to_dict(row)))
    write(tmp_path, [entry(1), entry(3)])
    assert b'output_' not in (tmp_path / '0000.layer').read_bytes()
    journal = resume(tmp_path)
    assert_entries(journal, [entry(1), entry(3)])
    assert journal.entries[0].solution.output_qparams is None


def test_order_is_kept_and_a_resumed_journal_goes_on(tmp_path):
    entries = [entry(index) for index in range(4)]
    write(tmp_path, entries[:2])
    journal = resume(tmp_path)
    assert_entries(journal, entries[:2])
    journal.entries.clear()  # the caller may use them up
    for item in entries[2:]:
        journal.append(item)
    assert_entries(resume(tmp_path), entries)
    assert names(tmp_path) == ['0000.layer', '0001.layer', '0002.layer', '0003.layer',
                               'header.json']


def test_append_does_not_keep_the_layer_in_memory(tmp_path):
    assert write(tmp_path, [entry()]).entries == []


def test_more_than_four_digits(tmp_path):
    journal = write(tmp_path, [])
    assert journal._path(10000).name == '10000.layer'
    (tmp_path / '10000.layer').write_bytes(b'')
    (tmp_path / '9999.layer').write_bytes(b'')
    assert [path.name for path in journal_module._layer_files(tmp_path)] == \
        ['10000.layer', '9999.layer']


def test_a_view_does_not_save_its_whole_storage(tmp_path):
    large = torch.zeros(500, 3)
    solution = dataclasses.replace(entry().solution, weight_scale=large[3], bias=large.T[:, 1])
    write(tmp_path, [dataclasses.replace(entry(), solution=solution)])
    assert (tmp_path / '0000.layer').stat().st_size < 5000
    assert torch.equal(resume(tmp_path).entries[0].solution.bias, torch.zeros(3))


def test_parameters_come_back_as_plain_tensors(tmp_path):
    solution = dataclasses.replace(entry().solution, bias=nn.Parameter(torch.ones(3)))
    write(tmp_path, [dataclasses.replace(entry(), solution=solution)])
    bias = resume(tmp_path).entries[0].solution.bias
    assert type(bias) is torch.Tensor and not bias.requires_grad


def test_what_could_not_be_read_back_is_refused_when_written(tmp_path):
    journal = write(tmp_path, [entry(0)])
    odd = dataclasses.replace(entry(1).report, error=numpy.float32(1.5))
    with pytest.raises(ValueError, match="'layer1' cannot be kept in .*0001.layer.*plain numbers"):
        journal.append(dataclasses.replace(entry(1), report=odd))
    journal.append(entry(1))
    assert_entries(resume(tmp_path), [entry(0), entry(1)])


# Begin, resume, wipe


@pytest.mark.parametrize('resumed', [True, False])
def test_a_new_journal_where_there_is_none(resumed, tmp_path):
    journal = Journal.open(str(tmp_path / 'a' / 'b'), IDENTITY, resume=resumed)
    assert (journal.entries, journal.problems, journal.facts, journal.finished) == \
        ([], [], {}, False)
    journal.append(entry())
    assert_entries(resume(tmp_path / 'a' / 'b'), [entry()])


def test_without_resume_an_existing_journal_is_removed(tmp_path):
    write(tmp_path, [entry(0), entry(1)]).remember(old=1)
    (tmp_path / 'results.json').write_text('not ours')
    journal = Journal.open(tmp_path, changed(scope='neck'), resume=False)
    assert journal.entries == [] and journal.facts == {} and journal.problems == []
    assert names(tmp_path) == ['header.json', 'results.json']


def test_temporary_leftovers_are_ignored_and_removed(tmp_path):
    write(tmp_path, [entry(0)])
    whole = (tmp_path / '0000.layer').read_bytes()
    (tmp_path / '.0001.layer.4711.tmp').write_bytes(whole[:50])
    (tmp_path / '.header.json.4711.tmp').write_bytes(b'{')
    (tmp_path / '.mine.tmp').write_bytes(b'not ours')
    journal = resume(tmp_path)
    assert_entries(journal, [entry(0)])
    assert journal.problems == []
    assert names(tmp_path) == ['.mine.tmp', '0000.layer', 'header.json']


def test_layers_without_a_header_are_worth_nothing(tmp_path):
    write(tmp_path, [entry(0), entry(1)])
    (tmp_path / 'header.json').unlink()
    journal = resume(tmp_path)
    assert journal.entries == [] and names(tmp_path) == ['header.json']
    assert len(journal.problems) == 1
    assert 'header.json is missing' in journal.problems[0] and '2 solved' in journal.problems[0]


# Damage


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
    payload = journal_module._to_payload(entry(1), journal._last)
    content = torch.load(io.BytesIO(payload), weights_only=True)
    content['report']['later_field'] = 1
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    frame = journal_module._FRAME.pack(b'mmbs-lyr', 1, hashlib.sha256(payload).digest(),
                                       len(payload))
    (tmp_path / '0001.layer').write_bytes(frame + payload)
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
    frame = journal_module._FRAME.pack(b'mmbs-lyr', 1, hashlib.sha256(payload).digest(),
                                       len(payload))
    (tmp_path / '0000.layer').write_bytes(frame + payload)
    assert_ends_at(tmp_path, 0, 'cannot be parsed', later=0)
    assert not (tmp_path / 'executed').exists()


# Identity


@pytest.mark.parametrize(('identity', 'wanted'), [
    (changed(quantization__weight__num_bits=3),
     ['quantization.weight.num_bits is 3, the journal has 4']),
    (changed(quantization__scope='neck'), ["quantization.scope is 'neck', the journal has 'all'"]),
    (changed(weights='ab' * 32), ['weights differ (sha256 abababab… / ']),
    (changed(images=[*range(100, 130), 1, 2]),
     ['2 of 32 images differ, such as 1 (the journal has 130)']),
    (changed(images=[*range(131, 99, -1)]),
     ['the 32 images are in another order, from number 0 on']),
    (changed(images=[100]), ['images has 1 items, the journal 32, only there such as 101']),
    (changed(images=[*range(100, 132), 7]),
     ['images has 33 items, the journal 32, only here such as 7']),
    (changed(quantization__overrides=[{'match': 'neck.*', 'skip': False}]),
     ["quantization.overrides[0].match is 'neck.*', the journal has 'head.*'"]),
    (changed(quantization__overrides=[]),
     ["quantization.overrides has 0 items, the journal 1, only there such as {'match'"]),
    (changed(quantization__extra=1), ['quantization.extra is 1, the journal has no such entry']),
    ({key: IDENTITY[key] for key in ('quantization', 'weights', 'images')},
     ["versions is not given, the journal has {'torch': '2.13.0'}"]),
    (changed(versions=None), ["versions is None, the journal has {'torch'"]),
    (changed(images='all'), ["images is 'all', the journal has [100"]),
    (changed(quantization__overrides=[{'match': 'head.*', 'skip': 0}]),
     ['quantization.overrides[0].skip is 0, the journal has False']),
    (changed(weights='ab' * 32, quantization__scope='neck', versions__torch='2.12.0'),
     ['quantization.scope is', 'weights differ', "versions.torch is '2.12.0'"]),
])
def test_what_differs_is_named_with_both_values(identity, wanted, tmp_path):
    write(tmp_path, [entry()])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError) as caught:
        resume(tmp_path, identity)
    message = str(caught.value)
    for text in wanted:
        assert text in message
    assert message.count(';') == len(wanted) - 1
    assert str(tmp_path) in message
    assert 'Run without --resume to start again, or use another work directory.' in message
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_at_most_five_differences_are_listed(tmp_path):
    write(tmp_path, [], {f'key{index}': 0 for index in range(8)})
    with pytest.raises(ValueError, match='key4 is 1, the journal has 0; and 3 more') as caught:
        resume(tmp_path, {f'key{index}': 1 for index in range(8)})
    assert 'key5' not in str(caught.value)


def test_of_long_values_the_place_where_they_differ_is_shown(tmp_path):
    stored, ours = ('a' * 500 + middle + 'z' * 500 for middle in ('stored', 'given'))
    write(tmp_path, [], {'path': stored, 'files': [stored]})
    with pytest.raises(ValueError) as caught:
        resume(tmp_path, {'path': ours, 'files': [ours]})
    message = str(caught.value)
    assert message.count('agivenz') == 2 and message.count('astoredz') == 2
    assert len(message) < 700


@pytest.mark.parametrize('identity', [
    {'shape': (1, 2, (3, 4)), 'options': {1: 'one', None: 'none', False: 'no'}},
    {'nan': float('nan'), 'inf': [float('inf'), float('nan')], 'small': 5e-324, 'third': 1 / 3},
    {'file': 'é\udc80\U0001f600', 'big': 2**80, 'none': None, 'empty': [{}, [], '']},
])
def test_json_makes_no_differences_of_its_own(identity, tmp_path):
    write(tmp_path, [entry()], identity)
    journal = resume(tmp_path, identity)
    assert_entries(journal, [entry()])
    assert journal.problems == []


def test_equal_numbers_and_another_order_of_keys_are_no_difference(tmp_path):
    write(tmp_path, [entry(0)], {'strength': 1, 'seeds': [1, 2], 'scope': 'all'})
    journal = resume(tmp_path, {'scope': 'all', 'seeds': [1.0, 2], 'strength': 1.0})
    assert_entries(journal, [entry(0)])
    journal.append(entry(1))
    for strength in (1, 1.0):
        again = resume(tmp_path, {'strength': strength, 'seeds': [1, 2], 'scope': 'all'})
        assert_entries(again, [entry(0), entry(1)])


def test_the_identity_is_copied(tmp_path):
    identity = copy.deepcopy(IDENTITY)
    journal = write(tmp_path, [entry()], identity)
    identity['images'].clear()
    journal.remember(x=1)
    assert_entries(resume(tmp_path), [entry()])


def test_an_identity_that_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match='cannot keep the identity: .*Tensor'):
        write(tmp_path, [], {'weights': torch.zeros(1)})
    assert names(tmp_path) == []


def test_a_journal_of_another_format_is_refused_and_left_alone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, 'FORMAT', 2)
        write(tmp_path, [entry()])
    with pytest.raises(ValueError, match='journal format 2, this version reads 1. Run without'):
        resume(tmp_path)
    assert names(tmp_path) == ['0000.layer', 'header.json']


# Facts and the end


def test_facts_are_kept_and_merged(tmp_path):
    journal = write(tmp_path, [entry()])
    journal.remember(metrics={'mAP': 0.1 + 0.2, 'nan': -1}, seconds=2.5)
    journal.remember(seconds=3.5, ids=(1, 2))
    wanted = {'metrics': {'mAP': 0.1 + 0.2, 'nan': -1}, 'seconds': 3.5, 'ids': [1, 2]}
    assert journal.facts == wanted
    again = resume(tmp_path)
    assert again.facts == wanted
    assert_entries(again, [entry()])


def test_a_fact_that_json_cannot_say_changes_nothing(tmp_path):
    journal = write(tmp_path, [])
    journal.remember(good=1)
    with pytest.raises(ValueError, match="cannot keep the fact 'bad'"):
        journal.remember(good=2, bad=object())
    assert journal.facts == resume(tmp_path).facts == {'good': 1}


def test_finish_leaves_a_small_header_that_says_so(tmp_path):
    journal = write(tmp_path, [entry(0), entry(1)])
    journal.remember(metric=1)
    journal.finish()
    assert journal.finished and names(tmp_path) == ['header.json']
    again = resume(tmp_path)
    assert again.finished and again.entries == [] and again.problems == []
    assert again.facts == {'metric': 1}
    with pytest.raises(AssertionError):
        again.append(entry())
    with pytest.raises(ValueError, match='scope'):
        resume(tmp_path, changed(quantization__scope='neck'))
    assert not Journal.open(tmp_path, IDENTITY, resume=False).finished
    assert not resume(tmp_path).finished


def test_finish_interrupted_before_the_layers_are_gone(tmp_path, monkeypatch):
    journal = write(tmp_path, [entry(0), entry(1)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', lambda *args, **kwargs: (_ for _ in ()).throw(
            PermissionError('denied')) if args[0].suffix == '.layer' else None)
        with pytest.raises(ValueError, match='denied'):
            journal.finish()
    assert '0001.layer' in names(tmp_path)
    again = resume(tmp_path)
    assert again.finished and again.entries == [] and again.problems == []
    assert names(tmp_path) == ['header.json']


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
