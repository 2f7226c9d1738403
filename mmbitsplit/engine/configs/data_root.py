"""Points a config at data that lie elsewhere."""

import os.path as osp
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config


def move_data(cfg: Config, folder: str) -> None:
    """Replaces the data root by another folder wherever the config names it.

    That is in both data loaders, in the evaluator's annotation file and, for data sets that come
    with weights, in ``load_from``.

    Args:
        cfg: Changed in place.
        folder: Laid out as the config's own data root.

    Raises:
        ValueError: The data sets have no ``data_root``, or several.
    """
    roots = sorted({osp.join(root, '') for name in ('train_dataloader', 'test_dataloader')
                    for root in _roots((cfg.get(name) or {}).get('dataset') or {})})
    if len(roots) != 1:
        what = 'has no data_root' if not roots else f'has several, {" and ".join(roots)}'
        raise ValueError(f'The config {what} to replace by {folder}; give the paths of its data '
                         'with --cfg-options, such as train_dataloader.dataset.data_root=...')
    new = osp.join(osp.abspath(folder), '')
    for key, value in list(cfg.items()):
        cfg[key] = _moved(value, roots[0], new)


def _roots(dataset: Mapping[str, Any]) -> Iterator[str]:
    """Yields the data roots of a data set, of those that it wraps or joins too."""
    if dataset.get('data_root'):
        yield dataset['data_root']
    for inner in [dataset.get('dataset'), *(dataset.get('datasets') or ())]:
        if isinstance(inner, Mapping):
            yield from _roots(inner)


def _moved(value: Any, root: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(item, root, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, root, new) for item in value)
    if isinstance(value, str) and osp.join(value, '').startswith(root):
        return new + value[len(root):]
    return value
