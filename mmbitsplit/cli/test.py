"""Evaluates a checkpoint by its config, such as quantized_config.py with quantized.pth."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, add_integer, run_module, say_error

EXAMPLE = 'work_dirs/retinanet/quantized_config.py work_dirs/retinanet/quantized.pth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import add_config_arguments
    from mmbitsplit.cli.width_arguments import add_width_arguments

    parser.add_argument('config', help='config of the model and its evaluation')
    parser.add_argument('checkpoint', help='its weights')
    add_config_arguments(parser)
    add_width_arguments(parser)
    parser.add_argument('--out', help='write the metrics to this JSON file')
    add_integer(parser, "as the config's model.integer says, else ")
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates, in each of the processes that a launcher started, and prints the metrics."""
    from mmbitsplit.cli.config_arguments import read_config
    from mmbitsplit.cli.width_arguments import chosen_bits, use_bits
    from mmbitsplit.engine.quantization_runner import runner_of
    from mmbitsplit.engine.run.distributed import (
        Processes,
        prepare_config,
        unite,
        work_together,
    )
    from mmbitsplit.engine.run.float_weights import load_weights
    from mmbitsplit.engine.run.integers import WORDS, default_mode
    from mmbitsplit.engine.run.preflight import check_data
    from mmbitsplit.engine.run.quantize import build_evaluation
    from mmbitsplit.engine.run.weight_averages import leave_out_averages
    from mmbitsplit.export import read_checkpoint
    from mmbitsplit.export.writing import (
        check_file,
        check_output_file,
        check_work_dir,
        write_json,
    )
    from mmbitsplit.structures import CalibrationSpec

    def work(processes: Processes) -> None:
        cfg = read_config(args)
        cfg.load_from = args.checkpoint
        use_bits(cfg, chosen_bits(args))
        quantized = cfg.model.get('type') == 'mmbitsplit.QuantizedModel'
        check_file(args.checkpoint, 'pass the checkpoint file.')
        if quantized:
            read_checkpoint(args.checkpoint)  # damage is told before data sets are read
            cfg.model.integer = cfg.model.get('integer', default_mode()) \
                if args.integer is None else WORDS[args.integer]
        elif args.integer == 'on':
            raise ValueError(f'--integer on: the model of {args.config} is not a quantized one; '
                             'pass the quantized_config.py beside a quantized.pth.')
        check_data(cfg, CalibrationSpec(num_images=0))
        check_work_dir(cfg.work_dir)
        if args.out:
            check_output_file(args.out)
        prepare_config(cfg)
        runner = runner_of(cfg)
        leave_out_averages(runner)
        if not quantized:
            load_weights(runner)  # mmengine alone would evaluate what does not fit
        build_evaluation(runner)
        unite(runner)
        metrics = runner.test()
        if processes.rank == 0:
            if args.out:
                write_json(Path(args.out), metrics)
            print(json.dumps(metrics, indent=2))

    return work_together(args.launcher, work, say_error, args.debug)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
