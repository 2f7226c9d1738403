"""What a user gets wrong is one line on stderr and exit code 2."""

import importlib.util
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/retinanet_digits_w4a8.py'


@pytest.fixture
def call_main(monkeypatch, capsys):
    """Runs a tool's main() in this process, with no Runner to be built."""
    from mmengine.runner import Runner

    def must_not_be_built(cfg):
        raise AssertionError('a Runner was built')

    def call(tool, *args):
        spec = importlib.util.spec_from_file_location(f'tool_{tool}', PROJECT / f'tools/{tool}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        code = module.main()
        return code, capsys.readouterr()

    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(Runner, 'from_cfg', must_not_be_built)
    return call


@pytest.mark.parametrize('options, message', [
    (['--cfg-options', 'quantization.weight.nbits=4'],
     "Unknown key 'nbits' in quantization.weight: did you mean 'num_bits'?"),
    (['--cfg-options', 'quantization.activation.mode=ecq'], "mode='ecq' is not known"),
    (['--cfg-options', 'quantization.method.type=Bitsplit'], "did you mean 'BitSplit'"),
    (['--method', 'KLDivergance'], "did you mean 'KLDivergence'"),
    (['--method', 'LAPQ', '--cfg-options', 'quantization.method.norm=2'], "did you mean 'norms'"),
    (['--method', 'MSE', '--cfg-options', 'quantization.calibration.num_images=0'],
     'num_images=0: inputs are to be quantized'),
    (['--cfg-options', 'quantization.calibration.num_images=0'],
     'num_images=0: BitSplit with these options chooses codes on calibration images'),
    (['--weight-bits', '9'], 'num_bits=9 is not supported; allowed is an integer from 2 to 8'),
    (['--activation-bits', '1'], 'num_bits=1 is not supported'),
    (['--plan', 'no/such.json'],
     'The plan no/such.json cannot be read: there is no such file. Give the plan.json'),
    (['--seed', '-1'], 'seed=-1 is not supported'),
    (['no/such/weights.pth'], 'no/such/weights.pth does not exist'),
    (['--cfg-options', 'train_dataloader.dataset.data_root=no/digits/'],
     'no/digits/ does not exist; the calibration set'),
])
def test_one_line_and_exit_code_2(options, message, call_main, tmp_path):
    code, printed = call_main('quantize', CONFIG, *options, '--work-dir', tmp_path)
    assert code == 2
    lines = [line for line in printed.err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and message in lines[0]
    assert 'Traceback' not in printed.err and printed.out == ''
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(call_main, tmp_path):
    with pytest.raises(ValueError, match='num_bits=9'):
        call_main('quantize', CONFIG, '--weight-bits', 9, '--debug', '--work-dir', tmp_path)


def test_a_work_dir_that_is_a_file(call_main, tmp_path):
    (tmp_path / 'file').write_text('')
    code, printed = call_main('quantize', CONFIG, '--work-dir', tmp_path / 'file')
    assert code == 2 and 'cannot be written' in printed.err


def test_a_config_that_does_not_exist_or_does_not_quantize(call_main, tmp_path):
    code, printed = call_main('quantize', 'configs/no_such.py', '--work-dir', tmp_path)
    assert code == 2 and printed.err.startswith('error: ') and 'no_such.py' in printed.err
    code, printed = call_main('quantize', 'configs/demo/retinanet_digits_float.py',
                              '--work-dir', tmp_path)
    assert code == 2 and "no 'quantization' dict" in printed.err


def test_the_test_tool_without_its_checkpoint(call_main, tmp_path):
    code, printed = call_main('test', CONFIG, tmp_path / 'none.pth', '--work-dir', tmp_path)
    assert code == 2 and printed.err.startswith('error: ') and 'none.pth' in printed.err


def test_the_process_ends_with_exit_code_2(run_tool, tmp_path):
    done = run_tool('tools/quantize.py', CONFIG, 'no/such/weights.pth', '--work-dir', tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'no/such/weights.pth' in errors[0]
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'results.json').exists()


def test_a_config_that_does_not_exist_is_answered_with_the_nearest(run_tool):
    done = run_tool('tools/quantize.py', 'configs/retinanet_r50_w4a9.py')
    assert done.returncode == 2 and "did you mean 'retinanet_r50_w4a8.py'?" in done.stderr
    done = run_tool('tools/quantize.py', 'nowhere/x.py')
    assert done.returncode == 2 and 'nor does its folder' in done.stderr
