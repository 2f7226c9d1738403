"""Quantizes the model of a config: float figures, quantized figures, checkpoint, tables."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmbitsplit.cli.command import add_debug, add_integer, run_module, say_error

EXAMPLE = ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py --weight-bits 4 '
           '--work-dir work_dirs/yolox_tiny')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.budget_arguments import add_budget_arguments
    from mmbitsplit.cli.config_arguments import add_model_arguments
    from mmbitsplit.methods import METHODS, PIPELINES

    add_model_arguments(parser)
    parser.add_argument('--method', help='another quantizer, with its own defaults: '
                        + ', '.join(METHODS))
    parser.add_argument('--pipeline', help="a paper's whole procedure, with its own method unless "
                        '--method gives another: ' + ', '.join(PIPELINES))
    parser.add_argument('--weight-bits', type=int, help='2 to 8')
    parser.add_argument('--activation-bits', type=int, help='2 to 8; inputs stay float with '
                        '--cfg-options quantization.activation.num_bits=None')
    parser.add_argument('--plan', metavar='FILE', help='widths layer by layer: the plan.json of a '
                        'work directory, edited; wins over all other widths')
    add_budget_arguments(parser)
    parser.add_argument('--seed', type=int, help='chooses calibration images and positions')
    parser.add_argument('--resume', action='store_true',
                        help='go on where an interrupted run in the work directory stopped')
    parser.add_argument('--evaluate-widths', action='store_true',
                        help='evaluate a model of several widths (NestedBitSplit, PTMQ) at each of '
                        'them, not at its widest alone; with --resume also of a finished run')
    parser.add_argument('--untrained', action='store_true',
                        help='quantize random weights: measures speed and memory, not accuracy')
    add_integer(parser)
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Quantizes, in each of the processes that a launcher started, and prints the figures."""
    from mmbitsplit.apis import quantize_config
    from mmbitsplit.cli.budget_arguments import apply_budget, budget_text
    from mmbitsplit.cli.complete_request import read_request_config
    from mmbitsplit.engine.results.report_files import REPORT
    from mmbitsplit.engine.run.distributed import Processes, work_together
    from mmbitsplit.engine.run.integers import WORDS
    from mmbitsplit.report import results_text
    from mmbitsplit.report.multiplications import multiplications_text
    from mmbitsplit.report.tables import widths_text

    def work(processes: Processes) -> None:
        cfg = read_request_config(args, procedure(args.method, args.pipeline))
        changes = {'quantization.weight.num_bits': args.weight_bits,
                   'quantization.activation.num_bits': args.activation_bits,
                   'quantization.plan': args.plan,
                   'quantization.calibration.seed': args.seed,
                   'quantization.evaluate_widths': args.evaluate_widths or None}
        cfg.merge_from_dict({key: value for key, value in changes.items() if value is not None})
        apply_budget(cfg, args)
        results = quantize_config(cfg, config_name=args.config, untrained=args.untrained,
                                  resume=args.resume, integer=None if args.integer is None
                                  else WORDS[args.integer])
        if processes.rank == 0:
            print(results_text([results]))
            print(multiplications_text(results['multiplications']))
            if (found := widths_text(results)):
                print(found)
            if 'budget' in results:
                print(budget_text(results['budget']))
            page = Path(cfg.work_dir) / REPORT
            print(f'Files are in {cfg.work_dir}'
                  + (f'; {page} shows every layer' if page.is_file() else ''))

    return work_together(args.launcher, work, say_error, args.debug)


def procedure(method: str | None, pipeline: str | None) -> dict[str, Any]:
    """Settings that stand for a method and a pipeline; options of others would mean nothing to it.
    """
    from mmbitsplit.structures import QuantSpec

    named = {} if method is None else {'method': {'type': method}}
    if pipeline is None:
        return {f'quantization.{part}': {**value, '_delete_': True}
                for part, value in named.items()}
    return {'quantization.method': {**QuantSpec().method, '_delete_': True},
            'quantization.tuning': None,
            'quantization.pipeline': {'type': pipeline, **named, '_delete_': True}}


def after_interrupt(command: Sequence[str]) -> str:
    """Says how to go on after Ctrl-C.

    Args:
        command: The interrupted command line.
    """
    again = shlex.join([*command, *([] if '--resume' in command else ['--resume'])])
    return f'figures and layers that were done are kept; go on with: {again}'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
