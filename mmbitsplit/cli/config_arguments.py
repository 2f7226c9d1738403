"""The arguments of every command that reads a config, and their errors in the user's words."""

import argparse
import ast
import inspect
import os
import os.path as osp
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmbitsplit.engine.configs.config_shape import check_shape, explain_duplicates
from mmbitsplit.engine.configs.data_root import move_data
from mmbitsplit.engine.configs.upstream_configs import find_upstream, is_upstream_name
from mmbitsplit.spelling import close_names, nearest

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
SCOPES = ('mmengine', 'mmdet', 'mmpretrain')
SUFFIXES = ('.py', '.yml', '.yaml', '.json')
ALIKE = 0.75  # how alike two names are when one is taken for the other, misspelled


class ConfigOptions(DictAction):
    """``key=value ...`` of mmengine, with errors in one line and values that may hold spaces."""

    def __call__(self, parser, namespace, values, option_string=None):
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values:
            key, equals, text = pair.partition('=')
            if not key or not equals:
                parser.error(f"{option_string} takes key=value, got '{pair}'; an example: "
                             f'{option_string} quantization.weight.num_bits=3')
            try:
                options[key] = self._value(text)
            except (AssertionError, ValueError) as error:
                parser.error(f"{option_string}: the value of '{pair}' cannot be read ({error}); "
                             'quote it for the shell, and close every bracket.')
        setattr(namespace, self.dest, options)

    def _value(self, text: str) -> Any:
        """Reads a value; mmengine's reader alone would drop every space of it."""
        text = text.strip('\'"') if text[:1] in '\'"' else text
        if text[:1] not in ('[', '(') and ',' not in text:
            return self._parse_int_float_bool(text)
        if text.startswith('['):
            try:
                return ast.literal_eval(text)
            except (ValueError, SyntaxError):
                pass  # words without quotes, which mmengine allows
        return self._parse_iterable(text)


def add_model_arguments(parser: argparse.ArgumentParser, suffix: str = '') -> None:
    """Adds ``config``, ``checkpoint`` with float weights, and what ``add_config_arguments`` adds.

    Args:
        parser, suffix: See there.
    """
    parser.add_argument('config', help='a config, or the name of one of mmdet or mmpretrain, '
                        'such as mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    parser.add_argument('checkpoint', nargs='?',
                        help="float weights; when not given, the config's load_from, or for a "
                        'name what its package publishes')
    add_config_arguments(parser, suffix)


def add_config_arguments(parser: argparse.ArgumentParser, suffix: str = '') -> None:
    """Adds ``--work-dir``, ``--cfg-options``, ``--data-root`` and ``--launcher``.

    Args:
        parser: Of the command.
        suffix: What the command adds to the name of the default work directory.
    """
    parser.add_argument('--work-dir', help='where results go; default work_dirs/<config name>'
                        + suffix)
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='settings of the config to replace, such as '
                        'quantization.calibration.num_images=64')
    parser.add_argument('--data-root', metavar='FOLDER', help="where the config's data are, laid "
                        'out as in its own data_root')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none',
                        help='what started this process, where there are several')


def read_config(args: argparse.Namespace, changes: Mapping[str, Any] | None = None,
                prepare: Callable[[Config], Any] | None = None) -> Config:
    """Reads ``args.config`` and applies the options to it; sets ``work_dir`` and ``launcher``.

    Args:
        args: Parsed; with the arguments of ``add_config_arguments`` and ``config``.
        changes: Settings by dotted path that are replaced before the options are.
        prepare: Completes the config in place before anything is replaced.

    Raises:
        ValueError: The file is not there or cannot be read, or an option does not fit it.
    """
    cfg = read_file(args.config)
    if getattr(args, 'data_root', None) is not None:
        check_shape(cfg)
        move_data(cfg, args.data_root)
    if prepare is not None:
        check_shape(cfg)
        _check_scope(cfg.get('default_scope'))
        prepare(cfg)
    if changes:
        cfg.merge_from_dict(dict(changes))
    if args.cfg_options is not None:
        check_options(cfg, args.cfg_options)
        cfg.merge_from_dict(args.cfg_options)
    check_shape(cfg)
    _check_scope(cfg.get('default_scope'))
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
    cfg.launcher = getattr(args, 'launcher', 'none')
    return cfg


