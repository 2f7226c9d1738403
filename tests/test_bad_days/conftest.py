"""COCO folders with whatever pictures a test wants in them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config

SIZE = (48, 64)


def picture(seed: int, shape: tuple[int, ...] = (*SIZE, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class CocoFolder:
    """A folder with ``images`` and ``boxes.json``, and a config that calibrates on it."""

    def __init__(self, root: Path, count: int):
        self.root, self.images = root, root / 'images'
        self.images.mkdir(parents=True)
        self.entries: list[dict[str, Any]] = []
        for number in range(count):
            self.add(f'{number:04d}.png', picture(number))
        self.write()

    def add(self, name: str, pixels: np.ndarray | bytes | None, number: int | None = None) -> None:
        """Adds an entry; writes pixels as an image, bytes as they are, ``None`` not at all."""
        if isinstance(pixels, bytes):
            (self.images / name).write_bytes(pixels)
        elif pixels is not None:
            encoded = cv2.imencode(Path(name).suffix, pixels)[1]  # imwrite refuses some names
            (self.images / name).write_bytes(encoded.tobytes())
        self.entries.append(dict(id=len(self.entries) + 1 if number is None else number,
                                 file_name=name, height=SIZE[0], width=SIZE[1]))

    def write(self) -> None:
        boxes = [dict(id=index + 1, image_id=entry['id'], category_id=1, area=16,
                      bbox=[2, 2, 4, 4], iscrowd=0) for index, entry in enumerate(self.entries)]
        (self.root / 'boxes.json').write_text(json.dumps(dict(
            images=self.entries, annotations=boxes, categories=[dict(id=1, name='0')])))

    def config(self, **calibration: Any) -> Config:
        """Calibrates on this folder; images become 32 pixels wide at most."""
        self.write()
        dataset: Mapping[str, Any] = dict(
            type='CocoDataset', data_root=str(self.root), ann_file='boxes.json',
            data_prefix=dict(img='images/'), metainfo=dict(classes=('0',)),
            filter_cfg=dict(filter_empty_gt=False), pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(32, 32), keep_ratio=True),
                dict(type='PackDetInputs', meta_keys=('img_path', 'img_shape'))])
        loader = dict(batch_size=1, dataset=dataset)
        return Config(dict(default_scope='mmdet', train_dataloader=loader,
                           test_dataloader=loader,
                           quantization=dict(calibration=calibration)))


@pytest.fixture
def coco(tmp_path):
    def make(count: int, name: str = 'data') -> CocoFolder:
        return CocoFolder(tmp_path / name, count)
    return make


@pytest.fixture
def det_scope():
    """Types are looked up as in a run of mmdet, and as before afterwards."""
    from mmdet.utils import register_all_modules
    from mmengine.registry import DefaultScope
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield
