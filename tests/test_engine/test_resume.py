"""What a run depends on is one plain value; a journal of anything else is refused by name."""

import copy
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmbitsplit.calibration.journal import JournalEntry
from mmbitsplit.engine.data.calibration_data import CalibrationData
from mmbitsplit.engine.results import resume
from mmbitsplit.engine.results.artifacts import CHECKPOINT, RESULTS
from mmbitsplit.engine.results.resume import (
    finished_results,
    identity,
    open_journal,
    weights_digest,
)
from mmbitsplit.engine.run.quantize import read_spec
from mmbitsplit.structures import LayerReport, LayerSolution

LOADER = dict(batch_size=2, dataset=dict(
    type='CocoDataset', data_root='data/', ann_file='val.json',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(160, 160))]))
CONFIG = dict(
    model=dict(type='ToyModel', depths=(1, 2), act=dict(type='ReLU', inplace=True)),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0]),
    quantization=dict(weight=dict(num_bits=4), overrides=[dict(match='head', skip=True)],
                      calibration=dict(num_images=3, memory_budget=2.0)),
    train_dataloader=dict(dataset=dict(type='CocoDataset', data_root='data/',
                                       ann_file='train.json')),
    test_dataloader=LOADER, test_evaluator=[dict(type='CocoMetric', metric=['bbox'])],
    test_cfg=dict(type='TestLoop'), work_dir='somewhere', optim_wrapper=dict(lr=0.1))


class Run:
    """A request that can be changed, and what identifies it."""

    def __init__(self, model: nn.Module, paths: list[str]):
        self.model, self.cfg = model, Config(copy.deepcopy(CONFIG))
        self.data = CalibrationData([], [], [7, 8, 9], paths)

    def change(self, path: str, value) -> None:
        self.cfg.merge_from_dict({path: value})

    def identity(self) -> dict:
        return identity(self.model, self.cfg, read_spec(self.cfg), self.data)


