"""mmbitsplit pareto on the demo's classifier, its widths made by plain rounding."""

import copy
import json
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from several_widths import with_widths

from mmbitsplit.apis import pareto_files
from mmbitsplit.cli.pareto import main
from mmbitsplit.engine.data.calibration_data import load_calibration_data
from mmbitsplit.engine.results.artifacts import quantized_config
from mmbitsplit.engine.run.model_wrapper import QuantizedModel
from mmbitsplit.models import bits_of, set_plan
from mmbitsplit.structures import CalibrationSpec

pytestmark = pytest.mark.slow
CONFIG = 'configs/demo/classifier_digits_w4a8.py'


@pytest.fixture(scope='module')
def quantized(tmp_path_factory):
    """A config as a run leaves it, and the model that its checkpoint would load into."""
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.runner import load_checkpoint
    from mmpretrain.utils import register_all_modules

    cfg = Config.fromfile(CONFIG)
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
        load_checkpoint(model, cfg.load_from, map_location='cpu')
        data = load_calibration_data(cfg, CalibrationSpec(num_images=8, batch_size=8), [])
    images = [model.data_preprocessor(batch)['inputs'] for batch in data.batches]
    folder = tmp_path_factory.mktemp('quantized')
    (folder / 'quantized_config.py').write_text(quantized_config(cfg).pretty_text)
    (folder / 'quantized.pth').write_bytes(b'as if')
    return folder, with_widths(model.eval(), images, (2, 8))


@pytest.fixture
def pareto(quantized, tmp_path, monkeypatch):
    """Runs the command in a work directory."""
    folder, model = quantized
    loads = []

    def load(config, checkpoint):
        loads.append(checkpoint)
        return QuantizedModel(copy.deepcopy(model))
    monkeypatch.setattr(pareto_files, 'load_quantized', load)

    def run(*options):
        return main([str(folder / 'quantized_config.py'), str(folder / 'quantized.pth'),
                     '--work-dir', str(tmp_path), '--images', '8', *options])
    return SimpleNamespace(run=run, folder=tmp_path, model=model, loads=loads)


def test_plans_of_budgets_are_files_that_can_be_set(pareto, capsys):
    assert pareto.run('--budgets', '3', '300kB', '--evaluations', '6') == 0
    said, found = capsys.readouterr().out, json.loads((pareto.folder / 'pareto.json').read_text())
    assert found['loss'] == 'kl' and len(found['front']) > 5
    files = {one['file']: one for one in found['plans'] if 'file' in one}
    assert {'plan_3.json', 'plan_300kB.json', 'plan_uniform_W2A2.json'} <= files.keys()
    for name, one in files.items():
        assert name in said and name in (pareto.folder / 'pareto.md').read_text()
        set_plan(pareto.model, pareto.folder / name)
        used = bits_of(pareto.model)
        for block, widths in one['widths'].items():
            assert {f'W{used[place].weight}A{used[place].input}'
                    for place in found['blocks'][block]} == {widths}
    assert files['plan_3.json']['costs']['weight_bits'] <= 3
    assert files['plan_300kB.json']['costs']['bytes'] <= 300_000
    assert 'pareto.html' in {path.name for path in pareto.folder.iterdir()}
    assert '<html' in (pareto.folder / 'pareto.html').read_text()

    measured = found['measured']
    assert pareto.run('--budgets', '3', '--evaluations', '6', '--resume') == 0
    again = json.loads((pareto.folder / 'pareto.json').read_text())
    assert again['table'] == found['table'] and again['measured'] < measured / 4


def test_what_is_wrong_is_said(pareto, capsys):
    assert pareto.run('--budgets', '1kB') == 2
    assert 'cannot be kept' in capsys.readouterr().err
    assert pareto.run('--budgets', 'bitop=0.2') == 2
    assert "did you mean 'bitops'" in capsys.readouterr().err
