"""A config by name is a whole request: task, defaults, weights, data, in the user's words."""

import json

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmbitsplit.cli.main import main  # noqa: E402

YOLOX = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
EFFICIENTNET = 'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py'
ADDRESS = ('https://download.openmmlab.com/mmdetection/v2.0/yolox/yolox_tiny_8x8_300e_coco/'
           'yolox_tiny_8x8_300e_coco_20211124_171234-b4047906.pth')
SMALL = ('quantization.calibration.num_images=2', 'quantization.calibration.rows_per_layer=64',
         'quantization.method.type=RoundToNearest')
NARROW = ('model.backbone.widen_factor=0.125', 'model.neck.in_channels=[32,64,128]',
          'model.neck.out_channels=32', 'model.bbox_head.in_channels=32',
          'model.bbox_head.feat_channels=32')


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    yield
    from mmengine.logging import MMLogger
    MMLogger._instance_dict.clear()


@pytest.fixture
def coco(tmp_path):
    """A data root of three images, laid out as COCO."""
    import cv2
    import numpy as np
    from mmdet.datasets import CocoDataset
    categories = [dict(id=number, name=name)
                  for number, name in enumerate(CocoDataset.METAINFO['classes'], 1)]
    root = tmp_path / 'small coco'
    (root / 'annotations').mkdir(parents=True)
    for split, count in (('train', 2), ('val', 1)):
        (root / f'{split}2017').mkdir()
        images = [dict(id=number, file_name=f'{number}.png', height=32, width=48)
                  for number in range(1, count + 1)]
        for image in images:
            pixels = np.random.default_rng(image['id']).integers(0, 255, (32, 48, 3), np.uint8)
            cv2.imwrite(str(root / f'{split}2017' / image['file_name']), pixels)
        boxes = [dict(id=image['id'], image_id=image['id'], category_id=1, area=64, iscrowd=0,
                      bbox=[2, 2, 8, 8]) for image in images]
        (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(dict(
            images=images, annotations=boxes, categories=categories)))
    return root


def run(capsys, *words) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_nothing_of_the_user_s_is_needed_but_the_data(capsys, coco):
    """YOLOX: a config with custom hooks, an average among them, by its name alone."""
    code, out, err = run(capsys, 'quantize', YOLOX, '--untrained', '--data-root', coco,
                         '--weight-bits', 4, '--work-dir', 'run', '--cfg-options', *SMALL, *NARROW,
                         'model.test_cfg.score_thr=0.9', 'test_dataloader.num_workers=0',
                         'test_dataloader.persistent_workers=False')
    assert code == 0, err[-2000:]
    assert 'the usual one for detection: 32 calibration images, 1 a batch' in err
    assert f'{YOLOX} (random weights)' in out
    results = json.loads(open('run/results.json').read())
    assert results['config'] == YOLOX and results['untrained']
    assert (results['weight_bits'], results['activation_bits']) == (4, 8)
    assert results['method']['type'] == 'RoundToNearest'


