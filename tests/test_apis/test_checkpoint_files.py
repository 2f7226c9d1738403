"""The two containers of a packed checkpoint hold the same, in every format version."""

import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmbitsplit.apis.checkpoint_files import convert_checkpoint
from mmbitsplit.cli import convert, inspect_checkpoint
from mmbitsplit.export import read_checkpoint
from mmbitsplit.export.safetensors_file import load_safetensors, to_safetensors

FILES = sorted((Path(__file__).parents[1] / 'packed_files').glob('packed_v*.pth'))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def original(request, tmp_path):
    return Path(shutil.copy(request.param, tmp_path / 'quantized.pth'))


@pytest.fixture
def newest(tmp_path):
    return Path(shutil.copy(FILES[-1], tmp_path / 'quantized.pth'))


def test_both_containers_read_alike_and_back_again(original, capsys):
    assert convert.main([str(original)]) == 0
    written = original.with_suffix('.safetensors')
    assert str(written) in capsys.readouterr().out
    first, second = read_checkpoint(original), read_checkpoint(written)
    assert second.description == first.description and second.meta == first.meta
    assert (second.version, second.payload_bytes) == (first.version, first.payload_bytes)
    assert second.state.keys() == first.state.keys()
    for name, value in first.state.items():
        assert second.state[name].dtype == value.dtype and torch.equal(second.state[name], value)
    back, = convert_checkpoint(written, original.with_name('back.pth'))
    raw = [torch.load(path, weights_only=True) for path in (original, back)]
    assert raw[0]['meta'] == raw[1]['meta']
    assert all(torch.equal(value, raw[1]['state_dict'][name])
               for name, value in raw[0]['state_dict'].items())


def test_the_summary_beside_it_is_what_inspect_prints(newest, capsys):
    written, summary = convert_checkpoint(newest)
    assert inspect_checkpoint.main([str(written), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(summary.read_text())


def test_equal_checkpoints_give_equal_bytes(newest):
    raw = torch.load(newest, weights_only=True)
    assert to_safetensors(raw) == to_safetensors(torch.load(newest, weights_only=True))


def test_a_byte_that_changed_anywhere_is_refused(newest):
    written, _ = convert_checkpoint(newest)
    whole = written.read_bytes()
    for position in (2, 100, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[position] ^= 4
        written.write_bytes(data)
        with pytest.raises(ValueError, match='damaged|truncated|bytes'):
            read_checkpoint(written)
    written.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match='Copy the file again'):
        read_checkpoint(written)


def test_tensors_of_others_are_no_packed_checkpoint(tmp_path):
    path = tmp_path / 'other.safetensors'
    save_file({'weight': torch.ones(3)}, path)
    assert load_safetensors(path)['meta'] == {}
    with pytest.raises(ValueError, match='no quantization plan'):
        read_checkpoint(path)


@pytest.mark.parametrize('output, said', [
    ('x.bin', "allowed are names that end in .safetensors or .pth"),
    ('quantized.pth', 'is the checkpoint itself')])
def test_a_wrong_output_is_said_and_nothing_is_written(newest, output, said, capsys):
    assert convert.main([str(newest), '--output', str(newest.with_name(output))]) == 2
    assert said in capsys.readouterr().err and list(newest.parent.iterdir()) == [newest]


def test_without_the_package_the_extra_is_named(newest, monkeypatch, capsys):
    written, _ = convert_checkpoint(newest)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split('.')[0] == 'safetensors':
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    assert inspect_checkpoint.main([str(written)]) == 2
    assert "pip install 'mmbitsplit[hub]'" in capsys.readouterr().err
    assert inspect_checkpoint.main([str(newest)]) == 0
