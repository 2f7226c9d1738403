"""A journal of another request is refused, and what differs is named."""

import copy

import pytest
import torch
from journal_entries import IDENTITY, assert_entries, changed, entry, names, resume, write

from mmbitsplit.calibration.journal import journal as journal_module


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
