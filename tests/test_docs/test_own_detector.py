"""The page about a detector of one's own: its files are run, and what it says of the run is so."""

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmbitsplit.apis import load_quantized, quantize_config

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLE = PROJECT / 'docs/examples/own_detector'
IMAGES = 6


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Results and work directory of the example with random weights and few images."""
    folder = tmp_path_factory.mktemp('own_detector')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setattr(sys, 'path', [str(EXAMPLE), *sys.path])
        cfg = Config.fromfile(EXAMPLE / 'twig_retinanet_w4a8.py')
        annotations = json.loads(
            (PROJECT / 'data/digits/annotations/instances_val.json').read_text())
        annotations['images'] = annotations['images'][:IMAGES]
        kept = {image['id'] for image in annotations['images']}
        annotations['annotations'] = [row for row in annotations['annotations']
                                      if row['image_id'] in kept]
        (folder / 'val.json').write_text(json.dumps(annotations))
        weights = folder / 'twig.pth'
        torch.save({'state_dict': _float_model(cfg).state_dict()}, weights)
        cfg.merge_from_dict({
            'work_dir': str(folder / 'work'), 'load_from': str(weights),
            'test_dataloader.dataset.ann_file': str(folder / 'val.json'),
            'test_evaluator.ann_file': str(folder / 'val.json'),
            'quantization.calibration.num_images': IMAGES,
            'quantization.calibration.rows_per_layer': 2048})
        results = quantize_config(cfg, config_name='twig')
        yield results, folder / 'work'
    sys.modules.pop('twig_net', None)


def _float_model(cfg):
    """The example's model with random weights, as if it had been trained."""
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope='module')
def layers(run):
    return json.loads((run[1] / 'layers.json').read_text())


def test_roles_are_as_the_page_says(layers):
    roles = {row['name']: row['role'] for row in layers['layers']}
    assert roles['backbone.halve.0.0'] == 'first'
    assert roles['bbox_head.retina_cls'] == roles['bbox_head.retina_reg'] == 'last'
    assert set(roles.values()) == {'first', 'inner', 'last'}


def test_the_shared_layer_is_solved_on_all_its_calls(layers):
    gate = next(row for row in layers['layers'] if row['name'] == 'backbone.gate')
    assert gate['calls'] == 4 * IMAGES


def test_what_stays_float_is_listed_and_everything_else_is_quantized(layers):
    assert all('norm' in row['name'] for row in layers['kept_float'])
    for end in ('.depthwise', '.neighbours.conv_0'):
        assert sum(row['name'].endswith(end) for row in layers['layers']) == 8


def test_no_layer_is_worse_than_the_guard_allows_and_most_are_better(layers):
    inner = [row for row in layers['layers'] if row['role'] == 'inner']
    better = [row for row in inner if row['error'] < row['error_rounding']]
    assert len(better) > 0.8 * len(inner)


def test_patterns_of_the_page_match_layers(layers):
    import fnmatch
    names = [row['name'] for row in layers['layers']]
    for pattern in ('backbone.gate', 'bbox_head.reg_convs.*'):
        assert pattern in (PROJECT / 'docs/own_detector.md').read_text()
        assert fnmatch.filter(names, pattern), pattern


def test_the_checkpoint_loads_and_computes(run):
    model = load_quantized(run[1] / 'quantized_config.py', run[1] / 'quantized.pth')
    outputs = model.model.bbox_head(model.model.neck(model.model.backbone(
        torch.rand(1, 3, 159, 160))))
    assert all(torch.isfinite(level).all() for part in outputs for level in part)


def test_the_page_of_files_explains_every_key_of_the_results(run):
    page = (PROJECT / 'docs/files.md').read_text()
    table = page.split('## `results.json`')[1].split('\n## ')[0]
    explained = {name for row in table.splitlines() if row.startswith('| `')
                 for name in row.split('|')[1].replace('`', '').replace(' ', '').split(',')}
    assert explained == {*run[0], 'untrained', 'refinement', 'tuning', 'budget',
                                     'integer', 'widths'}  # of other runs
    for part in ('seconds', 'size_bytes', 'calibration'):
        row = next(line for line in table.splitlines() if line.startswith(f'| `{part}`'))
        assert all(f'`{name}`' in row for name in run[0][part]), part


def test_the_page_of_files_names_every_file_of_the_run(run):
    page = (PROJECT / 'docs/files.md').read_text()
    written = {path.name for path in run[1].iterdir()}
    # mmengine's own: a folder of logs named by the time, and the config as it was read.
    ours = {name for name in written if not name[0].isdigit() and name != 'twig_retinanet_w4a8.py'}
    assert ours
    assert all(f'`{name}' in page for name in ours), ours


def test_the_quantization_config_keeps_the_imports_of_the_detector_s():
    cfg = Config.fromfile(EXAMPLE / 'twig_retinanet_w4a8.py', import_custom_modules=False)
    assert cfg.custom_imports.imports == ['twig_net'] and cfg.quantization.weight.num_bits == 4
    assert cfg.runner_type == 'mmbitsplit.QuantizationRunner'
