"""What users get wrong: one line, status 2, and nothing is computed before it is said."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmbitsplit.cli.main import main

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/classifier_digits_w4a8.py'
FLOAT = 'configs/demo/classifier_digits_float.py'
WEIGHTS = 'demo/weights/classifier_digits_float.pth'
OTHERS = 'demo/weights/retinanet_digits_float.pth'
PACKED = 'tests/packed_files/packed_v2.pth'


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a command that has to end with 2 and returns its one line."""
    monkeypatch.chdir(PROJECT)

    def call(*words) -> str:
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr().err
        errors = [line for line in printed.splitlines() if 'error: ' in line]
        assert code == 2 and len(errors) == 1 and 'Traceback' not in printed, printed
        return errors[0].split('error: ', 1)[1]
    yield call
    from mmengine.logging import MMLogger
    MMLogger._instance_dict.clear()  # they write to what this test captures


@pytest.fixture
def no_runner(monkeypatch):
    from mmengine.runner import Runner

    def must_not_be_built(cfg):
        raise AssertionError('a Runner was built')
    monkeypatch.setattr(Runner, 'from_cfg', must_not_be_built)


@pytest.fixture
def quantized_config(tmp_path):
    """A config that loads a quantized checkpoint, of the demo's classifier."""
    from mmengine.config import Config

    from mmbitsplit.engine.results.artifacts import quantized_config as make
    path = tmp_path / 'quantized_config.py'
    path.write_text(make(Config.fromfile(PROJECT / CONFIG)).pretty_text)
    return path


def test_what_is_no_config(refused, no_runner, tmp_path):
    (tmp_path / 'notes.txt').write_text('hello')
    (tmp_path / 'empty.py').write_text('x = 1\n')
    for command, more in (('quantize', ()), ('test', (WEIGHTS,)), ('sensitivity', ()),
                          ('test-onnx', (tmp_path,))):
        assert f'{tmp_path} is a folder' in refused(command, tmp_path, *more)
        assert 'allowed are files that end in .py' in refused(
            command, tmp_path / 'notes.txt', *more)
        assert "has no 'model' dict" in refused(command, tmp_path / 'empty.py', *more)
    assert 'is a folder' in refused('export', tmp_path, PACKED)


def test_a_request_that_is_no_dict(refused, no_runner, tmp_path):
    said = refused('quantize', CONFIG, '--cfg-options', 'quantization=4', '--work-dir', tmp_path)
    assert said.startswith('quantization=4 is not supported; it must be a dict')


def test_a_folder_where_a_checkpoint_belongs(refused, no_runner, tmp_path, quantized_config):
    for words in (('quantize', CONFIG, tmp_path), ('test', FLOAT, tmp_path),
                  ('inspect', tmp_path), ('export', quantized_config, tmp_path)):
        assert f'{tmp_path} is a folder, not a file; ' in refused(*words)


def test_a_model_is_not_evaluated_with_another_s_weights(refused, tmp_path):
    """mmengine would warn, leave the model at random, and print figures."""
    for config in (FLOAT, CONFIG):
        words = ('--work-dir', tmp_path)
        assert 'does not fit the model' in refused('test', config, OTHERS, *words)
        assert 'is a quantized checkpoint' in refused('test', config, PACKED, *words)


def test_misspelled_types_of_a_config(refused, tmp_path):
    words = ('quantize', CONFIG, '--work-dir', tmp_path, '--cfg-options')
    assert "did you mean 'ImageClassifier'?" in refused(*words, 'model.type=ImageClasifier')
    assert "the argument 'depht'" in refused(*words, 'model.backbone.depht=18')


def test_a_config_without_an_evaluation(refused, tmp_path):
    path = tmp_path / 'blind.py'
    path.write_text(f"_base_ = '{PROJECT / CONFIG}'\ntest_dataloader = None\n"
                    'test_evaluator = None\ntest_cfg = None\n')
    for words in (('quantize', path), ('test', path, WEIGHTS)):
        said = refused(*words, '--work-dir', tmp_path / 'run')
        assert 'The config has no ' in said and 'test_dataloader' in said


def test_places_that_cannot_be_written_are_told_first(refused, no_runner, tmp_path):
    (tmp_path / 'file').write_text('')
    words = ('test', FLOAT, WEIGHTS, '--work-dir')
    assert 'cannot be written' in refused(*words, tmp_path / 'file')
    assert 'is a folder; name a file' in refused(*words, tmp_path / 'run', '--out', tmp_path)
    assert 'cannot be written' in refused(*words, tmp_path / 'run', '--out',
                                          tmp_path / 'file/x.json')


