"""Checks the top level of a config before a Runner takes it apart."""

import ast
import functools
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import LogProcessor
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

DICT, LIST, TEXT = "a dict, such as dict(type='...')", 'a list', 'a word in quotes'
NUMBER = 'an integer'
LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
Kinds = tuple[tuple[type, ...], str]
NONE = type(None)
DICT_OR_NONE: Kinds = ((Mapping, NONE), f'{DICT}, or None')
LOADER: Kinds = ((Mapping, DataLoader, NONE), f'{DICT}, or None')
EVALUATOR: Kinds = ((Mapping, Evaluator, list, tuple, NONE), f'{DICT}, a list of dicts, or None')
# What a Runner reads, by dotted path, as far as the config has it.
ALLOWED: dict[str, Kinds] = {
    **dict.fromkeys(('test_cfg', 'train_cfg', 'val_cfg', 'default_hooks', 'auto_scale_lr',
                     'randomness', 'env_cfg.dist_cfg', 'env_cfg.mp_cfg'), DICT_OR_NONE),
    **dict.fromkeys(('test_dataloader', 'train_dataloader', 'val_dataloader'), LOADER),
    **dict.fromkeys(('test_evaluator', 'val_evaluator'), EVALUATOR),
    **dict.fromkeys(('model.data_preprocessor', 'data_preprocessor'),
                    ((Mapping, nn.Module, NONE), f'{DICT}, or None')),
    **dict.fromkeys(('test_dataloader.dataset', 'train_dataloader.dataset'),
                    ((Mapping,), DICT)),
    **dict.fromkeys(('load_from', 'default_scope', 'experiment_name', 'work_dir'),
                    ((str, NONE), f'{TEXT}, or None')),
    **dict.fromkeys(('test_dataloader.batch_size', 'test_dataloader.num_workers'),
                    ((int,), NUMBER)),
    'env_cfg': ((Mapping,), DICT), 'custom_imports': ((Mapping, NONE), DICT),
    'custom_hooks': ((list, tuple, NONE), f'{LIST} of dicts'),
    'optim_wrapper': ((Mapping, OptimWrapper, NONE), f'{DICT}, or None'),
    'param_scheduler': ((Mapping, _ParamScheduler, list, tuple, NONE), f'{LIST} of dicts'),
    'log_processor': ((Mapping, LogProcessor, NONE), f'{DICT}, or None'),
    'visualizer': ((Mapping, Visualizer, NONE), f'{DICT}, or None'),
    **dict.fromkeys(('test_dataloader.dataset.pipeline', 'train_dataloader.dataset.pipeline',
                     'visualizer.vis_backends'), ((list, tuple, NONE), f'{LIST} of dicts')),
    'runner_type': ((str, type), TEXT), 'log_level': ((str, int), TEXT),
    'randomness.seed': ((int, NONE), f'{NUMBER}, or None'),
    'resume': ((bool, NONE), 'True or False'),
}
UNWRITABLE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType,
              functools.partial)
DUPLICATES = re.compile(r'Duplicate key is not allowed among bases\. Duplicate keys: (.+)')


def check_shape(cfg: Config) -> None:
    """Raises ``ValueError`` for a setting of a type that mmengine cannot use."""
    if not isinstance(cfg.get('model'), Mapping):
        given = '' if cfg.get('model') is None else f' (model={_short(cfg.model)})'
        raise ValueError(f"{_where(cfg)} has no 'model' dict{given}; inherit the config of an "
                         'upstream model by _base_.')
    for path, (kinds, allowed) in ALLOWED.items():
        holder: Any = cfg
        *above, key = path.split('.')
        for part in above:
            holder = holder.get(part) if isinstance(holder, Mapping | Config) else None
        if isinstance(holder, Mapping | Config) and key in holder:
            _check(path, holder[key], kinds, allowed)
    for path, value in _hooks(cfg):
        _check(path, value, (Mapping, Hook, NONE), DICT)
    for path, value in _steps(cfg):
        if not callable(value):
            _check(path, value, (Mapping,), DICT)
    level = cfg.get('log_level', 'INFO')
    if isinstance(level, str) and level not in LEVELS:
        raise ValueError(f"log_level='{level}' is not supported; allowed are {', '.join(LEVELS)}.")
    for path, value in _leaves('', cfg._to_lazy_dict()):
        if isinstance(value, UNWRITABLE):
            raise ValueError(f'{path}={_short(value)} cannot be written down, and a run keeps its '
                             'config in the work directory: define it in a module that can be '
                             "imported, and name it there, 'my_module.my_function'.")


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what a config holds that is neither dict nor list, by dotted path."""
    if isinstance(value, (Mapping, list, tuple)):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from _leaves(f'{path}.{key}' if path else str(key), item)
    else:
        yield path, value


def _check(path: str, value: Any, kinds: tuple[type, ...], allowed: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f'{path}={_short(value)} is not supported; it must be {allowed}.')


def _hooks(cfg: Config) -> Iterator[tuple[str, Any]]:
    for name, hook in (cfg.get('default_hooks') or {}).items():
        yield f'default_hooks.{name}', hook
    for number, hook in enumerate(cfg.get('custom_hooks') or ()):
        yield f'custom_hooks.{number}', hook


def _steps(cfg: Config) -> Iterator[tuple[str, Any]]:
    for name in ('test_dataloader', 'train_dataloader'):
        loader = cfg.get(name)
        dataset = loader.get('dataset') if isinstance(loader, Mapping) else {}
        for number, step in enumerate((dataset or {}).get('pipeline') or ()):
            yield f'{name}.dataset.pipeline.{number}', step


def explain_duplicates(config: str, error: Exception) -> str | None:
    """Says what to do where two bases of a config set the same key.

    Args:
        config: File of the config.
        error: What mmengine raised on reading it.

    Returns:
        A sentence or two, ``None`` for another error.
    """
    found = DUPLICATES.search(str(error.args[0]) if error.args else '')
    if found is None:
        return None
    keys = sorted(re.findall(r"'([^']+)'", found[1]))
    named = ' and '.join(keys) or found[1]
    setters = _setters(config, keys)
    several = f' ({" and ".join(setters)})' if len(setters) > 1 else ''
    return (f'Two _base_ files of the config {config} set {named}{several}, and mmengine takes a '
            'top-level key from one base only. Take it out of one of them, or keep one base and '
            'write into the config itself what the other sets. For quantization no base is '
            "needed: `mmbitsplit quantize CONFIG CHECKPOINT` gives a config its 'quantization' "
            'dict, and configs/_base_/quantization.py sets neither custom_hooks nor '
            'custom_imports any more (a copy of an older one does: delete both there).')


def _setters(config: str, keys: list[str]) -> list[str]:
    """Names the bases of a config that set one of some keys, as the config spells them."""
    found = []
    for base in _bases(Path(config)):
        try:
            path, _ = Config._get_cfg_path(base, config)
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception:  # it has told its own error, or is no config alone
            continue
        if any(key in cfg for key in keys):
            found.append(base)
    return found


def _bases(config: Path) -> list[str]:
    """What a config gives as ``_base_``, nothing where that is computed."""
    for node in ast.parse(config.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [value] if isinstance(value, str) else list(value)
    return []


def _where(cfg: Config) -> str:
    return f'The config {cfg.filename}' if cfg.filename else 'The config'


def _short(value: Any) -> str:
    text = ' '.join(repr(value).split())
    return text if len(text) <= 60 else text[:60] + '…'
