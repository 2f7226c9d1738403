"""What names of methods on the benchmarks' command lines stand for.

``NAME[@STEPS][:MODE]``: any registered method, in any case, or one of ``SHORT``; with other steps
than published where it learns; with another mode of the activations (per_tensor, per_channel, ecaq)
or another placement of quantizers (deploy, residual, calibtip, qdrop, brecq).
"""

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from mmbitsplit.calibration import METHODS
from mmbitsplit.models import set_bits
from mmbitsplit.spelling import nearest

SHORT = {'rounding': 'MSE', 'paper': 'PublishedBitSplit', 'default': 'BitSplit',
         'fast': 'BitSplit', 'best': 'BitSplit'}
EFFORTS = ('fast', 'best')
MODES = ('per_tensor', 'per_channel', 'ecaq')
PLACEMENTS = ('inputs', 'deploy', 'residual', 'calibtip', 'qdrop', 'brecq')
STEPS = 'iterations'


def add_method_arguments(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Adds ``--methods``, ``--iterations``, ``--method-options`` and ``--tuning``."""
    parser.add_argument('--methods', '--method', nargs='+', default=list(default), metavar='METHOD',
                        help=f'NAME[@STEPS][:MODE], of {", ".join([*SHORT, *sorted(METHODS)])}; '
                        'all for every registered one')
    parser.add_argument('--iterations', type=int, metavar='STEPS',
                        help='steps of methods that learn, instead of as many as published; names '
                        'in the output say them')
    parser.add_argument('--method-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='options of the methods, each for those that have it')
    parser.add_argument('--tuning', nargs='*', metavar='KEY=VALUE',
                        help='OutputTuning comes after each method, with these options, instead of '
                        'what the method brings')


def add_width_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--at``."""
    parser.add_argument('--at', nargs='+', default=[], metavar='W/A',
                        help='methods that solve several widths: where their models are measured, '
                        'instead of at the widest')


def at_each(model: nn.Module, pairs: Sequence[str]) -> Iterator[str]:
    """Switches a model of several widths through ``--at``; names each as 'W4A8'.

    Yields one empty name, and leaves the model alone, where no pairs are asked for.
    """
    if not pairs:
        yield ''
    for pair in pairs:
        weight, activation = map(int, pair.split('/'))
        set_bits(model, weight=weight, activation=activation)
        yield f'W{weight}A{activation}'


def chosen_methods(args: argparse.Namespace) -> list[str]:
    """Names that the arguments ask for, each with its steps where they are not as published."""
    names = sorted(METHODS) if args.methods == ['all'] else args.methods
    return [with_steps(name, args.iterations) for name in names]


def tuning_request(args: argparse.Namespace) -> dict[str, Any]:
    """``tuning`` of a ``quantization`` dict: one stage where ``--tuning`` is given, or nothing."""
    if args.tuning is None:
        return {}
    return {'tuning': [{'type': 'OutputTuning', **typed_options(args.tuning)}]}


def typed_options(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as options; numbers, truth values, lists with commas and lists of lists of
    digits (``3,4/6/8``) are read as such."""
    return {key: _value(value) for key, value in (text.split('=', 1) for text in texts)}


def with_steps(name: str, iterations: int | None) -> str:
    """A name with other steps, where its method learns and it says none itself."""
    if iterations is None or '@' in name:
        return name
    method, colon, mode = name.partition(':')
    return f'{method}@{iterations}{colon}{mode}' if _steps_of(method_type(method)) else name


def method_type(name: str) -> str:
    """The registered method that a name stands for, in any case.

    Raises:
        ValueError: There is none; names the nearest.
    """
    known = {**{method.lower(): method for method in METHODS}, **SHORT}
    if name.lower() not in known:
        raise ValueError(f"method '{name}' is not known; {nearest(name, [*SHORT, *METHODS])}.")
    return known[name.lower()]


def method_request(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``method`` dict and the keys of ``activation`` that a name stands for.

    Raises:
        ValueError: Method, mode or steps are not known.
    """
    method, _, mode = name.partition(':')
    method, _, steps = method.partition('@')
    found: dict[str, Any] = {'type': method_type(method)}
    if method.lower() in EFFORTS:
        found['effort'] = method.lower()
    if steps:
        published = _steps_of(found['type'])
        if not published or not steps.isdigit() or not int(steps):
            raise ValueError(f"method '{name}': after the @ stand the steps of a method that "
                             'learns, a number from 1.')
        found |= {option: max(1, round(count * int(steps) / published[STEPS]))
                  for option, count in published.items()}
    if mode and mode not in (*MODES, *PLACEMENTS):
        raise ValueError(f"method '{name}': {nearest(mode, [*MODES, *PLACEMENTS])}.")
    return found, {} if not mode else {'mode' if mode in MODES else 'placement': mode}


def own_options(method: str, texts: Sequence[str]) -> dict[str, Any]:
    """Of ``KEY=VALUE`` those that are options of a method; numbers are read as such."""
    names = {field.name for field in dataclasses.fields(METHODS[method])}
    return {key: value for key, value in typed_options(texts).items() if key in names}


def _steps_of(method: str) -> dict[str, int]:
    """Options that are numbers of steps, with how many are published; nothing without any."""
    found = {field.name: field.default for field in dataclasses.fields(METHODS[method])
             if field.name.endswith(STEPS)}
    return found if STEPS in found else {}


def _value(text: str) -> Any:
    if re.fullmatch(r'[\d,]+(/[\d,]+)+', text):
        return [[int(digits) for digits in part.split(',') if digits] for part in text.split('/')]
    if ',' in text:
        return [_value(part) for part in text.split(',') if part]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {'True': True, 'False': False}.get(text, text)