def test_the_data_of_an_evaluation_is_looked_for_first(refused, no_runner, tmp_path):
    assert '/nowhere does not exist; the evaluation set' in refused(
        'test', FLOAT, WEIGHTS, '--work-dir', tmp_path, '--cfg-options',
        'test_dataloader.dataset.data_root=/nowhere')


def test_a_place_that_cannot_be_exported_to(refused, monkeypatch, tmp_path):
    import mmbitsplit.apis

    def must_not_be_called(*args, **kwargs):
        raise AssertionError('exported')
    monkeypatch.setattr(mmbitsplit.apis, 'load_quantized', lambda *files, **how: SimpleNamespace(
        data_preprocessor=None))
    monkeypatch.setattr(mmbitsplit.apis, 'export_onnx', must_not_be_called)
    (tmp_path / 'file').write_text('')
    assert f'{tmp_path / "file"} cannot be written' in refused(
        'export', FLOAT, PACKED, '--shape', 32, 32, '--output', tmp_path / 'file')


def test_export_wants_the_config_beside_the_checkpoint(refused):
    assert "is 'ImageClassifier', not 'mmbitsplit.QuantizedModel'" in refused(
        'export', CONFIG, PACKED)


@pytest.mark.parametrize('size', [('0', '0'), ('-32', '32'), ('32', '1.5')])
def test_sizes_and_counts_are_from_1(size, refused):
    assert 'allowed are integers from 1' in refused('export', 'a.py', 'b.pth', '--shape', *size)
    assert 'allowed are integers from 1' in refused(
        'test-onnx', 'a.py', 'b', '--threads', min(size))


@pytest.mark.parametrize('command', ['report', 'compare'])
def test_a_work_dir_that_holds_something_else(command, refused, tmp_path):
    for name, text, message in (('results.json', '{}', "it holds no 'activation_bits'"),
                                ('results.json', '[]', "it holds no 'activation_bits'"),
                                ('results.json', '{', 'cannot be read')):
        (tmp_path / name).write_text(text)
        said = refused(command, tmp_path)
        assert f'{tmp_path / name} cannot be read' in said and message in said
    (tmp_path / 'results.json').unlink()
    assert 'there is none' in refused(command, tmp_path)


def test_slips_in_the_options_of_a_grid(refused, no_runner, tmp_path):
    assert "did you mean 'quantization'?" in refused(
        'paper-tables', '--table', 3, '--model', 'classifier', '--work-dir', tmp_path,
        '--cfg-options', 'quantisation.weight.num_bits=3')


def test_sensitivity_of_nothing(refused, no_runner, tmp_path):
    assert 'both empty' in refused('sensitivity', CONFIG, '--weight-bits', '--work-dir', tmp_path)


def test_sensitivity_of_layers_whose_inputs_stay_float(refused, tmp_path):
    assert 'there is nothing to try' in refused(
        'sensitivity', CONFIG, '--work-dir', tmp_path, '--images', 2, '--weight-bits',
        '--activation-bits', 4, '--layers', 'backbone.conv1')


WITHOUT = ('import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(","))); '
           'from mmbitsplit.cli.main import start; start()')


@pytest.mark.parametrize('packages, words, said', [
    ('mmengine', ('quantize', CONFIG), "'mmengine' is not installed"),
    ('mmengine', ('test', FLOAT, WEIGHTS), "'mmbitsplit[mm]'"),
    ('plotly,plotly.offline', ('report', 'RUN'), "'mmbitsplit[report]'"),
    ('PIL', ('report', 'RUN'), "'mmbitsplit[report]'"),
    ('plotly,plotly.offline', ('compare', 'RUN'), "'mmbitsplit[report]'"),
])
def test_a_package_that_is_missing_is_named_with_its_extra(packages, words, said, tmp_path):
    (tmp_path / 'results.json').write_text(json.dumps({
        'config': 'a.py', 'method': {'type': 'BitSplit'}, 'weight_bits': 4, 'activation_bits': 8,
        'float': {'accuracy/top1': 90.0}, 'quantized': {'accuracy/top1': 89.0},
        'drop': {'accuracy/top1': 1.0}, 'size_bytes': {'float': 8, 'quantized_checkpoint': 1},
        'seconds': {'calibration': 3.0, 'solve': 1.0}, 'peak_rss_bytes': 1,
        'calibration': {'image_ids': [], 'seed': 0}, 'versions': {}}))
    (tmp_path / 'layers.json').write_text('{"layers": []}')
    words = [str(tmp_path) if word == 'RUN' else word for word in words]
    done = subprocess.run([sys.executable, '-c', WITHOUT, packages, *words], cwd=PROJECT,
                          text=True, capture_output=True)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and said in errors[0]
    assert 'Traceback' not in done.stderr
