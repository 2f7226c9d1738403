"""The arguments that choose among the widths of a checkpoint."""

import argparse
import re
from typing import Any


def add_width_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--bits`` and ``--plan``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--bits', metavar='WIDTH', help='of a model with several widths, which to '
                       'use: 4 for weights and activations, or W3A8; default: the widest')
    group.add_argument('--plan', metavar='FILE', help='widths layer by layer: a plan.json')


def chosen_bits(args: argparse.Namespace) -> int | dict[str, int] | str | None:
    """What is asked for, as ``load_quantized`` takes it.

    Raises:
        ValueError: ``--bits`` is no width.
    """
    if args.plan is not None:
        return args.plan
    return None if args.bits is None else read_bits(args.bits)


def read_bits(text: str) -> int | dict[str, int]:
    """Reads ``4``, ``W4``, ``A8`` or ``W3A8``.

    Raises:
        ValueError: It is none of these.
    """
    if text.isdecimal():
        return int(text)
    found = re.fullmatch(r'(?:[wW](?P<weight>\d+))?(?:[aA](?P<activation>\d+))?', text)
    if not text or found is None:
        raise ValueError(f'--bits {text}: give a width such as 4, or W3A8 for 3-bit weights and '
                         '8-bit activations.')
    return {name: int(value) for name, value in found.groupdict().items() if value is not None}


def use_bits(cfg: Any, bits: int | dict[str, int] | str | None) -> None:
    """Writes what is asked for into the config of a quantized model.

    Raises:
        ValueError: The model is a float one.
    """
    if bits is None:
        return
    if cfg.model.get('type') != 'mmbitsplit.QuantizedModel':
        raise ValueError('--bits and --plan choose among the widths of a quantized checkpoint; '
                         'pass quantized_config.py of a work directory.')
    cfg.model.quantized_bits = bits
