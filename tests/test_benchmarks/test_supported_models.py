"""The sweep over upstream's families: one crash does not end it, and the page says what is so."""

import json
import os
import time
from itertools import count

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from benchmarks import supported_models  # noqa: E402
from benchmarks.model_probe import count_multiplications, enliven  # noqa: E402
from benchmarks.supported_models import page, run_model  # noqa: E402

LENET = 'mmpretrain::lenet/lenet5_mnist.py'


class Net(nn.Module):
    """A model of every kind of layer that is counted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.fc = nn.Linear(5, 7)
        self.bn = nn.BatchNorm2d(6)
        nn.init.zeros_(self.fc.weight)

    def test_step(self, batch):
        x = self.fc(self.up(self.bn(self.conv(batch))).flatten(2).transpose(1, 2))
        return nn.functional.scaled_dot_product_attention(*3 * [(x @ x.transpose(1, 2))[:, None]])


def test_multiplications_are_counted_from_geometry_and_from_torch():
    batch = torch.rand(2, 4, 8, 8)
    found, everything = count_multiplications(Net().eval(), batch)
    by_hand = {'conv': 2 * 64 * 6 * 2 * 9, 'up': 2 * 64 * 6 * 5 * 4, 'fc': 2 * 256 * 5 * 7}
    assert found == by_hand
    products = 2 * 256 * 256 * 7 + 2 * 2 * 256**3  # that no layer makes, attention's among them
    assert everything == sum(by_hand.values()) + products


def test_what_torch_does_not_know_is_counted_by_geometry():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 4, 1, 1))

        def forward(self, x):
            return (self.weight[:, :, 0, 0, None, None] * x[:, None]).sum(2)

    class Model(nn.Sequential):
        def test_step(self, batch):
            return self(batch)
    found, everything = count_multiplications(Model(Odd()), torch.rand(2, 4, 5, 5))
    assert found == {'0': 2 * 25 * 12} and everything == 600


def test_random_weights_are_alive():
    model, images = Net().eval(), torch.rand(2, 4, 8, 8)
    enliven(model, [images])
    assert model.fc.weight.abs().max() > 0 and not model.bn.training
    y = model.bn(model.conv(images))
    assert torch.allclose(y.mean((0, 2, 3)), torch.ones(6), atol=1e-3)
    assert torch.allclose(y.std((0, 2, 3)), torch.full((6,), 0.5), atol=0.02)


def test_a_small_model_from_end_to_end(tmp_path):
    result = run_model(LENET, tmp_path, seconds=300, gigabytes=12, start='spawn')
    assert 'failed' not in result, result
    assert result['task'] == 'classification' and result['layers'] == 5
    assert result['share_of_weights'] > 0.99 and result['share_of_multiplications'] == 1.0
    assert result['errors']['W8A8']['layers'] < 0.01 < result['errors']['W4A8']['layers'] < 1
    assert result['integers']['equal_inputs'] < 1e-5 and result['integers']['outputs'] < 1e-3
    assert json.loads((tmp_path / 'mmpretrain__lenet__lenet5_mnist.json').read_text()) == result
    assert LENET.split('::')[1] in page([result])


@pytest.mark.parametrize('act, said', [
    (lambda *_: time.sleep(60), 'more than 0.2 s'),
    (lambda *_: sum(0 for _ in count()), 'more than 1 s'),
    (lambda *_: os._exit(3), 'ended with 3'),
    (lambda *_: 1 / 0, 'ZeroDivisionError: division by zero'),
    (lambda *_: torch.zeros(2**34).sum(), 'more than 2 GB')])
def test_what_goes_wrong_in_one_model_is_written_down(act, said, tmp_path, monkeypatch):
    monkeypatch.setattr(supported_models, 'probe', act)
    # A tenth of the time on the clock: the first one is waited for.
    seconds = float(said.split()[2]) if said.endswith(' s') else 60
    result = run_model(LENET, tmp_path, seconds=seconds, gigabytes=2)
    assert said in result['failed'] and result['config'] == LENET
    assert f'does not finish: {result["failed"]}' in page([result])


def test_one_config_a_family():
    names = dict(supported_models.families('mmdet'))
    assert len(names) > 60 and names['mmdet::yolox'].endswith('yolox_tiny_8xb8-300e_coco.py')
    for family, name in names.items():
        assert name.startswith(f'{family}/') and supported_models.find_upstream(name).is_file()


def test_patterns_and_whole_names(monkeypatch):
    monkeypatch.setattr(supported_models, 'families', lambda package: [
        (f'{package}::{name}', f'{package}::{name}/{name}_r50.py') for name in 'ab'])
    chosen = supported_models.chosen_configs
    assert chosen(['*']) == ['mmdet::a/a_r50.py', 'mmpretrain::a/a_r50.py', 'mmdet::b/b_r50.py',
                             'mmpretrain::b/b_r50.py']
    assert chosen(['mmdet::c/x.py', '*::b/*', 'mmdet::*']) == [
        'mmdet::c/x.py', 'mmdet::b/b_r50.py', 'mmpretrain::b/b_r50.py', 'mmdet::a/a_r50.py']
    assert chosen([]) == [] and chosen(['mmdet::c/x.py']) == ['mmdet::c/x.py']
