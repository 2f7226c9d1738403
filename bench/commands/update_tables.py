"""Writes the marked tables of README.md and configs/, and the metafiles, from results/."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = '--check'
PAGES = ('README.md', 'README_zh-CN.md', 'configs/**/README.md', 'docs/**/*.md')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('--root', type=Path, default=Path('.'),
                        help='the repository; default: the current folder')
    parser.add_argument('--check', action='store_true',
                        help='write nothing; list what is out of date and exit with 1')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes or checks every page; returns 1 where ``--check`` finds something."""
    from mmbitsplit.export.writing import write_text

    stale = {path: text for path, text in wanted(args.root).items()
             if not path.is_file() or path.read_text(encoding='utf-8') != text}
    for path, text in stale.items():
        print(f'{"out of date" if args.check else "written"}: {path}')
        if not args.check:
            write_text(path, text)
    if not stale:
        print('every table is up to date')
    return int(args.check and bool(stale))


def wanted(root: Path) -> dict[Path, str]:
    """Returns the text that pages, metafiles and model index must have.

    Args:
        root: The repository.

    Raises:
        ValueError: A mark is not understood or its runs are missing; names the page.
    """
    from bench.marked_tables import regenerate
    from bench.model_zoo import FAMILIES, metafile_text, model_index_text

    texts = {}
    for path in pages(root):
        try:
            texts[path] = regenerate(path.read_text(encoding='utf-8'), root)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    for name, family in FAMILIES.items():
        texts[root / family.folder / 'metafile.yml'] = metafile_text(root, name)
    texts[root / 'model-index.yml'] = model_index_text()
    return texts


def pages(root: Path) -> list[Path]:
    """Lists the pages that may hold marked tables."""
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
