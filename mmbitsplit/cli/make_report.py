"""Makes report.html of a finished run again, from the files in its work directory."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = 'work_dirs/retinanet'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('work_dirs', nargs='+', type=Path, help='work directories of finished runs')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the page of each directory and prints where."""
    from mmbitsplit.engine.results.report_files import write_page

    for work_dir in args.work_dirs:
        print(write_page(work_dir))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
