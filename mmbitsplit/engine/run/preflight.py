"""Looks for data and weights before anything is computed."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmbitsplit.engine.data.calibration_data import calibration_dataset_config
from mmbitsplit.export.writing import check_file
from mmbitsplit.structures import CalibrationSpec

HOW_TO_GET = {
    'coco': 'the COCO 2017 images and annotations (cocodataset.org; `mim download mmdet '
            '--dataset coco2017` fetches them)',
    'imagenet': 'the ImageNet-1k training and validation images, a folder a class '
                '(image-net.org, after registration; `mim download mmpretrain --dataset '
                'imagenet1k`)',
    'cifar10_jpeg': 'CIFAR-10 as JPEG files and the published weights; configs/cifar/README.md of '
                    "mmbitsplit's repository lists them",
    'digits': 'the demo data set; `make data` or `python tools/make_demo_data.py` makes it',
}


def check_data(cfg: Config, spec: CalibrationSpec) -> None:
    """Raises ``ValueError`` naming the first path of a data set that is missing.

    Args:
        cfg: The whole config.
        spec: Where calibration images come from.
    """
    missing = missing_data(cfg, spec)
    if missing is not None:
        what, path = missing
        raise ValueError(f'{path} does not exist; the {what} of the config belongs '
                         f'there: {_how_to_get(path)}. Another place: --data-root '
                         'FOLDER (--data of paper-tables), or --cfg-options with the '
                         'data_root of train_dataloader and test_dataloader.')


def missing_data(cfg: Config, spec: CalibrationSpec) -> tuple[str, str] | None:
    """Returns which data set lacks which path, of the first that is missing."""
    parts = {}
    if spec.num_images:
        parts['calibration set'] = calibration_dataset_config(cfg, spec)
    if cfg.get('test_dataloader') is not None:
        parts['evaluation set'] = cfg.test_dataloader.dataset
    return next(((what, path) for what, dataset in parts.items() for path in _paths(dataset)
                 if not os.path.exists(path)), None)


def check_weights(load_from: str | None) -> str:
    """Returns the local or downloadable checkpoint, downloaded to torch's cache if remote.

    Raises:
        ValueError: None is given, the file is missing, or the download fails.
    """
    if not load_from:
        raise ValueError('No float weights: pass CHECKPOINT, or set load_from in the config '
                         '(--untrained quantizes random weights, for measuring speed).')
    if urlparse(load_from).scheme in ('', 'file'):
        check_file(load_from, 'it was to hold the float weights. Pass CHECKPOINT after the config, '
                   'or set load_from in it.')
        return load_from
    name = os.path.basename(urlparse(load_from).path)
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / name
    if not cached.is_file():
        try:
            CheckpointLoader.load_checkpoint(load_from, map_location='cpu')
        except Exception as error:  # whatever the download's libraries raise
            raise ValueError(
                f'The float weights {load_from} could not be fetched ({error}). Download them '
                f'elsewhere and put them at {cached}, or pass the file as CHECKPOINT.') from error
    return load_from


def _paths(dataset: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files and folders that a data set config names, coarse before fine."""
    if dataset.get('dataset'):
        yield from _paths(dataset['dataset'])
        return
    for part in dataset.get('datasets', ()):
        yield from _paths(part)
    root = dataset.get('data_root') or ''
    if '://' in root:
        return
    if root:
        yield root
    if dataset.get('ann_file'):
        yield _join(root, dataset['ann_file'])
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    for value in prefixes:
        if isinstance(value, str) and value:
            yield _join(root, value)


def _join(root: str, path: str) -> str:
    return path if os.path.isabs(path) or '://' in path else os.path.join(root, path)


def _how_to_get(path: str) -> str:
    for key, text in HOW_TO_GET.items():
        if key in path.lower():
            return text
    return 'see the data section of the config'
