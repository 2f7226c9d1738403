"""Puts several runs into one table and one plot: Markdown, CSV and a page."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = 'work_dirs/retinanet_w4a8 work_dirs/retinanet_w8a8 --out work_dirs/comparison'
STEM = 'comparison'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('work_dirs', nargs='+', type=Path, help='work directories of finished runs')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/comparison'),
                        help=f'folder for {STEM}.html, {STEM}.md and {STEM}.csv; '
                             'default work_dirs/comparison')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the three files and prints the table."""
    from mmbitsplit.engine.results.artifacts import LAYERS, RESULTS
    from mmbitsplit.engine.results.report_files import read_file
    from mmbitsplit.export.writing import check_work_dir, write_text
    from mmbitsplit.report.comparison import (
        comparison_csv,
        comparison_markdown,
        comparison_page,
        comparison_rows,
        differing_widths,
    )

    runs = {name: (read_file(work_dir, RESULTS), read_file(work_dir, LAYERS))
            for name, work_dir in zip(run_names(args.work_dirs), args.work_dirs)}
    rows = [row for name, (results, layers) in runs.items()
            for row in comparison_rows(name, results, layers)]
    widths = differing_widths(runs)
    out = check_work_dir(args.out)
    text = comparison_markdown(rows, widths)
    print(text)
    write_text(out / f'{STEM}.md', text + '\n')
    write_text(out / f'{STEM}.csv', comparison_csv(rows))
    write_text(out / f'{STEM}.html', comparison_page(rows, widths))  # the last: it needs plotly
    print(f'Files are in {out}')
    return 0


def run_names(work_dirs: Sequence[Path]) -> list[str]:
    """Names each directory by the part of its path that not all of them share.

    Raises:
        ValueError: A directory is given twice.
    """
    paths = [os.path.abspath(work_dir) for work_dir in work_dirs]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f'{path} is given twice; name each work directory once.')
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
