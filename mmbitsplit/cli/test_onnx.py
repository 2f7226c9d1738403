"""Evaluates exported ONNX graphs with a runtime inside upstream's evaluation."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, positive, run_module

EXAMPLE = ('work_dirs/retinanet/quantized_config.py work_dirs/retinanet/onnx_int8 '
           '--checkpoint work_dirs/retinanet/quantized.pth')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import ConfigOptions

    parser.add_argument('config', help='quantized_config.py of a work directory')
    parser.add_argument('folder', help='folder that tools/export_onnx.py wrote')
    parser.add_argument('--runtime', choices=['onnxruntime', 'openvino'], default='onnxruntime',
                        help='what computes the graphs; default onnxruntime')
    parser.add_argument('--threads', type=positive, help='threads of the runtime')
    parser.add_argument('--checkpoint', help='quantized.pth: compare the raw outputs with it')
    parser.add_argument('--compare', type=positive, default=16, metavar='CALLS',
                        help='calls of each graph that are compared; default 16')
    parser.add_argument('--work-dir', help='where logs go; default work_dirs/<config name>')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='settings of the config to replace')
    parser.add_argument('--data-root', metavar='FOLDER', help="where the config's data are, laid "
                        'out as in its own data_root')
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument('--out-comparison', help='write the comparison to this JSON file')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates the graphs and prints the metrics."""
    from mmengine.runner import Runner

    import mmbitsplit.engine  # noqa: F401  registers the wrapper
    from mmbitsplit.apis import load_quantized
    from mmbitsplit.cli.config_arguments import read_config
    from mmbitsplit.engine.configs.config_errors import naming_config_errors
    from mmbitsplit.engine.onnx.evaluation import (
        GraphComparison,
        load_graphs,
        saturating_layers_of,
    )
    from mmbitsplit.engine.onnx.export_targets import use_graphs
    from mmbitsplit.engine.run.model_wrapper import check_wrapped
    from mmbitsplit.engine.run.preflight import check_data
    from mmbitsplit.engine.run.quantize import build_evaluation
    from mmbitsplit.export.onnx.processor import saturates, saturation_warning
    from mmbitsplit.export.writing import check_output_file, check_work_dir, write_json
    from mmbitsplit.structures import CalibrationSpec

    cfg = read_config(args)
    check_wrapped(cfg)
    check_data(cfg, CalibrationSpec(num_images=0))
    check_work_dir(cfg.work_dir)
    for path in filter(None, (args.out, args.out_comparison)):
        check_output_file(path)
    cfg.load_from = None  # no weights of torch take part
    graphs = load_graphs(args.folder, args.runtime, args.threads)
    wrong = saturating_layers_of(args.folder) if saturates(args.runtime) else []
    if wrong:
        print(f'warning: {saturation_warning(wrong, here=True)}', file=sys.stderr)
    comparison = None
    if args.checkpoint:
        comparison = GraphComparison(load_quantized(args.config, args.checkpoint).model,
                                     args.compare)
    with naming_config_errors():
        runner = Runner.from_cfg(cfg)
    build_evaluation(runner)
    use_graphs(runner.model.model, graphs, comparison or (lambda *call: None))
    metrics = runner.test()
    if args.out:
        write_json(Path(args.out), metrics)
    if args.out_comparison and comparison:
        write_json(Path(args.out_comparison), comparison.table())
    print(json.dumps(metrics, indent=2))
    for graph, found in (comparison.table() if comparison else {}).items():
        print(f"{graph}: {100 * found['within_one_step']:.3f} % of {found['elements']} elements "
              f"within one step of the torch model, the farthest {found['largest_steps']:.2f} "
              'steps away; torch in double precision: '
              f"{100 * found['torch_double_within_one_step']:.3f} %, "
              f"{found['torch_double_largest_steps']:.2f}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
