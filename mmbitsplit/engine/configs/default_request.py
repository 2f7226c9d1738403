"""The ``quantization`` dict of a config that has none, by the task of its model.

The same as ``configs/_base_/quantization_*.py`` give.
"""

import copy
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from mmbitsplit.engine.configs.config_errors import naming_config_errors
from mmbitsplit.spelling import close_names

DETECTION, INSTANCES, PANOPTIC = 'detection', 'instance segmentation', 'panoptic segmentation'
CLASSIFICATION = 'classification'
COMMON = dict(weight=dict(num_bits=8), activation=dict(num_bits=8), method=dict(type='BitSplit'),
              overrides=[])
# Images of detectors differ in size, so that they are calibrated one by one.
CALIBRATION = {
    **dict.fromkeys((DETECTION, INSTANCES, PANOPTIC),
                    dict(num_images=32, batch_size=1, seed=0)),
    CLASSIFICATION: dict(num_images=1024, batch_size=32, seed=0)}
# What models of a task inherit: module and class, by the scope that registers them.
FAMILIES = {'mmdet': ('mmdet.models.detectors.base', 'BaseDetector', DETECTION),
            'mmpretrain': ('mmpretrain.models.classifiers.base', 'BaseClassifier',
                           CLASSIFICATION)}
ALIKE = 0.75  # how alike a key is to 'quantization' when it is taken for it


def fill_request(cfg: Config) -> str | None:
    """Gives a config without a ``quantization`` dict the usual one for its task.

    Args:
        cfg: Of a detector or a classifier; changed in place.

    Returns:
        The task; ``None`` where the config has a request of its own.

    Raises:
        ValueError: The task cannot be told, or a key looks like a misspelled ``quantization``.
    """
    if cfg.get('quantization') is not None:
        return None
    close = close_names('quantization', cfg, alike=ALIKE)
    if close and close[0] != 'quantization':
        raise ValueError(f"The config has no 'quantization' dict, but '{close[0]}'; rename it to "
                         "'quantization'.")
    task = task_of(cfg)
    cfg.quantization = ConfigDict(copy.deepcopy({**COMMON, 'calibration': CALIBRATION[task]}))
    return task


def task_of(cfg: Config) -> str:
    """Tells what a config's model is for, from its class and from what it is evaluated by.

    Raises:
        ValueError: It is neither a detector of mmdet nor a classifier of mmpretrain.
    """
    model = _model_class(cfg)
    for module, name, task in FAMILIES.values():
        if _inherits(model, module, name):
            return _refined(task, cfg)
    raise ValueError(f'What {model.__name__} is for cannot be told: it is neither a detector of '
                     'mmdet nor a classifier of mmpretrain. Give the config a quantization dict '
                     'with its calibration: dict(calibration=dict(num_images=32, batch_size=1)).')


def _model_class(cfg: Config) -> type:
    scope, kind = cfg.get('default_scope') or 'mmengine', cfg.model.get('type')
    if scope in FAMILIES:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    if isinstance(kind, str):
        with naming_config_errors(), MODELS.switch_scope_and_registry(scope) as registry:
            found = registry.get(kind)
            if found is None:  # as building it would say
                raise KeyError(f'{kind} is not in the {scope}::model registry')
            kind = found
    if not isinstance(kind, type):
        raise ValueError(f"model.type={cfg.model.get('type')!r} names no class that is installed; "
                         "a model is dict(type='...').")
    return kind


def _inherits(model: type, module: str, name: str) -> bool:
    """Whether a class inherits one of a package that may not be installed."""
    return any(base.__module__ == module and base.__name__ == name for base in model.__mro__)


def _refined(task: str, cfg: Config) -> str:
    """Tells boxes from masks by the metrics."""
    if task != DETECTION:
        return task
    metrics = list(_metrics(cfg.get('test_evaluator')))
    if any('Panoptic' in str(metric.get('type')) for metric in metrics):
        return PANOPTIC
    wanted = [metric.get('metric') or () for metric in metrics]
    return INSTANCES if any('segm' in kind for kind in wanted) else DETECTION


def _metrics(evaluator: Any) -> Iterator[Mapping[str, Any]]:
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if isinstance(metric, Mapping):
            inner = metric.get('metrics')
            yield from _metrics(inner) if inner else [metric]
