"""Packed checkpoints come back exactly, and any damage is refused."""

import hashlib
import json
import random
import struct
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mmbitsplit import export
from mmbitsplit.export import (
    HEADER_KEY,
    PAYLOAD_KEY,
    PLAN_KEY,
    check_fit,
    pack_checkpoint,
    read_checkpoint,
    unpack_state,
)
from mmbitsplit.export import packed_checkpoint as module

FILES = Path(__file__).parents[1] / 'packed_files'
DESCRIPTION = {'layers': {}, 'folded': ['bn']}
META = {'versions': {'torch': '2'}, 'calibration': {'image_ids': [3, 'a']}, 'scale': 0.1}


def make_state():
    """Every dtype, odd sizes, no elements, no dimensions, and views that are not contiguous."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 7, generator=generator)
    state = {f'{dtype}'.replace('torch.', 'of.'): (noise * 9).to(dtype) for dtype in (
        torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.bool)}
    return {**state, 'codes': torch.randint(0, 256, (3, 5), generator=generator).to(torch.uint8),
            'scalar': torch.tensor(7), 'empty': torch.zeros(0, 3), 'transposed': noise.t(),
            'strided': noise[::2, 1::3], 'special': torch.tensor([float('inf'), -0.0, 1e-42])}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].shape == second[name].shape
        and torch.equal(first[name], second[name]) for name in first)


def flipped(value, position, bit=0):
    value = value.clone()
    value[position] ^= 1 << bit
    return value


@pytest.fixture
def packed():
    return pack_checkpoint(make_state(), DESCRIPTION, META)


@pytest.fixture(scope='module')
def newest():
    return FILES / 'packed_v2.pth'


def test_every_dtype_and_shape_comes_back_exactly(packed, tmp_path):
    torch.save(packed, tmp_path / 'a.pth')
    loaded = read_checkpoint(tmp_path / 'a.pth')
    assert same(loaded.state, make_state())
    assert (loaded.version, loaded.description, loaded.meta) == (2, DESCRIPTION, META)
    assert same(unpack_state(packed['state_dict']).state, make_state())
    assert torch.equal(loaded.state['special'].signbit(), make_state()['special'].signbit())


def test_what_is_read_can_be_written_to(packed):
    first, second = (unpack_state(packed['state_dict']).state for _ in range(2))
    for value in first.values():
        value.zero_()
    assert same(second, make_state())


def test_the_file_holds_two_tensors_and_little_else(packed, tmp_path):
    assert set(packed) == {'state_dict', 'meta'}
    assert set(packed['state_dict']) == {HEADER_KEY, PAYLOAD_KEY}
    payload = sum(value.numel() * value.element_size() for value in make_state().values())
    assert packed['state_dict'][PAYLOAD_KEY].numel() == payload == unpack_state(
        packed['state_dict']).payload_bytes


def test_equal_tensors_are_stored_once():
    zeros = {f'layer{index}.zero_point': torch.zeros(64, dtype=torch.int32) for index in range(9)}
    state = {**zeros, 'other': torch.zeros(64), 'more': torch.ones(3)}
    packed = pack_checkpoint(state, DESCRIPTION, META)['state_dict']
    assert packed[PAYLOAD_KEY].numel() == 64 * 4 + 3 * 4
    assert same(unpack_state(packed).state, state)


def test_no_tensors_at_all():
    assert unpack_state(pack_checkpoint({}, DESCRIPTION, {})['state_dict']).state == {}


def test_a_dtype_without_a_place_is_refused():
    with pytest.raises(ValueError, match="'z' is of dtype torch.complex64.*allowed are bool"):
        pack_checkpoint({'z': torch.zeros(1, dtype=torch.complex64)}, DESCRIPTION, META)


@pytest.mark.parametrize('key, message', [
    (HEADER_KEY, 'header of the checkpoint is damaged'),
    (PAYLOAD_KEY, 'damaged, their checksums are wrong')])
def test_any_byte_of_header_and_payload(key, message, packed):
    state, chance = packed['state_dict'], random.Random(0)
    for position in range(state[key].numel()):
        damaged = {**state, key: flipped(state[key], position, chance.randrange(8))}
        with pytest.raises(ValueError, match=message):
            unpack_state(damaged)


def test_the_damaged_tensor_is_named(packed):
    state = packed['state_dict']
    damaged = {**state, PAYLOAD_KEY: flipped(state[PAYLOAD_KEY], 0)}
    with pytest.raises(ValueError, match=r'1 tensor.*\(such as of.int8\).*Copy the file again'):
        unpack_state(damaged)


@pytest.mark.parametrize('key', [HEADER_KEY, PAYLOAD_KEY])
@pytest.mark.parametrize('cut', [0, 1, 20, 60, -1])
def test_a_shortened_tensor(key, cut, packed):
    state = packed['state_dict']
    with pytest.raises(ValueError, match='damaged'):
        unpack_state({**state, key: state[key][:cut]})
    with pytest.raises(ValueError, match='damaged'):
        unpack_state({**state, key: torch.cat([state[key], state[key][:1]])})


@pytest.mark.parametrize('key', [HEADER_KEY, PAYLOAD_KEY])
def test_a_tensor_that_is_gone(key, packed):
    state = dict(packed['state_dict'])
    del state[key]
    with pytest.raises(ValueError, match='no quantization plan'):
        unpack_state(state)


@pytest.mark.parametrize('version, step', [(5, 'Install a newer'), (70000, 'Install a newer'),
                                           (1, 'Quantize again'), (0, 'Quantize again')])
def test_other_format_versions(version, step, packed, monkeypatch):
    monkeypatch.setattr(module, 'OF_ONE_WIDTH', version)
    other = pack_checkpoint(make_state(), DESCRIPTION, META)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f'of format version {version}; .*1 to 4. {step}'):
        unpack_state(other['state_dict'])


def test_the_frame_is_as_documented(packed):
    """So that any later version can tell any earlier file."""
    data = bytes(packed['state_dict'][HEADER_KEY].tolist())
    magic, version, digest, length = struct.unpack_from('<8sI32sQ', data)
    text = data[52:]
    assert (magic, version, length) == (b'mmbs-pkd', 2, len(text))
    assert digest == hashlib.sha256(struct.pack('<I', 2) + text).digest()
    header = json.loads(text)
    assert set(header) == {'description', 'tensors', 'payload_bytes', 'meta_checksum'}
    name, dtype, shape, offset, checksum = header['tensors'][0]
    assert (name, dtype, shape, offset) == ('of.int8', 'int8', [5, 7], 0)
    payload = bytes(packed['state_dict'][PAYLOAD_KEY].tolist())
    assert hashlib.blake2b(payload[:35], digest_size=8).hexdigest() == checksum


def outcome(path):
    """What reading gives, or ``None`` where it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch wonders about pickle protocols
        try:
            return read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and ('again' in str(error) or 'Load' in str(error))
            return None


