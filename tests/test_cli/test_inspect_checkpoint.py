"""The plan and the sizes of a file, with torch alone."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmbitsplit.cli import inspect_checkpoint
from mmbitsplit.export import FORMAT, PAYLOAD_KEY, pack_checkpoint, read_checkpoint
from mmbitsplit.structures import read_plan

PROJECT = Path(__file__).parents[2]
FILES = sorted((PROJECT / 'tests/packed_files').glob('packed_v*.pth'))


@pytest.fixture
def inspect(capsys):
    def run(*args):
        code = inspect_checkpoint.main([*map(str, args)])
        return code, capsys.readouterr()
    return run


@pytest.mark.parametrize('path', FILES[:2], ids=lambda path: path.stem)
def test_json_says_what_the_file_holds(path, inspect):
    code, printed = inspect(path, '--json')
    found, packed = json.loads(printed.out), read_checkpoint(path)
    assert code == 0 and found['format_version'] == packed.version
    assert found['file_bytes'] == path.stat().st_size
    assert found['payload_bytes'] == packed.payload_bytes
    rows = {row['name']: row for row in found['layers']}
    assert list(rows) == ['stem', 'depthwise', 'expand', 'grouped', 'up', 'hidden', 'head']
    assert {name: (row['weight_bits'], row['input_bits'], row['input_mode'])
            for name, row in rows.items()} == {
        'stem': (8, None, None), 'depthwise': (5, 4, 'per_channel'), 'expand': (3, 4, 'ecaq'),
        'grouped': (3, 4, 'per_tensor'), 'up': (3, 4, 'ecaq'), 'hidden': (3, 4, 'ecaq'),
        'head': (8, 8, 'ecaq')}
    for row in rows.values():
        codes = packed.state[f'model.{row["name"]}.codes'].numel()
        bits = math.prod(row['shape']) * row['weight_bits']
        assert bits / 8 <= codes < row['payload_bytes'] and row['name'] in packed.description[
            'layers']
    assert found['float_leftovers'] == {'model.norm.weight': 28, 'model.norm.bias': 28,
                                        'model.float_conv.weight': 120, 'model.float_conv.bias': 20}
    assert sum(row['payload_bytes'] for row in rows.values()) + 196 >= packed.payload_bytes
    assert (found['calibration_images'], found['calibration_seed']) == (4, 0)
    assert found['versions']['torch'] and found['folded_batch_norms'] == 1
    weights = sum(math.prod(row['shape']) for row in rows.values())
    assert found['weights'] == weights
    assert found['mean_weight_bits'] * weights == pytest.approx(sum(
        math.prod(row['shape']) * row['weight_bits'] for row in rows.values()))


def test_the_table_has_a_line_a_layer_and_the_totals(inspect):
    code, printed = inspect(FILES[1])
    lines = printed.out.splitlines()
    assert code == 0 and printed.err == ''
    assert lines[0].split() == ['Layer', 'Kind', 'Shape', 'Bits', 'Input', 'bits', 'Input', 'mode',
                                'Output', 'bits', 'Bytes']
    assert lines[2].split() == ['stem', 'conv2d', '7x3x3x3', '8', 'float', 'float', '245']
    assert lines[3].split() == ['depthwise', 'conv2d', '7x1x3x3', '5', '4', 'per_channel',
                                'float', '154']
    text = '\n'.join(lines[9:])
    for part in ('7 layers, 893 weights of 4.32 bits', '1 batch norms folded',
                 f'payload {read_checkpoint(FILES[1]).payload_bytes:,} bytes, file '
                 f'{FILES[1].stat().st_size:,} bytes', 'format version 2',
                 '4 calibration images, seed 0', 'sha256', 'mmbitsplit 0.1.0'):
        assert part in text


def test_several_widths_are_listed(inspect):
    code, printed = inspect(FILES[-1])
    lines = printed.out.splitlines()
    packed = read_checkpoint(FILES[-1])
    assert code == 0
    assert lines[3].split()[:9] == ['depthwise', 'conv2d', '7x1x3x3', '2', '3', '4', '5', '2', '3']
    last = [line for line in lines if line.startswith(('narrowest widths', 'width '))]
    assert [line.split()[1] for line in last] == ['widths', '3', '4', '5', '6', '7', '8']
    assert last[-1].endswith(f' {packed.payload_bytes:,} with all that it needs')
    found = json.loads(inspect(FILES[-1], '--json')[1].out)
    assert found['width_bytes']['8'] == packed.width_bytes[8] and found['format_version'] == FORMAT
    plan = json.loads(inspect(FILES[-1], '--plan')[1].out)
    assert [row['weight_bits'] for row in plan['layers']] == [8, 5, 3, 3, 3, 3, 8]


def test_a_model_without_quantized_layers_and_layers_of_two_names(tmp_path, inspect):
    torch.save(pack_checkpoint({'model.weight': torch.zeros(3)}, {'layers': {}, 'folded': []},
                               {}), tmp_path / 'a.pth')
    code, printed = inspect(tmp_path / 'a.pth', '--json')
    assert code == 0 and json.loads(printed.out)['float_leftovers'] == {'model.weight': 12}
    assert inspect(tmp_path / 'a.pth')[0] == 0
    packed = read_checkpoint(FILES[1])
    again = {name.replace('head', 'tail'): value for name, value in packed.state.items()
             if '.head.' in name}
    both = pack_checkpoint({**packed.state, **again}, packed.description, packed.meta)
    assert both['state_dict'][PAYLOAD_KEY].numel() == packed.payload_bytes
    torch.save(both, tmp_path / 'b.pth')
    assert len(json.loads(inspect(tmp_path / 'b.pth', '--json')[1].out)['float_leftovers']) == 4


def test_quantized_outputs_are_told(tmp_path, inspect):
    packed = read_checkpoint(FILES[1])
    packed.description['layers']['expand']['output'] = {
        'size': 1, 'quant_min': -128, 'quant_max': 127, 'unit': False}
    torch.save(pack_checkpoint(packed.state, packed.description, {}), tmp_path / 'a.pth')
    rows = json.loads(inspect(tmp_path / 'a.pth', '--json')[1].out)['layers']
    assert [row['output_bits'] for row in rows] == [None, None, 8, None, None, None, None]
    line, = [line for line in inspect(tmp_path / 'a.pth')[1].out.splitlines()
             if line.startswith('expand')]
    assert line.split()[-3:] == ['ecaq', '8', '166']


def test_errors_are_one_line(tmp_path, inspect):
    (tmp_path / 'cut.pth').write_bytes(FILES[1].read_bytes()[:3000])
    for path, message in ((tmp_path / 'cut.pth', 'is truncated, damaged or no checkpoint'),
                          (tmp_path / 'none.pth', 'does not exist'),
                          (PROJECT / 'demo/weights/classifier_digits_float.pth',
                           'no quantization plan')):
        code, printed = inspect(path)
        assert code == 2 and printed.out == '' and printed.err.count('\n') == 1
        assert printed.err.startswith('error: ') and message in printed.err
    with pytest.raises(ValueError, match='truncated'):
        inspect(tmp_path / 'cut.pth', '--debug')


BLOCKED = ('import sys, runpy; sys.path.insert(0, "."); sys.argv = sys.argv[1:]; '
           'sys.modules.update(dict.fromkeys(("mmengine", "mmcv", "mmdet", "mmpretrain"))); ')


@pytest.mark.parametrize('run, args', [
    ('runpy.run_path(sys.argv[0], run_name="__main__")', ['tools/inspect_checkpoint.py']),
    ('runpy.run_module("mmbitsplit", run_name="__main__")', ['mmbitsplit', 'inspect'])])
def test_it_runs_with_torch_alone(run, args):
    """Where OpenMMLab cannot be imported at all."""
    done = subprocess.run([sys.executable, '-c', BLOCKED + run, *args, str(FILES[1])],
                          cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'depthwise' in done.stdout


def test_the_plan_is_one_that_quantizing_takes(inspect):
    code, printed = inspect(FILES[0], '--plan')
    rows = read_plan(json.loads(printed.out)).rows
    assert code == 0 and rows['depthwise'].weight_bits == 5 and rows['stem'].input_bits is None
    assert rows['depthwise'].activation == {'mode': 'per_channel'}
    assert '4.32 bits on average (3 to 8)' in inspect(FILES[0])[1].out