@pytest.mark.slow
def test_averages_of_the_training_config_do_not_disturb_a_test(capsys, coco, tmp_path):
    """mmengine's EMAHook copies the model before weights are loaded, and swaps at every test."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from mmbitsplit.engine.configs.upstream_configs import find_upstream
    cfg = Config.fromfile(find_upstream(YOLOX))
    assert any(hook['type'] == 'EMAHook' for hook in cfg.custom_hooks)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'random.pth')
    code, out, err = run(capsys, 'test', YOLOX, tmp_path / 'random.pth', '--data-root', coco,
                         '--cfg-options', 'model.test_cfg.score_thr=0.9',
                         'test_dataloader.num_workers=0',
                         'test_dataloader.persistent_workers=False')
    assert code == 0, err[-2000:]


def test_weights_that_cannot_be_fetched_are_named_with_what_to_do(capsys, coco, monkeypatch):
    from mmengine.runner import CheckpointLoader

    def fail(*args, **kwargs):
        raise OSError('no route to host')
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', fail)
    code, _, err = run(capsys, 'quantize', YOLOX, '--data-root', coco)
    assert code == 2
    last = err.splitlines()[-1]
    for part in (ADDRESS, 'no route to host', 'hub/checkpoints/yolox_tiny', 'as CHECKPOINT'):
        assert part in last
    assert f'float weights are those of yolox_tiny_8x8_300e_coco, {ADDRESS}' in err


@pytest.mark.parametrize('more', [['given.pth'], ['--cfg-options', 'load_from=given.pth']])
def test_weights_that_are_given_come_first(more, capsys, coco):
    code, _, err = run(capsys, 'quantize', YOLOX, *more, '--data-root', coco)
    assert code == 2 and 'given.pth does not exist' in err and ADDRESS not in err


@pytest.mark.parametrize('command', ['quantize', 'sensitivity'])
def test_data_that_are_not_there(command, capsys):
    for name, root in ((YOLOX, 'data/coco/'), (EFFICIENTNET, 'data/imagenet')):
        code, _, err = run(capsys, command, name)
        last = err.splitlines()[-1]
        assert code == 2 and f'{root} does not exist; the calibration set' in last
        assert '--data-root FOLDER' in last and 'data_root of train_dataloader' in last
    assert 'the usual one for classification: 1024 calibration images, 32 a batch' in err
    assert '2 more are published for this config' in err


def test_a_name_of_nothing(capsys):
    for command, more in (('quantize', ()), ('test', ('a.pth',)), ('sensitivity', ())):
        code, _, err = run(capsys, command, 'mmdet::yolox/yolox_tiny.py', *more)
        assert code == 2 and f"did you mean '{YOLOX}'" in err.splitlines()[-1]


def test_a_model_that_is_neither_detector_nor_classifier(capsys):
    code, _, err = run(capsys, 'quantize', 'mmpretrain::simclr/simclr_resnet50_8xb32-coslr-200e_'
                       'in1k.py')
    assert code == 2 and 'What SimCLR is for cannot be told' in err.splitlines()[-1]
    assert 'quantization dict' in err.splitlines()[-1]


def test_two_bases_with_one_key(capsys, tmp_path):
    (tmp_path / 'old.py').write_text('custom_hooks = []\n')
    (tmp_path / 'mine.py').write_text(f"_base_ = ['{YOLOX}', './old.py']\n")
    code, _, err = run(capsys, 'quantize', 'mine.py')
    assert code == 2 and f'set custom_hooks ({YOLOX} and ./old.py)' in err.splitlines()[-1]


def test_our_base_stands_beside_hooks_and_imports_of_upstream(capsys, tmp_path, request):
    base = request.config.rootpath / 'configs/_base_/quantization_detection.py'
    (tmp_path / 'mine.py').write_text(f"_base_ = ['{YOLOX}', '{base}']\n"
                                      'quantization = dict(weight=dict(num_bits=3))\n')
    code, _, err = run(capsys, 'quantize', 'mine.py')
    assert code == 2 and 'data/coco/ does not exist' in err.splitlines()[-1]
    assert 'the usual one' not in err


@pytest.mark.parametrize('option, said', [
    ('env_cfg=3', 'env_cfg=3 is not supported; it must be a dict'),
    ('default_hooks=[1,2]', 'default_hooks=[1, 2] is not'), ('model=None', "no 'model' dict"),
    ('test_dataloader=5', 'test_dataloader=5 is not'), ('work_dir=3', 'work_dir=3 is not'),
    ('randomness=abc', "randomness='abc' is not"), ('custom_hooks=abc', "custom_hooks='abc'")])
def test_settings_of_a_wrong_type(option, said, capsys):
    for command, more in (('quantize', ()), ('test', ('a.pth',)), ('sensitivity', ())):
        code, _, err = run(capsys, command, YOLOX, *more, '--cfg-options', option)
        assert code == 2 and said in err.splitlines()[-1], err[-500:]