@pytest.mark.parametrize('part', range(4))
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(part, newest, tmp_path):
    """Padding and what the container says twice may change; what is read may not."""
    whole, path = newest.read_bytes(), tmp_path / 'damaged.pth'
    expected, chance, refused = read_checkpoint(newest), random.Random(part), 0
    positions = range(part, len(whole), 16)
    for position in positions:
        data = bytearray(whole)
        data[position] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        found = outcome(path)
        refused += found is None
        assert found is None or same(found.state, expected.state) and (
            found.description, found.meta) == (expected.description, expected.meta), position
    assert refused > len(positions) / 2


def test_a_flipped_bit_in_what_is_said_about_the_model(newest, tmp_path):
    """``meta`` stands in the pickle, where torch would let it pass."""
    whole, path = newest.read_bytes(), tmp_path / 'damaged.pth'
    path.write_bytes(whole.replace(b'cat', b'bat'))
    assert torch.load(path, weights_only=True)['meta']['dataset_meta']['classes'][0] == 'bat'
    with pytest.raises(ValueError, match="'meta' entry is damaged"):
        read_checkpoint(path)


def test_a_truncated_file(newest, tmp_path):
    whole, path = newest.read_bytes(), tmp_path / 'cut.pth'
    for length in (0, 1, 10, *range(100, len(whole), 500), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='cut.pth is truncated, damaged or no checkpoint.*'
                                             'Copy the file again'):
            read_checkpoint(path)


@pytest.mark.parametrize('content', [
    {}, [1, 2], {'state_dict': {}}, {'state_dict': {'conv.weight': torch.zeros(2)}},
    {'state_dict': {'conv.weight': 3}}, {'conv.weight': torch.zeros(2)}])
def test_other_checkpoints(content, tmp_path):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth: .* no quantization plan.*quantized.pth'):
        read_checkpoint(tmp_path / 'other.pth')


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pth does not exist'):
        read_checkpoint(tmp_path / 'none.pth')


def test_old_versions_hold_the_same_as_the_newest(newest):
    old, new = read_checkpoint(FILES / 'packed_v1.pth'), read_checkpoint(newest)
    assert (old.version, new.version) == (1, 2)
    assert same(old.state, new.state) and old.meta.keys() == new.meta.keys()
    assert old.description['folded'] == new.description['folded']
    for name, row in old.description['layers'].items():
        later = new.description['layers'][name]
        if row['input'] is not None:
            assert row['input'] == {key: later['input'][key] for key in row['input']}
        assert {**row, 'input': 0} == {**{key: later[key] for key in row}, 'input': 0}
    assert newest.stat().st_size < 0.6 * (FILES / 'packed_v1.pth').stat().st_size


def test_there_is_a_file_of_every_version():
    assert [read_checkpoint(path).version for path in sorted(FILES.glob('packed_v*.pth'))] == [
        *range(1, export.FORMAT + 1)]


def test_an_old_plan_that_is_damaged():
    state = {PLAN_KEY: torch.tensor([123, 34], dtype=torch.uint8)}
    with pytest.raises(ValueError, match='plan is damaged.*Copy the file again'):
        unpack_state(state)


def test_a_state_that_fits_and_some_that_do_not():
    state = {'a': torch.zeros(2), 'b': torch.zeros(3)}
    check_fit(state, {'a': torch.ones(2), 'b': torch.ones(3)})
    for wanted, message in (
            ({'a': torch.ones(2)}, r'has, beyond the model, 1 tensor\(s\) \(such as b\)'),
            ({**state, 'c': torch.ones(2), 'd': torch.ones(1)}, r'lacks 2 tensor.*such as c'),
            ({**state, 'b': torch.ones(4)}, r'another shape \(such as b: \(3,\), the model has '
                                            r'\(4,\)')):
        with pytest.raises(ValueError, match=message + '.*another architecture'):
            check_fit(state, wanted)


def test_machines_of_the_other_byte_order_are_told(packed, monkeypatch):
    monkeypatch.setattr(sys, 'byteorder', 'big')
    with pytest.raises(ValueError, match='little-endian'):
        unpack_state(packed['state_dict'])
    with pytest.raises(ValueError, match='little-endian'):
        pack_checkpoint({}, DESCRIPTION, META)
