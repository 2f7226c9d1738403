"""Requests that cannot work are refused early; Mask R-CNN is quantized whole."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint

from mmbitsplit.apis import quantize_config
from mmbitsplit.calibration import calibrate
from mmbitsplit.engine import QuantizationHook, QuantizedModel
from mmbitsplit.engine.data.calibration_data import load_calibration_data
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.quantize import read_spec
from mmbitsplit.models import QuantizedLayer, describe
from mmbitsplit.report import results_rows

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch, tmp_path):
    monkeypatch.chdir(PROJECT)
    def make(name='retinanet_digits_w4a8', **changes):
        cfg = Config.fromfile(f'configs/demo/{name}.py')
        cfg.merge_from_dict(changes)
        cfg.work_dir = str(tmp_path / 'work')
        return cfg

    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    return make


@pytest.fixture
def no_runner(monkeypatch):
    def must_not_be_built(cfg):
        raise AssertionError('a Runner was built')
    monkeypatch.setattr(Runner, 'from_cfg', must_not_be_built)


@pytest.mark.parametrize('changes, message', [
    ({'quantization.weight.nbits': 4}, 'nbits'),
    ({'quantization.method.type': 'Bitsplit'}, 'BitSplit'),
    ({'load_from': 'no/such.pth'}, 'no/such.pth does not exist'),
    ({'load_from': None}, 'No float weights'),
    ({'quantization.budget': dict(latency=0.5, latency_table='gone.csv')}, 'gone.csv'),
    ({'test_dataloader.dataset.ann_file': 'gone.json'}, 'gone.json does not exist'),
])
def test_nothing_is_built_before_the_request_is_checked(changes, message, demo, no_runner):
    cfg = demo(**changes)
    with pytest.raises(ValueError, match=message):
        quantize_config(cfg, config_name='demo')
    assert not Path(cfg.work_dir).exists()


def test_a_checkpoint_of_another_model_names_tensors(demo, monkeypatch):
    monkeypatch.setattr(Runner, 'test', lambda self: pytest.fail('it was evaluated'))
    cfg = demo(load_from='demo/weights/mask_rcnn_digits_float.pth')
    work_dir = Path(cfg.work_dir)
    work_dir.mkdir()
    (work_dir / 'results.json').write_text('an earlier run')
    with pytest.raises(ValueError, match=r'does not fit the model: \d+ tensors are missing \(such '
                                         r'as bbox_head\..*\d+ have another shape \(such as '
                                         r'backbone\.'):
        quantize_config(cfg, config_name='demo')
    assert not (work_dir / 'results.json').exists()


@pytest.fixture
def few_digits(demo, tmp_path):
    """Quantizes the demo's classifier, evaluated on a picture a class."""
    classes = tmp_path / 'data/cls_val'
    for label in range(10):
        (classes / str(label)).mkdir(parents=True)
        picture = min((PROJECT / 'data/digits/cls_val' / str(label)).iterdir())
        (classes / str(label) / picture.name).symlink_to(picture)
    def run(report=False, resume=False, **changes):
        cfg = demo('classifier_digits_w4a8', **{
            'test_dataloader.dataset.data_root': f'{tmp_path}/data/',
            'quantization.calibration.num_images': 8,
            'quantization.calibration.rows_per_layer': 256, **changes})
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return quantize_config(cfg, config_name='demo', report=report,
                                   resume=resume), Path(cfg.work_dir)
    return run


@pytest.mark.parametrize('report', [True, False])
def test_a_report_is_left_where_it_is_asked_for(report, few_digits):
    results, work_dir = few_digits(report)
    files = {path.name for path in work_dir.iterdir()}
    assert {'results.json', 'layers.json', 'quantized.pth'} <= files
    assert ({'report.html', 'report_data.json'} <= files) == report
    assert report or not [name for name in files if name.startswith('report')]
    assert results['float'].keys() == results['quantized'].keys() == {'accuracy/top1'}


