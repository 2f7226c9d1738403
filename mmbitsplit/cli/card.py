"""Writes the model card (README.md) of a finished run, and pushes it to the Hub if asked."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = 'work_dirs/retinanet --base-model my-name/retinanet --license apache-2.0'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('work_dir', type=Path, help='work directory of a finished run')
    parser.add_argument('--base-model', metavar='REPO',
                        help='the float model on the Hub, OWNER/NAME; without it the card names '
                             'the float checkpoint in its text alone')
    parser.add_argument('--license', help="the model's licence, by the Hub's name for it")
    parser.add_argument('--push', metavar='REPO',
                        help='upload card, config, checkpoint, results.json and layers.json to '
                             'this repository of the Hub, OWNER/NAME; it is made if there is none')
    parser.add_argument('--private', action='store_true', help='make that repository a private one')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the card, pushes it if asked, and prints where both are."""
    from mmbitsplit.apis.hub import push_run, write_card

    print(write_card(args.work_dir, base_model=args.base_model, license=args.license,
                     repo=args.push))
    if args.push:
        print(push_run(args.work_dir, args.push, private=args.private))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
