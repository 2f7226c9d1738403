"""Evaluates a checkpoint by its config, such as quantized_config.py with quantized.pth."""

import argparse
import json
import os.path as osp
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import mmbitsplit.engine  # noqa: F401  registers the hook and the wrapper
from mmbitsplit.engine.distributed import (
    Processes,
    end_with,
    prepare_config,
    unite,
    work_together,
)
from mmbitsplit.engine.files import write_json
from mmbitsplit.export import read_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='example: python tools/test.py '
        'work_dirs/retinanet/quantized_config.py work_dirs/retinanet/quantized.pth')
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--work-dir')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
                        default='none')
    args = parser.parse_args()

    def work(processes: Processes) -> None:
        cfg = Config.fromfile(args.config)
        if args.cfg_options is not None:
            cfg.merge_from_dict(args.cfg_options)
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
        cfg.load_from, cfg.launcher = args.checkpoint, args.launcher
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

    return work_together(args.launcher, work, say_error)


def say_error(message: str) -> None:
    print(f'error: {message}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    end_with(main)