@pytest.mark.slow
def test_the_plan_of_a_run_is_there_early_can_be_edited_and_given_back(few_digits, monkeypatch,
                                                                       tmp_path):
    plan, work_dir = tmp_path / 'mine.json', tmp_path / 'work'

    def look(layer):  # the first that is solved
        assert (work_dir / 'plan.json').is_file() and not (work_dir / 'layers.json').exists()
        plan.write_text((work_dir / 'plan.json').read_text())
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr('mmbitsplit.engine.files.layer_log.layer_row', look)
        with pytest.raises(KeyboardInterrupt):
            few_digits()
    given = json.loads(plan.read_text())
    assert [row['weight_bits'] for row in given['layers']] == [8, *[4] * 19, 8]
    given['layers'][1]['weight_bits'], given['layers'][2]['weight_bits'] = 2, None
    plan.write_text(json.dumps(given))
    results, _ = few_digits(**{'quantization.plan': str(plan), 'quantization.weight.num_bits': 5,
                               'quantization.method': dict(type='RoundToNearest')})
    layers = json.loads((work_dir / 'layers.json').read_text())
    wanted = [row for row in given['layers'] if row['weight_bits'] is not None]
    assert [(row['name'], row['weight_bits']) for row in layers['layers']] == [
        (row['name'], row['weight_bits']) for row in wanted]
    assert [row['name'] for row in layers['kept_float'] if row['requested']] == [
        given['layers'][2]['name']]
    assert {row['name']: row['weight_bits'] for row in json.loads(
        (work_dir / 'plan.json').read_text())['layers']} == {
        row['name']: row['weight_bits'] for row in given['layers']}
    bits = results['bits']
    assert not bits['uniform'] and bits['weight']['min'] == 2 and bits['weight']['max'] == 8
    assert results_rows(results)[0][1] == f"W{bits['weight']['mean']:.1f} (2-8) A8"


BUDGET = {'quantization.method': dict(type='RoundToNearest'),
          'quantization.calibration.batch_size': 2}


@pytest.mark.slow
def test_a_budget_leaves_its_plan_and_what_it_was_chosen_from(few_digits):
    results, work_dir = few_digits(report=True, **BUDGET, **{'quantization.budget': dict(
        weight_bits=3.5, widths=[2, 3, 4, 8], sensitivity='error')})
    budget = json.loads((work_dir / 'budget.json').read_text())
    chosen = budget['plans'][budget['chosen']]
    layers = json.loads((work_dir / 'layers.json').read_text())['layers']
    assert {row['name']: f"W{row['weight_bits']}" for row in layers} == chosen['widths']
    assert {row['name']: f"W{row['weight_bits']}" for row in json.loads(
        (work_dir / 'plan.json').read_text())['layers']} == chosen['widths']
    assert len((work_dir / 'layers.jsonl').read_text().splitlines()) == len(layers)
    free = [row for row in layers if row['role'] == 'inner']
    sizes = [math.prod(row['shape']) for row in free]
    mean = sum(row['weight_bits'] * size for row, size in zip(free, sizes)) / sum(sizes)
    assert mean == pytest.approx(chosen['costs']['weight_bits']) and 3 < mean <= 3.5
    assert results['budget']['plans'][budget['chosen']]['trial'] == chosen['trial']
    assert 'table' not in results['budget'] and (work_dir / 'report.html').is_file()
    # Planned, of the model in place and of the file.
    assert chosen['costs']['bytes'] == pytest.approx(chosen['trial']['payload'], rel=0.01)
    assert results['size_bytes']['quantized_payload'] == chosen['trial']['payload']


