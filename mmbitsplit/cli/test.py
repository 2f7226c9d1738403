"""Evaluates a checkpoint by its config, such as quantized_config.py with quantized.pth."""

import argparse
import json
import os.path as osp
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbitsplit.cli.command import add_debug, run_module, say_error

EXAMPLE = 'work_dirs/retinanet/quantized_config.py work_dirs/retinanet/quantized.pth'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from mmbitsplit.cli.config_arguments import add_config_arguments

    parser.add_argument('config', help='config of the model and its evaluation')
    parser.add_argument('checkpoint', help='its weights')
    add_config_arguments(parser)
    parser.add_argument('--out', help='write the metrics to this JSON file')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates, in each of the processes that a launcher started, and prints the metrics."""
    from mmengine.runner import Runner

    from mmbitsplit.cli.config_arguments import read_config
    from mmbitsplit.engine.distributed import Processes, prepare_config, unite, work_together
    from mmbitsplit.engine.files import write_json
    from mmbitsplit.export import read_checkpoint

    def work(processes: Processes) -> None:
        cfg = read_config(args)
        cfg.load_from = args.checkpoint
        if not osp.isfile(args.checkpoint):
            raise ValueError(f'{args.checkpoint} does not exist; pass the checkpoint file.')
        if cfg.model.type == 'mmbitsplit.QuantizedModel':
            read_checkpoint(args.checkpoint)  # damage is told before data sets are read
        prepare_config(cfg)
        runner = Runner.from_cfg(cfg)
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
