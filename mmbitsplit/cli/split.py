"""Splits a checkpoint of several widths into a base file and residual files, or joins them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = 'work_dirs/resnet20/quantized.pth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('file', type=Path, help='quantized.pth of a model with several widths; '
                        'with --join, the base file')
    parser.add_argument('--join', type=Path, nargs='*', metavar='FILE',
                        help='put the base file and these residual files together: those of the '
                        'first few widths, or all')
    parser.add_argument('--output', type=Path, help='folder of the files; default: beside the '
                        'checkpoint. With --join, the file to write')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints what each holds."""
    from mmbitsplit.apis.split_files import join_files, split_file

    if args.join is not None:
        if args.output is None:
            raise ValueError('--join needs --output FILE: the checkpoint to write.')
        output = join_files(args.file, args.join, args.output)
        print(f'{output}: {output.stat().st_size:,} bytes')
        return 0
    total = 0
    for width, path in split_file(args.file, args.output).items():
        size = path.stat().st_size
        total += size
        what = f'adds width {width}' if width else 'the narrowest width of each layer'
        print(f'{path}: {size:,} bytes, {total:,} so far; {what}')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