@pytest.mark.slow
def test_a_metric_is_kept_by_the_configs_evaluator_also_after_an_interruption(few_digits,
                                                                              monkeypatch):
    """Each plan is evaluated once, the chosen one too; what an interrupted run knew is kept."""
    request = {**BUDGET, 'quantization.budget': dict(
        max_drop=20, evaluations=3, widths=[2, 8], sensitivity='error')}
    tested, stop = [], 2  # the float model and a plan
    test = Runner.test

    def counting(self):
        tested.append(1)
        if len(tested) > stop:
            raise KeyboardInterrupt
        return test(self)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, 'test', counting)
        with pytest.raises(KeyboardInterrupt):
            few_digits(**request)
    before, stop = len(tested) - 1, 100
    tested.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Runner, 'test', counting)
        results, work_dir = few_digits(resume=True, **request)
    budget = results['budget']
    chosen = budget['plans'][budget['chosen']]['trial']
    again = chosen == budget['plans'][0]['trial']  # evaluated by the run that was interrupted
    assert before + len(tested) == 1 + len(budget['plans']) + again
    assert budget['held'] and chosen['drop'] <= 20
    assert results['quantized'] == chosen['metrics']
    assert results['drop']['accuracy/top1'] == pytest.approx(chosen['drop'])
    # What layers lose at each width stays, for another budget.
    assert sorted(path.name for path in (work_dir / 'journal').iterdir()) == [
        'header.json', 'widths']


def test_the_hook_wants_float_weights():
    class NoWeights:
        _has_loaded = False

    with pytest.raises(ValueError, match='no float weights'):
        QuantizationHook().before_test(NoWeights())


@pytest.fixture(scope='module')
def mask_rcnn():
    """The demo's Mask R-CNN quantized in process: config, prepared model, report, two images."""
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with pytest.MonkeyPatch.context() as patch, \
            DefaultScope.overwrite_default_scope('mmdet'):
        patch.chdir(PROJECT)
        cfg = Config.fromfile('configs/demo/mask_rcnn_digits_w4a8.py')
        cfg.quantization.calibration.update(num_images=4, rows_per_layer=2048)
        model = MODELS.build(cfg.model).eval()
        load_checkpoint(model, cfg.load_from, map_location='cpu')
        spec = read_spec(cfg)
        data = load_calibration_data(cfg, spec.calibration, [])
        prepared, report = calibrate(
            model, data.batches, spec, run=lambda model, batch: model.test_step(batch),
            replay_points=replay_points(model), labels=data.labels)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        from mmengine.dataset import pseudo_collate
        images = [pseudo_collate([dataset[index]]) for index in range(2)]
        yield cfg, prepared, report, images


def test_mask_rcnn_is_quantized_whole(mask_rcnn):
    _, prepared, report, _ = mask_rcnn
    names = {layer.name for layer in report.layers}
    for part in ('backbone.conv1', 'neck.fpn_convs.0.conv', 'rpn_head.rpn_conv',
                 'roi_head.bbox_head.shared_fcs.0', 'roi_head.bbox_head.shared_fcs.1',
                 'roi_head.mask_head.convs.0.conv', 'roi_head.mask_head.upsample'):
        assert part in names, part
    last = {layer.name for layer in report.layers if layer.role == 'last'}
    assert last == {'rpn_head.rpn_cls', 'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_cls',
                    'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits'}
    assert not report.kept_float
    assert all(isinstance(module, QuantizedLayer) for module in prepared.model.modules()
               if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d,
                                      torch.nn.ConvTranspose2d)))
    assert not any('predict_by_feat' in vars(module) for module in prepared.model.modules())
    for layer in report.layers:
        assert layer.error <= layer.error_rounding and layer.error < 0.3, layer.name


def test_mask_rcnn_reloads_exactly(mask_rcnn):
    cfg, prepared, _, images = mask_rcnn
    wrapper = QuantizedModel(prepared.model).eval()
    wrapper.note_description(describe(prepared))
    fresh = QuantizedModel(MODELS.build(cfg.model)).eval()
    fresh.load_state_dict(wrapper.state_dict())
    assert all(isinstance(fresh.get_submodule(f'model.{name}'), QuantizedLayer)
               for name in prepared.layers)
    found = 0
    for batch in images:
        with torch.no_grad():
            ours, theirs = (model.test_step(batch)[0].pred_instances for model in (wrapper, fresh))
        for name in ('bboxes', 'scores', 'labels', 'masks'):
            assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])), name
        found += int((ours.scores > 0.5).sum())
    assert found > 2
