"""Keeps the figures of finished runs in a small file of results/, for the tables of pages."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = 'work_dirs/paper/table3/resnet20 --to results/cifar/table3_resnet20.json'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('folders', nargs='+', type=Path,
                        help='work directories; every results.json below them is taken')
    parser.add_argument('--to', type=Path, required=True,
                        help='file to write; what it held before is replaced')
    parser.add_argument('--command', help='what made the runs, where their folders do not know; '
                        '{config} in it stands for the config of each')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Reads the folders and writes the file.

    Raises:
        ValueError: Nothing has finished there, a cell failed, or a command is not known.
    """
    from bench.stored_runs import FAILURE, RESULTS, read_folder, stored_text
    from mmbitsplit.export.writing import check_work_dir, write_text

    folders = dict.fromkeys(path.parent for folder in args.folders
                            for name in (RESULTS, FAILURE) for path in folder.rglob(name))
    runs = [read_folder(folder, args.command) for folder in folders]
    failed = [run['cell'] for run in runs if 'error' in run]
    if failed or not runs:
        raise ValueError(f'nothing to store: {len(failed)} of the cells failed, such as '
                         f'{failed[0]}; run them again.' if failed else
                         f'no results.json below {", ".join(map(str, args.folders))}; pass work '
                         'directories of tools/quantize.py or tools/paper_tables.py.')
    for entry in runs:
        entry['command'] = entry['command'].replace('{config}', entry['config'])
    check_work_dir(args.to.parent)
    write_text(args.to, stored_text(in_order(runs)))
    print(f'{len(runs)} run(s) stored in {args.to}; tools/update_tables.py writes the tables')
    return 0


def in_order(runs: Sequence[dict]) -> list[dict]:
    """Sorts runs as tables have them: cells by table, model, bits and method, others by config."""
    from bench.paper.summary import cell_order

    return sorted(runs, key=lambda run: (
        (1, cell_order(run['cell'])) if 'cell' in run else
        (0, (run['config'], -run['weight_bits'], -(run['activation_bits'] or 32)))))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
