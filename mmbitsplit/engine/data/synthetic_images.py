"""Made-up images, for what a model's architecture alone decides: no data set is needed."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmbitsplit.engine.configs.default_request import CLASSIFICATION, task_of
from mmbitsplit.engine.data.calibration_data import find_pipeline

SHAPE = (255, 255)  # where a detector's pipeline names none: what those that pad to 2**n - 1 take
SIDE = 224  # of a classifier's image where neither pipeline nor backbone names one
PROPOSALS = {'nms_pre': 100, 'max_per_img': 20}  # of a region proposal network
DETECTIONS = 10  # whose masks are computed


def synthetic_batches(cfg: Config, batches: int, images: int,
                      shape: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Makes batches as a config's test dataloader collates them.

    Args:
        cfg: Of a detector or a classifier.
        batches: How many.
        images: A batch.
        shape: Height and width in pixels; those that the test pipeline makes when not given.

    Raises:
        ValueError: The task of the config's model cannot be told.
    """
    task = task_of(cfg)
    height, width = shape or (_classifier_shape(cfg) if task == CLASSIFICATION
                              else _detector_shape(cfg))
    channels, generator = _channels(cfg), torch.Generator().manual_seed(0)
    found = []
    for number in range(batches):
        made = make_images(images, channels, (height, width), generator)
        found.append({'inputs': made} if task == CLASSIFICATION else {
            'inputs': list(made), 'data_samples': [
                _detection_sample((height, width), images * number + place)
                for place in range(images)]})
    return found


def make_images(count: int, channels: int, shape: tuple[int, int], generator: torch.Generator,
                ) -> Tensor:
    """Images of smooth fields, edges and some noise: (count, channels, height, width), uint8.

    Each has colours and a mixture of scales of its own: what a classifier pools differs.
    """
    images = 120 + 60 * torch.randn(count, channels, 1, 1, generator=generator)
    for cells, strength in ((3, 80.0), (9, 60.0), (27, 40.0)):
        field = torch.randn(count, channels, cells, cells, generator=generator)
        share = torch.rand(count, 1, 1, 1, generator=generator)
        images = images + strength * share * nn.functional.interpolate(
            field, shape, mode='nearest' if cells == 9 else 'bilinear')
    images = images + 8 * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 255).to(torch.uint8)


def reach_all_stages(part: Any) -> None:
    """Lets a detector's second stage run, masks too, and keeps it small.

    What it finds in a made-up image is below every threshold.

    Args:
        part: ``cfg.model``; changed in place.
    """
    if isinstance(part, dict):
        if isinstance(part.get('rpn'), dict):
            part['rpn'].update({key: value for key, value in PROPOSALS.items()
                                if key in part['rpn']})
        if isinstance(part.get('rcnn'), dict) and 'score_thr' in part['rcnn']:
            part['rcnn'].update(score_thr=0.0, max_per_img=DETECTIONS)
        for value in part.values():
            reach_all_stages(value)


def _channels(cfg: Config) -> int:
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean = settings.get('mean')
    return len(mean) if isinstance(mean, (list, tuple)) else 3


def _sizes(cfg: Config, *keys: str) -> list[Any]:
    """What the steps of the test pipeline have under the keys, in order."""
    dataset: Mapping[str, Any] = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    return [step[key] for step in find_pipeline(dataset) or () for key in keys if step.get(key)]


def _classifier_shape(cfg: Config) -> tuple[int, int]:
    """The square that the test pipeline makes of an image."""
    sizes = _sizes(cfg, 'crop_size', 'scale')
    size = sizes[-1] if sizes else (cfg.model.get('backbone') or {}).get('img_size') or SIDE
    side = max(size) if isinstance(size, (list, tuple)) else int(size)
    return side, side


def _detector_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of the largest image that the test pipeline makes, before padding."""
    sizes = _sizes(cfg, 'scale')
    if not sizes:
        return SHAPE
    if not isinstance(sizes[-1], (list, tuple)):
        return int(sizes[-1]), int(sizes[-1])
    width, height = sizes[-1]
    return int(height), int(width)


def _detection_sample(shape: tuple[int, int], number: int) -> Any:
    from mmdet.structures import DetDataSample
    return DetDataSample(metainfo=dict(
        img_id=number, img_path=f'{number}.png', img_shape=shape, ori_shape=shape,
        pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0), flip=False,
        flip_direction=None, border=(0, shape[0], 0, shape[1])))  # for heads of whole images