@pytest.fixture
def run(toy_model, tmp_path):
    paths = [tmp_path / f'{number}.png' for number in (7, 8, 9)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return Run(toy_model(), [*map(str, paths)])


def runner_of(run: Run, work_dir, log: list[str] | None = None) -> SimpleNamespace:
    logger = logging.Logger('test')
    if log is not None:
        handler = logging.Handler()
        handler.emit = lambda record: log.append(f'{record.levelname} {record.getMessage()}')
        logger.addHandler(handler)
    return SimpleNamespace(model=run.model, work_dir=str(work_dir), logger=logger)


def open_for(run: Run, work_dir, resume: bool = True, log: list[str] | None = None):
    return open_journal(runner_of(run, work_dir, log), run.cfg, read_spec(run.cfg), run.data,
                        resume)


def solved_layer(name: str) -> JournalEntry:
    solution = LayerSolution(codes=torch.ones(2, 3, dtype=torch.int8), num_bits=4,
                             weight_scale=torch.ones(2), bias=None, qparams=None)
    report = LayerReport(
        name=name, kind='linear', shape=(2, 3), role='inner', weight_bits=4,
        activation_bits=None, activation_mode=None, activation_symmetry=None, strength=None,
        weight_scale=(1.0, 1.0), activation_scale=None, error_rounding=0.2, error=0.1, sweeps=3,
        guard_taken=False, calls=1, rows=64, seconds=0.5)
    return JournalEntry(name, solution, report)


def finish(run: Run, work_dir) -> None:
    journal = open_for(run, work_dir, resume=False)
    journal.append(solved_layer('conv'))
    (work_dir / CHECKPOINT).write_bytes(b'')
    (work_dir / RESULTS).write_text('{"figures": 1.5}')
    journal.finish()


def test_it_is_json_and_the_same_every_time(run, toy_model):
    first = run.identity()
    assert json.loads(json.dumps(first)) == first == run.identity()
    again = Run(toy_model(), run.data.paths)  # as the next process has it
    assert again.identity() == first


def test_options_that_came_later_are_named_only_where_they_are_used(run):
    """So a journal begun before there were any is gone on with."""
    assert not {'placement', 'output_bits'} & set(run.identity()['quantization']['activation'])
    run.change('quantization.activation.placement', 'deploy')
    activation = run.identity()['quantization']['activation']
    assert activation['placement'] == 'deploy' and 'output_bits' not in activation


def test_the_memory_budget_counts_where_it_says_how_much_of_a_unit_is_kept(run):
    layers = run.identity()
    run.change('quantization.calibration.memory_budget', 3.0)
    assert run.identity() == layers
    run.change('quantization.method', dict(type='AdaRound'))
    assert run.identity()['quantization']['calibration']['memory_budget'] == 3.0
    run.change('quantization.calibration.memory_budget', None)
    assert 'memory_budget' not in run.identity()['quantization']['calibration']


def test_the_request_is_left_as_it_was(run):
    before, spec = run.cfg.pretty_text, read_spec(run.cfg)
    state = copy.deepcopy(run.model.state_dict())
    identity(run.model, run.cfg, spec, run.data)
    assert run.cfg.pretty_text == before and spec == read_spec(run.cfg)
    assert all(torch.equal(value, state[name])
               for name, value in run.model.state_dict().items())


@pytest.mark.parametrize('path, value, named', [
    ('quantization.weight.num_bits', 3, 'quantization.weight.num_bits is 3, the journal has 4'),
    ('quantization.activation.num_bits', None, 'quantization.activation.num_bits'),
    ('quantization.activation.strength', 0.5, 'quantization.activation.strength'),
    ('quantization.activation.placement', 'deploy', 'quantization.activation.placement'),
    ('quantization.activation.output_bits', 4, 'quantization.activation.output_bits'),
    ('quantization.first_last.weight_bits', 4, 'quantization.first_last.weight_bits'),
    ('quantization.method.type', 'RoundToNearest', 'quantization.method.type'),
    ('quantization.scope', 'backbone', 'quantization.scope'),
    ('quantization.overrides.0.match', 'conv', 'quantization.overrides[0].match'),
    ('quantization.calibration.seed', 5, 'quantization.calibration.seed'),
    ('quantization.calibration.rows_per_layer', 100, 'quantization.calibration.rows_per_layer'),
    ('quantization.calibration.holdout', 0.0, 'quantization.calibration.holdout'),
    ('quantization.calibration.batch_size', 3, 'quantization.calibration.batch_size'),
    ('quantization.calibration.unreached', 'float', 'quantization.calibration.unreached'),
    ('model.act.inplace', False, 'model.act.inplace is False, the journal has True'),
    ('model.depths', (2, 1), 'the 2 model.depths are in another order'),
    ('data_preprocessor.mean', [1.0, 2.0, 3.5], '1 of 3 data_preprocessor.mean differ'),
    ('train_dataloader.dataset.ann_file', 'other.json', 'calibration set.ann_file'),
    ('train_dataloader.dataset.data_root', 'other/', 'calibration set.data_root'),
    ('test_dataloader.dataset.ann_file', 'other.json',
     'evaluation.test_dataloader.dataset.ann_file'),
    ('test_dataloader.dataset.pipeline.1.scale', (80, 80), 'scale differ'),
    ('test_evaluator.0.metric', ['segm'], 'evaluation.test_evaluator[0].metric'),
    ('test_cfg.fp16', True, 'evaluation.test_cfg.fp16'),
])
def test_every_option_counts_and_is_named(path, value, named, run, tmp_path):
    before = run.identity()
    open_for(run, tmp_path)
    run.change(path, value)
    assert run.identity() != before
    with pytest.raises(ValueError, match='another one than this and cannot be resumed') as error:
        open_for(run, tmp_path)
    assert named in str(error.value) and '--resume' in str(error.value)


@pytest.mark.parametrize('path, value', [
    ('quantization.calibration.memory_budget', 9.0), ('work_dir', 'elsewhere'),
    ('optim_wrapper.lr', 0.2), ('train_dataloader.batch_size', 64)])
def test_what_has_no_effect_does_not_count(path, value, run, tmp_path):
    before = run.identity()
    open_for(run, tmp_path).append(solved_layer('conv'))
    run.change(path, value)
    assert run.identity() == before
    assert [entry.name for entry in open_for(run, tmp_path).entries] == ['conv']


def test_an_option_at_its_default_is_the_same_said_or_not(run):
    before = run.identity()
    run.change('quantization.activation.mode', 'ecaq')
    assert run.identity() == before


def test_what_the_plan_says_counts_wherever_its_file_lies(run, tmp_path):
    value = {'layers': [{'name': 'conv', 'weight_bits': 4}, {'name': 'middle', 'weight_bits': 3}]}
    assert 'plan' not in run.identity()['quantization']
    for name in ('one.json', 'two.json'):
        (tmp_path / name).write_text(json.dumps(value))
    run.change('quantization.plan', str(tmp_path / 'one.json'))
    open_for(run, tmp_path).append(solved_layer('conv'))
    run.change('quantization.plan', str(tmp_path / 'two.json'))
    assert len(open_for(run, tmp_path).entries) == 1
    value['layers'][1]['weight_bits'] = 2
    (tmp_path / 'two.json').write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r'plan.layers\[1\].weight_bits is 2, the journal has 3'):
        open_for(run, tmp_path)


def test_one_element_of_the_weights_counts(run, tmp_path):
    open_for(run, tmp_path)
    with torch.no_grad():
        run.model.middle.weight.view(-1)[5] += 1e-6
    with pytest.raises(ValueError, match=r'resumed: weights differ \(sha256 \w{8}… / \w{8}…\)\.'):
        open_for(run, tmp_path)


def test_one_statistic_of_a_batch_norm_counts(run):
    before = run.identity()
    run.model.bn.running_var[2] += 0.5
    assert run.identity() != before


@pytest.mark.parametrize('ids, named', [
    ([7, 8, 10], r'1 of 3 calibration images differ, such as 10 \(the journal has 9\)'),
    ([8, 7, 9], 'the 3 calibration images are in another order'),
    ([7, 8], 'calibration images has 2 items, the journal 3, only there such as 9')])
def test_the_calibration_images_count(ids, named, run, tmp_path):
    open_for(run, tmp_path)
    run.data = CalibrationData([], [], ids, run.data.paths)
    with pytest.raises(ValueError, match=named):
        open_for(run, tmp_path)


def test_other_pixels_under_the_same_names_count(run, tmp_path):
    open_for(run, tmp_path)
    with open(run.data.paths[1], 'ab') as file:
        file.write(b'.')
    with pytest.raises(ValueError, match=r'resumed: calibration files differ \(sha256'):
        open_for(run, tmp_path)


def test_images_that_are_no_local_files(run):
    run.data = CalibrationData([], [], [7, 8, 9], ['s3://bucket/7.png', '8', ''])
    assert run.identity() == run.identity()


def test_versions_count(run, tmp_path, monkeypatch):
    open_for(run, tmp_path)
    versions = resume.versions()
    monkeypatch.setattr(resume, 'versions', lambda: {**versions, 'torch': '1.0'})
    with pytest.raises(ValueError, match="resumed: versions.torch is '1.0', the journal has"):
        open_for(run, tmp_path)


def digest(**values: torch.Tensor) -> str:
    """Digest of a model with this state."""
    return weights_digest(SimpleNamespace(state_dict=lambda: values))


def test_the_digest_sees_names_dtypes_shapes_and_values():
    zeros = torch.zeros(2, 3)
    digests = [digest(), digest(a=zeros), digest(b=zeros), digest(a=zeros, b=zeros),
               digest(a=zeros.T), digest(a=zeros.flatten()), digest(a=zeros.int()),
               digest(a=zeros.half()), digest(a=zeros.bfloat16()), digest(a=-zeros),
               digest(a=zeros > 1), digest(a=zeros[:0]), digest(a=torch.tensor(0)),
               digest(a=torch.tensor(0.0))]
    assert len(set(digests)) == len(digests)
    assert all(len(value) == 64 for value in digests)


def test_the_digest_does_not_see_memory_layout_or_order():
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    wanted = digest(a=values, b=values[0])
    assert digest(b=nn.Parameter(values[0]), a=values.T.contiguous().T) == wanted
    assert digest(a=torch.cat([values, values])[4:], b=values[0].clone()) == wanted


def test_a_finished_run_gives_its_results(run, tmp_path):
    finish(run, tmp_path)
    journal = open_for(run, tmp_path)
    assert journal.finished and finished_results(journal, tmp_path) == {'figures': 1.5}
    anew = open_for(run, tmp_path, resume=False)
    assert finished_results(anew, tmp_path) is None and anew.entries == []
    assert finished_results(None, tmp_path) is None


@pytest.mark.parametrize('name', [RESULTS, CHECKPOINT])
def test_a_finished_run_without_its_files_is_run_again(name, run, tmp_path):
    finish(run, tmp_path)
    (tmp_path / name).unlink()
    journal = open_for(run, tmp_path)
    assert not journal.finished and finished_results(journal, tmp_path) is None
    assert not open_for(run, tmp_path).finished


def test_the_log_says_what_was_found(run, tmp_path):
    log: list[str] = []
    journal = open_for(run, tmp_path, resume=True, log=log)
    assert 'INFO' in log[-1] and 'no solved layers to take over' in log[-1]
    for name in ('conv', 'middle'):
        journal.append(solved_layer(name))
    assert len(open_for(run, tmp_path, log=log).entries) == 2
    assert log[-1].endswith('going on after 2 solved layers')
    path = tmp_path / 'journal' / '0001.layer'
    path.write_bytes(path.read_bytes()[:40])
    assert [entry.name for entry in open_for(run, tmp_path, log=log).entries] == ['conv']
    assert log[-2].startswith(f'WARNING mmbitsplit: {path} is truncated')
    assert log[-1].endswith('going on after 1 solved layers')


def test_a_refused_journal_is_left_alone(run, tmp_path):
    open_for(run, tmp_path).append(solved_layer('conv'))
    run.change('quantization.weight.num_bits', 3)
    with pytest.raises(ValueError, match='num_bits'):
        open_for(run, tmp_path)
    run.change('quantization.weight.num_bits', 4)
    assert [entry.name for entry in open_for(run, tmp_path).entries] == ['conv']


def test_functions_of_a_config_do_not_stand_in_the_way(run, tmp_path):
    """Each process has its own object; a run of a pure-Python config is gone on with."""
    def collate():
        scope = {'__name__': 'my_module'}
        exec('def mine(batch):\n    return batch', scope)
        return scope['mine']

    run.cfg.test_dataloader['collate_fn'] = collate()
    open_for(run, tmp_path).append(solved_layer('conv'))
    run.cfg.test_dataloader['collate_fn'] = collate()
    assert [entry.name for entry in open_for(run, tmp_path).entries] == ['conv']
    run.cfg.test_dataloader['collate_fn'] = len
    with pytest.raises(ValueError, match="collate_fn is 'builtins.len', the journal has "
                                         "'my_module.mine'"):
        open_for(run, tmp_path)
