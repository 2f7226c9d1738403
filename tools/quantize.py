"""Quantizes the model of a config: float figures, quantized figures, checkpoint, tables."""

import argparse
import os
import os.path as osp
import sys

from mmengine.config import Config, DictAction

from mmbitsplit.apis import quantize_config
from mmbitsplit.engine.distributed import Processes, end_with, work_together
from mmbitsplit.report import results_text
from mmbitsplit.structures import nearest


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='example: python tools/quantize.py '
        'configs/retinanet_r50_w4a8.py --work-dir work_dirs/retinanet')
    parser.add_argument('config', help='config with a quantization dict')
    parser.add_argument('checkpoint', nargs='?',
                        help="float weights; the config's load_from when not given")
    parser.add_argument('--work-dir', help='where results go; default work_dirs/<config name>')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='settings of the config to replace, as key=value')
    parser.add_argument('--method', help="quantization.method.type with that method's own options; "
                        'what the config does not set is as the method has it')
    parser.add_argument('--weight-bits', type=int, help='2 to 8')
    parser.add_argument('--activation-bits', type=int, help='2 to 8')
    parser.add_argument('--seed', type=int, help='chooses calibration images and positions')
    parser.add_argument('--resume', action='store_true',
                        help='go on where an interrupted run in the work directory stopped')
    parser.add_argument('--untrained', action='store_true',
                        help='quantize random weights: measures speed and memory, not accuracy')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
                        default='none', help='job launcher of mmengine')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    return parser.parse_args()


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config and applies the command line to it."""
    if not osp.isfile(args.config):
        folder = osp.dirname(args.config) or '.'
        if not osp.isdir(folder):
            raise ValueError(f'The config {args.config} does not exist, nor does its folder; '
                             'pass a path such as configs/retinanet_r50_w4a8.py.')
        known = [name for name in os.listdir(folder) if name.endswith('.py')]
        raise ValueError(f'The config {args.config} does not exist; '
                         f'{nearest(osp.basename(args.config), known)}.')
    cfg = Config.fromfile(args.config)
    if args.method is not None:  # options of another method would mean nothing to it
        cfg.merge_from_dict({'quantization.method': dict(type=args.method, _delete_=True)})
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    changes = {'quantization.weight.num_bits': args.weight_bits,
               'quantization.activation.num_bits': args.activation_bits,
               'quantization.calibration.seed': args.seed, 'load_from': args.checkpoint}
    cfg.merge_from_dict({key: value for key, value in changes.items() if value is not None})
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
    cfg.launcher = args.launcher
    return cfg


def main() -> int:
    args = parse_args()

    def work(processes: Processes) -> None:
        cfg = load_config(args)
        results = quantize_config(cfg, config_name=args.config, untrained=args.untrained,
                                  resume=args.resume)
        if processes.rank == 0:
            print(results_text([results]))
            print(f'Files are in {cfg.work_dir}')

    return work_together(args.launcher, work, say_error, args.debug)


def say_error(message: str) -> None:
    print(f'error: {message}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    end_with(main)
