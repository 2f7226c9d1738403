"""Points a config at data that lie elsewhere."""

import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmbitsplit.engine.calibration_data import innermost


def move_data(cfg: Config, folder: str) -> None:
    """Replaces the data root by another folder wherever the config names it.

    That is in both data loaders, in the evaluator's annotation file and, for data sets that come
    with weights, in ``load_from``.

    Args:
        cfg: Changed in place.
        folder: Laid out as the config's own data root.

    Raises:
        ValueError: The training set has no ``data_root``.
    """
    loader = cfg.get('train_dataloader') or {}
    root = innermost(loader.get('dataset') or {}).get('data_root')
    if not root:
        raise ValueError('The training set of the config has no data_root to replace; give the '
                         'paths of its data with --cfg-options.')
    new = osp.join(osp.abspath(folder), '')
    for key, value in list(cfg.items()):
        cfg[key] = _moved(value, osp.join(root, ''), new)


def _moved(value: Any, root: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(item, root, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, root, new) for item in value)
    if isinstance(value, str) and osp.join(value, '').startswith(root):
        return new + value[len(root):]
    return value
