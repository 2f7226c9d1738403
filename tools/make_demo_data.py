"""Makes the demo data set: handwritten digits in cluttered scenes, as COCO and as class folders."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
from demo.digits import DigitsOptions, write_digits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Args:
        argv: Arguments without the program's name, those of the process where None.

    Returns:
        The options.
    """
    defaults = DigitsOptions()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/digits', help='directory to make')
    parser.add_argument('--num-train', type=int, default=defaults.num_train, help='scenes')
    parser.add_argument('--num-val', type=int, default=defaults.num_val, help='scenes')
    parser.add_argument('--num-cls-train', type=int, default=defaults.num_cls_train, help='crops')
    parser.add_argument('--num-cls-val', type=int, default=defaults.num_cls_val, help='crops')
    parser.add_argument('--seed', type=int, default=defaults.seed)
    parser.add_argument('--workers', type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument('--force', action='store_true', help='replace an existing data set')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Makes the data set and prints what was done.

    Args:
        argv: Arguments without the program's name, those of the process where None.

    Returns:
        The exit status.
    """
    import cv2

    args = parse_args(argv)
    cv2.setNumThreads(0)  # pictures this small are slower with threads
    started = time.perf_counter()
    try:
        options = DigitsOptions(
            seed=args.seed,
            num_train=args.num_train,
            num_val=args.num_val,
            num_cls_train=args.num_cls_train,
            num_cls_val=args.num_cls_val,
        )
        report = write_digits(args.out, options, force=args.force, workers=args.workers)
    except (ValueError, FileExistsError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    verb = 'wrote' if report.created else 'kept the existing'
    print(f'{verb} {report.root} in {time.perf_counter() - started:.1f} s')
    for name, count in report.counts.items():
        print(f'  {name}: {count}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
