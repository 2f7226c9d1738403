"""Quantizes each layer alone and tells what that does to the outputs and to the metric."""

import argparse
import sys
from collections.abc import Sequence

from mmbitsplit.cli.command import add_debug, run_module, say

EXAMPLE = ('configs/demo/retinanet_digits_w4a8.py --weight-bits 2 3 4 --metric-images 50 '
           '--work-dir work_dirs/sensitivity')
SUFFIX = '_sensitivity'  # of the work directory, beside that of the quantized model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import add_model_arguments

    add_model_arguments(parser, SUFFIX)
    parser.add_argument('--weight-bits', type=int, nargs='*', default=[2, 3, 4, 8],
                        help='widths of weight codes, inputs in float; default 2 3 4 8')
    parser.add_argument('--activation-bits', type=int, nargs='*', default=[],
                        help='widths of input codes, weights in float; default none')
    parser.add_argument('--images', type=int, default=16,
                        help='calibration images: solved and judged on; default 16')
    parser.add_argument('--metric-images', type=int, default=0, metavar='N',
                        help='evaluate each trial on N evaluation images, on all where there '
                        'are fewer; default none')
    parser.add_argument('--layers', default='*', metavar='PATTERN',
                        help="only layers of this name, such as 'backbone.*'")
    parser.add_argument('--resume', action='store_true',
                        help='go on after the layers that are done in the work directory')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, telling a line a layer, and writes table and heat map."""
    from mmbitsplit.apis.sensitivity import SensitivityOptions, measure_sensitivity
    from mmbitsplit.cli.complete_request import read_request_config
    from mmbitsplit.engine.run.quantize import read_spec

    if args.launcher != 'none':
        raise ValueError(f'--launcher {args.launcher}: this tool works in one process; leave the '
                         'option out, and share layers between runs with --layers.')
    named = args.work_dir is not None
    cfg = read_request_config(args)
    read_spec(cfg)  # --images below would make a request where there is none
    if not named:
        cfg.work_dir += SUFFIX
    cfg.merge_from_dict({'quantization.calibration.num_images': args.images})
    options = SensitivityOptions(tuple(args.weight_bits), tuple(args.activation_bits),
                                 args.metric_images, args.layers)
    measure_sensitivity(cfg, options, resume=args.resume,
                        tell=lambda line: say('layer', line))
    print(f'Files are in {cfg.work_dir}')
    return 0


def after_interrupt(command: Sequence[str]) -> str:
    """Says how to go on after Ctrl-C."""
    return 'layers that were done are kept; --resume goes on after them'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv, 'python tools/analysis_tools/sensitivity.py')
