"""Writes quantized.pth as quantized.safetensors with a JSON summary beside it, or back as .pth."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = 'work_dirs/retinanet/quantized.pth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('file', type=Path, help='quantized.pth or quantized.safetensors')
    parser.add_argument('--output', type=Path,
                        help='the file to write, .safetensors or .pth; default: beside the file, '
                             'with the other ending')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the other file and prints which files there are now."""
    from mmbitsplit.apis.checkpoint_files import convert_checkpoint

    for path in convert_checkpoint(args.file, args.output):
        print(f'{path}: {path.stat().st_size:,} bytes')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