def read_file(config: str) -> Config:
    """Reads a config: a file, or one of an installed package by name.

    Raises:
        ValueError: It is not there, or cannot be read.
    """
    if is_upstream_name(config):
        path = str(find_upstream(config))
    else:
        check_config_file(config)
        path = config
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise ValueError(f'The config {config} builds on a file that is not there: '
                         f'{_sentence(error)}') from error
    except ImportError as error:  # mmengine's own words are all folders that were looked in
        cause = error.__cause__ or error.__context__ or error
        raise ValueError(f'The config {config} imports what is not found ({_sentence(cause)}); '
                         'name the folder that holds it: PYTHONPATH=. for configs of this '
                         'repository.') from error
    except Exception as error:  # a config is a program: it can raise anything
        raise ValueError(explain_duplicates(path, error) or (
            f'The config {config} cannot be read: {type(error).__name__}: '
            f'{_sentence(error)}')) from error


def check_config_file(config: str) -> None:
    """Raises ``ValueError`` unless there is a file of a kind that mmengine reads."""
    if osp.isfile(config):
        if not config.endswith(SUFFIXES):
            raise ValueError(f'{config} is no config: allowed are files that end in '
                             f'{", ".join(SUFFIXES)}.')
        return
    if osp.isdir(config):
        raise ValueError(f'{config} is a folder, not a config; pass a file such as '
                         'configs/retinanet_r50_w4a8.py.')
    folder = osp.dirname(config) or '.'
    if not osp.isdir(folder):
        raise ValueError(f'The config {config} does not exist, nor does its folder; '
                         'pass a path such as configs/retinanet_r50_w4a8.py.')
    known = [name for name in os.listdir(folder) if name.endswith('.py')]
    raise ValueError(f'The config {config} does not exist; '
                     f'{nearest(osp.basename(config), known)}.')


def _check_scope(scope: str | None) -> None:
    """Raises ``ValueError`` for a misspelled upstream scope, of which mmengine only warns."""
    close = close_names(str(scope), SCOPES, alike=ALIKE)
    if scope not in SCOPES and close and find_spec(str(scope).split('.')[0]) is None:
        raise ValueError(f"default_scope='{scope}' is not an installed package; did you mean "
                         f"'{close[0]}'?")


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a path that leads nowhere, or to a misspelled top-level name."""
    for path in options:
        first, *rest = path.split('.')
        if first not in cfg and first not in _runner_settings():
            close = close_names(first, cfg.keys(), alike=ALIKE)
            if close:
                raise ValueError(f"--cfg-options {path}: the config has no '{first}'; did you "
                                 f"mean '{close[0]}'?")
        _follow(path, cfg.get(first), rest)
        inside = [other for other in options if other.startswith(f'{path}.')]
        if inside:
            raise ValueError(f'--cfg-options sets both {path} and {inside[0]} inside it; give '
                             'one of them.')


def _follow(path: str, value: Any, keys: list[str]) -> None:
    """Raises ``ValueError`` where a path goes through something that has no such part."""
    passed = path.split('.')[:len(path.split('.')) - len(keys)]
    for key in keys:
        where = '.'.join(passed)
        if isinstance(value, Mapping):
            if key not in value:
                return  # a new key; who reads it says whether it knows it
            value = value[key]
        elif isinstance(value, (list, tuple)):
            if not key.isdigit() or int(key) >= len(value) or isinstance(value, tuple):
                raise ValueError(f"--cfg-options {path}: {where} is a {type(value).__name__} of "
                                 f"{len(value)}, '{key}' is not one of its places"
                                 + (f' 0 to {len(value) - 1}.' if len(value) else '.'))
            value = value[int(key)]
        elif value is None:
            return
        else:
            raise ValueError(f"--cfg-options {path}: {where} is {value!r}, which has no part "
                             f"'{key}'.")
        passed.append(key)


def _sentence(error: Exception) -> str:
    return ' '.join(str(error).split()).rstrip('.!') + '.'


def _runner_settings() -> set[str]:
    """Top-level names that a Runner reads without their being in the config."""
    return set(inspect.signature(Runner.__init__).parameters)
