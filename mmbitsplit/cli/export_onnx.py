"""Exports a quantized checkpoint to ONNX, in int8 that runtimes run in integers or in int4."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, positive, run_module

EXAMPLE = ('work_dirs/retinanet/quantized_config.py work_dirs/retinanet/quantized.pth '
           '--format int8 --shape 800 1344')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.width_arguments import add_width_arguments

    parser.add_argument('config', help='quantized_config.py of a work directory')
    parser.add_argument('checkpoint', help='quantized.pth beside it')
    parser.add_argument('--format', choices=['int8', 'int4'], default='int8',
                        help='int8 runs in integers; int4 stores codes of at most 4 bits in 4, '
                             'the smaller file, and runs in float')
    parser.add_argument('--shape', nargs=2, type=positive, metavar=('HEIGHT', 'WIDTH'),
                        help="size of the padded image; default: the test pipeline's")
    parser.add_argument('--dynamic', action='store_true',
                        help='let batch, height and width vary')
    parser.add_argument('--end2end', action='store_true',
                        help='of a single-stage detector: boxes are decoded and suppressed (NMS) '
                             'in the graph, which gives dets (N, K, 5) and labels (N, K)')
    parser.add_argument('--layout', choices=['mmdeploy'],
                        help="end2end.onnx with the JSON files that mmdeploy's runtime reads; a "
                             'detector needs --end2end')
    parser.add_argument('--output', help='folder of the files; default: onnx_<format> beside '
                                         'the checkpoint')
    parser.add_argument('--check', choices=['onnxruntime', 'openvino'], nargs='*',
                        help='say how many convolutions these runtimes run in integers; both '
                             'where none is named')
    add_width_arguments(parser)
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints what they hold."""
    from mmengine.config import Config

    from mmbitsplit.apis import export_onnx, load_quantized
    from mmbitsplit.cli.config_arguments import check_config_file
    from mmbitsplit.cli.width_arguments import chosen_bits
    from mmbitsplit.engine.onnx.evaluation import evaluation_shape
    from mmbitsplit.export.onnx.operator_check import executed_operators
    from mmbitsplit.export.onnx.processor import SaturationWarning, saturates, saturation_warning
    from mmbitsplit.export.onnx.runtimes import RUNTIMES
    from mmbitsplit.export.writing import check_file, check_work_dir

    check_config_file(args.config)
    check_file(args.checkpoint, 'pass quantized.pth of a work directory of tools/quantize.py.')
    model = load_quantized(args.config, args.checkpoint, bits=chosen_bits(args))
    folder = check_work_dir(args.output or Path(args.checkpoint).parent /
                            (args.layout or f'onnx_{args.format}'))
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    shape = tuple(args.shape) if args.shape else evaluation_shape(
        Config.fromfile(args.config), divisor)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', SaturationWarning)  # told below, file by file
        files = export_onnx(model, folder, format=args.format, shape=shape, dynamic=args.dynamic,
                            end2end=args.end2end, layout=args.layout)
    checked = [] if args.check is None else args.check or RUNTIMES
    for file in files:
        print(f'{file.path}: {file.layers} quantized layers, {len(file.folds)} calls with scales '
              f'folded, {file.bytes / 1e6:.2f} MB')
        if file.storage_note:
            print(f'  note: {file.storage_note}')
        for runtime in checked:
            print(f'  {runtime}: {executed_operators(file.path, runtime)}')
        if file.saturating:
            here = any(map(saturates, checked or RUNTIMES))
            print(f'  warning: {saturation_warning(file.saturating, here=here)}')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
