"""Finds the plans of a model with several widths that are worth having; nothing is calibrated."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from mmbitsplit.cli.command import add_debug, positive, run_module

EXAMPLE = ('work_dirs/retinanet/quantized_config.py work_dirs/retinanet/quantized.pth '
           '--budgets 3 3.5 4 5 6 --work-dir work_dirs/retinanet_pareto')
SUFFIX = '_pareto'  # of the work directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import add_config_arguments

    parser.add_argument('config', help='quantized_config.py of a work directory')
    parser.add_argument('checkpoint', help='quantized.pth with several widths, of NestedBitSplit '
                        'or PTMQ')
    add_config_arguments(parser, SUFFIX)
    parser.add_argument('--budgets', nargs='+', default=[], metavar='LIMIT',
                        help='each a plan: 4.5 (mean bits of a weight), 12MB (payload), bitops=0.2 '
                        '(part of the model with 8 bits everywhere); several limits of one plan '
                        'joined by commas: 4.5,bitops=0.2; default 3 3.5 4 5 6 as far as possible')
    parser.add_argument('--search', choices=['program', 'genetic', 'both'], default='both',
                        help='program: integer program on sums of what blocks lose; genetic: '
                        'evolutionary search on the measured loss of whole plans; default both, '
                        'the second beginning at what the first found')
    parser.add_argument('--evaluations', type=positive, default=200, metavar='N',
                        help='most plans that the genetic search measures a budget; default 200')
    parser.add_argument('--granularity', choices=['block', 'layer'], default='block',
                        help='what gets widths of its own; default block')
    parser.add_argument('--pairs', choices=['tied', 'all'], default='tied',
                        help='tied: activations of a block as wide as its weights; all: every '
                        'pair of widths; default tied')
    parser.add_argument('--images', type=positive, default=64,
                        help='calibration images that plans are measured on; default 64')
    parser.add_argument('--seed', type=int, default=0, help='of the genetic search; default 0')
    parser.add_argument('--resume', action='store_true',
                        help='take over losses that were measured in the work directory')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and searches, and prints the plan of each budget."""
    import mmbitsplit.engine  # noqa: F401  registers the wrapper
    from mmbitsplit.apis.pareto import read_budgets
    from mmbitsplit.apis.pareto_files import pareto_of_files
    from mmbitsplit.calibration.pareto import FrontOptions
    from mmbitsplit.cli.config_arguments import read_config
    from mmbitsplit.engine.run.model_wrapper import check_wrapped
    from mmbitsplit.export.writing import check_file
    from mmbitsplit.report.front import front_text

    if args.launcher != 'none':
        raise ValueError(f'--launcher {args.launcher}: this tool works in one process; leave the '
                         'option out.')
    options = FrontOptions(
        budgets=read_budgets(args.budgets), search=args.search, evaluations=args.evaluations,
        granularity=args.granularity, pairs=args.pairs, seed=args.seed)
    named = args.work_dir is not None
    cfg = read_config(args)
    check_wrapped(cfg)
    check_file(args.checkpoint, 'pass the checkpoint file.')
    if not named:
        cfg.work_dir += SUFFIX
    found = pareto_of_files(cfg, args.checkpoint, options, images=args.images, resume=args.resume)
    print(front_text(found))
    print(f"{found['measured']} plans were measured in {found['seconds']:.0f} s. Files are in "
          f'{cfg.work_dir}; mmbitsplit test and mmbitsplit export take one with --plan FILE')
    return 0


def after_interrupt(command: Sequence[str]) -> str:
    """Says how to go on after Ctrl-C."""
    again = shlex.join([*command, *([] if '--resume' in command else ['--resume'])])
    return f'what was measured is kept; go on with: {again}'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv, 'python tools/analysis_tools/pareto.py')
