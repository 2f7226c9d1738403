"""Missing data and weights are told before anything is built."""

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmbitsplit.engine.run.preflight import check_data, check_weights
from mmbitsplit.engine.run.quantize import read_spec


def check(cfg):
    check_data(cfg, read_spec(cfg).calibration)


def test_present_data_passes(demo_config):
    check(demo_config())


@pytest.mark.parametrize('loader, what', [('train_dataloader', 'calibration set'),
                                          ('test_dataloader', 'evaluation set')])
@pytest.mark.parametrize('key, value', [
    ('data_root', 'no/digits'), ('ann_file', 'gone.json'), ('data_prefix', dict(img='gone/')),
    ('ann_file', '/no/such/folder/gone.json')])
def test_the_missing_path_is_named(loader, what, key, value, demo_config):
    cfg = demo_config()
    cfg[loader].dataset[key] = value
    shown = value['img'] if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=f'{shown} does not exist; the {what}.*--cfg-options'):
        check(cfg)


def test_wrapped_and_joined_data_sets_are_looked_into(demo_config):
    cfg = demo_config()
    inner = cfg.test_dataloader.dataset
    broken = {**inner, 'ann_file': 'gone.json'}
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        inner, dict(type='RepeatDataset', times=2, dataset=broken)])
    cfg.quantization.calibration.dataloader = dict(dataset=inner)
    with pytest.raises(ValueError, match='gone.json does not exist; the evaluation set'):
        check(cfg)


@pytest.mark.parametrize('root, hint', [('no/coco/', 'COCO'), ('no/imagenet/', 'ImageNet'),
                                        ('no/digits/', 'make data'), ('no/other/', 'config')])
def test_it_says_how_to_get_the_data(root, hint, demo_config):
    cfg = demo_config()
    cfg.train_dataloader.dataset.data_root = root
    with pytest.raises(ValueError, match=hint):
        check(cfg)


@pytest.mark.parametrize('load_from', [None, ''])
def test_no_weights(load_from):
    with pytest.raises(ValueError, match='No float weights.*CHECKPOINT.*load_from'):
        check_weights(load_from)


def test_weights_in_a_file(tmp_path):
    path = tmp_path / 'float.pth'
    with pytest.raises(ValueError, match='float.pth does not exist'):
        check_weights(str(path))
    path.write_bytes(b'')
    assert check_weights(str(path)) == str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize('error', [OSError('no route to host'), RuntimeError('404')])
def test_a_url_that_cannot_be_fetched_says_where_to_put_the_file(error, hub, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', fail)
    with pytest.raises(ValueError, match=f'example.org/net.pth could not be fetched.*{error}.*'
                                         f'{hub}/checkpoints/net.pth'):
        check_weights('https://example.org/net.pth')


def test_a_url_is_fetched_once(hub, monkeypatch):
    fetched = []
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint',
                        lambda *args, **kwargs: fetched.append(args))
    url = 'https://example.org/net.pth?version=2'
    assert check_weights(url) == url and len(fetched) == 1
    (hub / 'checkpoints').mkdir()
    (hub / 'checkpoints' / 'net.pth').write_bytes(b'')
    assert check_weights(url) == url and len(fetched) == 1
