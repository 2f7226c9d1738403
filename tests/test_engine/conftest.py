"""Configs of small data sets made of files, and a model of mmengine."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

import mmbitsplit.engine  # noqa: F401  registers the hook and the wrapper

PROJECT = Path(__file__).resolve().parents[2]


class ToyModel(BaseModel):
    """A float model as mmengine knows them."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.middle, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.relu(self.bn(self.conv(inputs)))
        return self.head(torch.relu(self.middle(x)).mean((2, 3)))

    def describe_me(self, word):
        return f'toy {word}'


def _write_split(root: Path, name: str, count: int) -> None:
    """Images and COCO annotations; the images differ."""
    import cv2

    images, annotations = [], []
    (root / name).mkdir(parents=True)
    for index in range(count):
        pixels = np.full((16, 16, 3), 10 * index, np.uint8)
        cv2.imwrite(str(root / name / f'{name}{index}.png'), pixels)
        images.append(dict(id=index + 1, file_name=f'{name}{index}.png', height=16, width=16))
        annotations.append(dict(id=index + 1, image_id=index + 1, category_id=1, area=16,
                                bbox=[2, 2, 4, 4], iscrowd=0))
    (root / f'{name}.json').write_text(json.dumps(dict(
        images=images, annotations=annotations, categories=[dict(id=1, name='0')])))


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    _write_split(root, 'train', 12)
    _write_split(root, 'val', 3)
    return root


def _demo_config(data_root, **calibration) -> Config:
    """The RetinaNet demo on the small data set."""
    cfg = Config.fromfile(PROJECT / 'configs/demo/retinanet_digits_w4a8.py')
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.test_dataloader)):
        loader.dataset.update(data_root=str(data_root), ann_file=f'{split}.json',
                              data_prefix=dict(img=f'{split}/'), metainfo=dict(classes=('0',)))
    cfg.test_evaluator.ann_file = str(data_root / 'val.json')
    cfg.load_from = str(PROJECT / cfg.load_from)
    cfg.quantization.calibration.update(calibration)
    return cfg


@pytest.fixture
def demo_config(data_root):
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    return lambda **calibration: _demo_config(data_root, **calibration)


@pytest.fixture
def det_scope():
    """Types are looked up as in a run of mmdet, and as before afterwards."""
    from mmdet.utils import register_all_modules
    from mmengine.registry import DefaultScope
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def _make_toy(seed: int = 0) -> ToyModel:
    torch.manual_seed(seed)
    return ToyModel().eval()


@pytest.fixture(scope='session')
def toy_model():
    return _make_toy


@pytest.fixture(scope='session')
def packed_model():
    """The module with the model of the packed files, one file a format version."""
    path = PROJECT / 'tests/packed_files/packed_model.py'
    spec = importlib.util.spec_from_file_location('packed_model', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
