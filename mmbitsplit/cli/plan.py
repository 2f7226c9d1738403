"""Chooses widths layer by layer for several budgets from one measurement; no metric needed."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from mmbitsplit.cli.command import add_debug, run_module, say

EXAMPLE = ('configs/demo/retinanet_digits_w4a8.py --budgets 3 3.5 4 5 6 '
           '--work-dir work_dirs/plans')
SUFFIX = '_plans'  # of the work directory, beside that of the quantized model
MOST = 8  # bits of a weight: a limit that says nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import add_model_arguments

    add_model_arguments(parser, SUFFIX)
    parser.add_argument('--budgets', nargs='+', required=True, metavar='LIMIT',
                        help='each a plan: 4.5 (mean bits of a weight), 12MB (payload), bitops=0.2 '
                        'or latency=0.6 (parts of the model with 8 bits everywhere); several '
                        'limits of one plan joined by commas: 4.5,bitops=0.2')
    parser.add_argument('--latency-table', metavar='CSV', help='times of layers at widths, for '
                        'latency=...; benchmarks/layer_latency.py makes one')
    parser.add_argument('--widths', type=int, nargs='+', metavar='BITS',
                        help='what weights may have; default 2 3 4 8')
    parser.add_argument('--activation-widths', nargs='+', metavar='BITS',
                        help="what inputs may have, or 'tied': as many bits as the weights; "
                        'default: as the request says')
    parser.add_argument('--images', type=int, help='calibration images: solved and judged on')
    parser.add_argument('--resume', action='store_true',
                        help='take over what was measured in the work directory, for other '
                        'budgets too')
    parser.add_argument('--untrained', action='store_true',
                        help='random weights: to see how long it takes')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, and prints the plan of each budget."""
    from mmbitsplit.apis.plans import plan_config, plans_text
    from mmbitsplit.cli.complete_request import read_request_config
    from mmbitsplit.engine.run.quantize import read_spec
    from mmbitsplit.structures.widths import LIMITS, read_limits

    if args.launcher != 'none':
        raise ValueError(f'--launcher {args.launcher}: this tool works in one process; leave the '
                         'option out.')
    budgets = {text: read_limits(text.split(',')) for text in args.budgets}
    named = args.work_dir is not None
    cfg = read_request_config(args)
    asked = dict((cfg.get('quantization') or {}).get('budget') or {})
    asked = {name: value for name, value in asked.items() if name not in (*LIMITS, 'max_drop')}
    changes = {'widths': args.widths, 'activation_widths': _activation_widths(args),
               'latency_table': args.latency_table, 'weight_bits': MOST}
    asked |= {name: value for name, value in changes.items() if value is not None}
    for text, limits in budgets.items():
        _check(text, limits, asked)
    cfg.quantization.budget = asked
    read_spec(cfg)  # --images below would make a request where there is none
    if not named:
        cfg.work_dir += SUFFIX
    if args.images is not None:
        cfg.merge_from_dict({'quantization.calibration.num_images': args.images})
    found = plan_config(cfg, budgets, resume=args.resume, untrained=args.untrained,
                        tell=lambda line: say('plan', line))
    print(plans_text(found))
    print(f'Files are in {cfg.work_dir}; mmbitsplit quantize CONFIG --plan FILE takes one')
    return 0


def _activation_widths(args: argparse.Namespace) -> list[int] | str | None:
    texts = args.activation_widths
    if texts is None or texts == ['tied']:
        return texts and 'tied'
    if not all(text.isdecimal() for text in texts):
        raise ValueError(f"--activation-widths {' '.join(texts)}: give widths from 2 to 8, or "
                         "'tied'.")
    return [int(text) for text in texts]


def _check(text: str, limits: dict[str, float], asked: dict) -> None:
    """Refuses a limit that no budget can have before anything is measured; names the budget."""
    from mmbitsplit.structures import BudgetSpec, from_mapping

    from_mapping(BudgetSpec, {**asked, 'weight_bits': None, **limits}, f"--budgets '{text}'")


def after_interrupt(command: Sequence[str]) -> str:
    """Says how to go on after Ctrl-C."""
    again = shlex.join([*command, *([] if '--resume' in command else ['--resume'])])
    return f'what was measured is kept; go on with: {again}'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv, 'python tools/analysis_tools/plan.py')
