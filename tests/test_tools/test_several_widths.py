"""One file of several widths through the command line: evaluated, switched, exported, split."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmbitsplit.apis import load_quantized

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).resolve().parents[2]
CONFIG = '''
_base_ = ['{project}/configs/demo/classifier_digits_w4a8.py']
data_root = '{project}/data/digits/'
model = dict(
    backbone=dict(base_channels=8, stem_channels=8, num_stages=1, out_indices=(0,), strides=(1,),
                  dilations=(1,)),
    head=dict(in_channels=8, topk=(1, 2, 3, 4, 5)))
test_evaluator = dict(topk=(1, 2, 3, 4, 5))
load_from = None
quantization = dict(
    activation=dict(mode='per_tensor'),
    method=dict(_delete_=True, type='NestedBitSplit', widths=[2, 3, 8], effort='fast'),
    calibration=dict(num_images=8, batch_size=4, rows_per_layer=128))
'''
MODULE = '-m', 'mmbitsplit'


@pytest.fixture(scope='module')
def made(tmp_path_factory, run_tool):
    """A tiny classifier of random weights with three widths; its figures by the first run alone."""
    folder = tmp_path_factory.mktemp('several')
    config, work_dir = folder / 'tiny.py', folder / 'run'
    classes = folder / 'data/cls_val'
    for label in range(10):
        (classes / str(label)).mkdir(parents=True)
        for picture in sorted((PROJECT / 'data/digits/cls_val' / str(label)).iterdir())[:20]:
            (classes / str(label) / picture.name).symlink_to(picture)
    config.write_text(CONFIG.format(project=PROJECT))
    quantize = ['quantize', config, '--untrained', '--work-dir', work_dir, '--cfg-options',
                f'test_dataloader.dataset.data_root={folder}/data/']

    def run(*args, fails=False):
        done = run_tool(*MODULE, *args)
        assert bool(done.returncode) == fails, done.stderr[-2000:]
        return done.stderr if fails else done.stdout

    def test(checkpoint, *args):
        run('test', work_dir / 'quantized_config.py', checkpoint, '--work-dir', folder / 'test',
            '--out', folder / 'metrics.json', *args)
        return json.loads((folder / 'metrics.json').read_text())

    return SimpleNamespace(folder=folder, work_dir=work_dir, quantize=quantize, run=run, test=test,
                           checkpoint=work_dir / 'quantized.pth', said=run(*quantize))


@pytest.fixture(scope='module')
def rows(made):
    """Of the finished run, evaluated afterwards."""
    before = made.checkpoint.read_bytes()
    said = made.run(*made.quantize, '--resume', '--evaluate-widths')
    results = json.loads((made.work_dir / 'results.json').read_text())
    assert made.checkpoint.read_bytes() == before
    assert [f"W{row['weight_bits']}A{row['activation_bits']}" for row in results['widths']] == [
        'W2A8', 'W3A8', 'W8A8']
    assert all(f"| {name} " in said for name in ('W2A8', 'W3A8', 'W8A8'))
    assert results['widths'][-1]['quantized'] == results['quantized']
    return {row['weight_bits']: row['quantized'] for row in results['widths']}


def test_other_widths_are_evaluated_where_it_is_asked_for(made, rows):
    assert '--evaluate-widths' in made.said and 'W2A8' not in made.said
    said = made.run(*made.quantize, '--evaluate-widths', '--method', 'RoundToNearest', fails=True)
    assert 'RoundToNearest' in said and 'single width' in said


def test_bits_and_plans_give_the_figures_of_the_run(made, rows):
    layers = json.loads((made.work_dir / 'layers.json').read_text())['layers']
    plan = made.folder / 'all_of_3.json'
    plan.write_text(json.dumps({'layers': [
        {'name': row['name'], 'weight_bits': 3} for row in layers if row['width_errors']]}))
    assert made.test(made.checkpoint) == rows[8]
    assert made.test(made.checkpoint, '--bits', 'W2A8') == rows[2]
    assert made.test(made.checkpoint, '--plan', plan) == rows[3]


def test_an_exported_width_computes_what_torch_does_at_it(made):
    onnxruntime = pytest.importorskip('onnxruntime')
    config, image = made.work_dir / 'quantized_config.py', torch.rand(1, 3, 32, 32)
    model = load_quantized(config, made.checkpoint, bits=2)
    wanted = model(image).detach().numpy()
    model.set_bits(8)
    far = np.abs(model(image).detach().numpy() - wanted).max()
    made.run('export', config, made.checkpoint, '--bits', '2', '--shape', '32', '32', '--output',
             made.folder / 'onnx')
    options = onnxruntime.SessionOptions()  # in float: some processors' integers saturate
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.folder / 'onnx/model.onnx', options,
                                           providers=['CPUExecutionProvider'])
    found, = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert np.abs(found - wanted).max() < far / 5


def test_a_split_file_is_joined_to_as_many_widths_as_wanted(made, rows):
    parts = made.folder / 'parts'
    made.run('split', made.checkpoint, '--output', parts)
    base, *residuals = sorted(parts.iterdir(), key=lambda path: (path.suffix != '.pth', path.name))
    assert len(residuals) == 2
    some, whole = made.folder / 'some.pth', made.folder / 'whole.pth'
    made.run('split', base, '--join', *residuals[:1], '--output', some)
    made.run('split', base, '--join', *residuals, '--output', whole)
    assert made.test(some) == rows[3] and made.test(base) == rows[2]
    states = [load_quantized(made.work_dir / 'quantized_config.py', path).state_dict()
              for path in (whole, made.checkpoint)]
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())
