"""Calibrates CIFAR networks once for several widths, and prints top-1 at each of them.

Beside it stand the same method at each width by itself, and Bit-split. Seconds are those of
processors, which other programs on the machine hardly change: take OMP_NUM_THREADS=1. Data and
weights are those of ``benchmarks/cifar.py``.
"""

import argparse
import time
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import numpy as np
import torch

from benchmarks.cifar import (
    NETWORKS,
    Network,
    accuracy,
    agreement,
    load_images,
    load_model,
    over_seeds,
    predict,
)
from benchmarks.method_names import own_options
from mmbitsplit.apis import quantize_model
from mmbitsplit.models import set_bits


def request(method: dict, seed: int, bits: int | None = None, options: tuple = ()) -> dict:
    """The quantization dict of a method, at one width where ``bits`` says so."""
    widths = {} if bits is None else dict(weight=dict(num_bits=bits),
                                          activation=dict(num_bits=bits))
    return dict(method={**method, **own_options(method['type'], options)},
                calibration=dict(seed=seed), **widths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--network', choices=list(NETWORKS), default='resnet20')
    parser.add_argument('--num-images', type=int, default=1024)
    parser.add_argument('--widths', type=int, nargs='+', default=[3, 4, 6, 8])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--options', nargs='*', default=(), help='of the method, as nesting=planes')
    parser.add_argument('--method', default='NestedBitSplit', help='that solves several widths')
    parser.add_argument('--alone', nargs='*', default=['same', 'BitSplit'],
                        help='single-width methods beside it; "same": that method at one width')
    parser.add_argument('--effort', default=None, help='of all of them')
    args = parser.parse_args()
    network = NETWORKS[args.network]
    calib, _ = load_images(args.data / 'calib', None, network.mean, network.std)
    images, labels = load_images(args.data / 'test', None, network.mean, network.std)
    floats = predict(load_model(network, [args.data]), images)
    print(f'{network.label} float: {accuracy(floats, labels):.2f}', flush=True)
    effort = {} if args.effort is None else dict(effort=args.effort)

    def run(label: str, method: dict, bits: int | None, evaluated: list[int],
            options: tuple = ()) -> None:
        found: dict[int, list] = {one: [] for one in evaluated}
        seconds = []
        for seed in args.seeds:
            model, spent = calibrated(network, args, calib, request(
                {**method, **effort}, seed, bits, options), seed)
            seconds.append(spent)
            for one in evaluated:
                if bits is None:
                    set_bits(model, one)
                found[one].append(predict(model, images))
        for one, logits in found.items():
            print(f'{label:32s} W{one}A{one} {over_seeds([accuracy(x, labels) for x in logits])}, '
                  f'as float {over_seeds([agreement(x, floats) for x in logits])}  '
                  f'({np.mean(seconds):.1f} s)', flush=True)

    joint = dict(type=args.method, widths=args.widths)
    run(' '.join([args.method, *args.options]), joint, None, args.widths, tuple(args.options))
    for name in args.alone:
        for bits in args.widths:
            if name == 'same':
                run(f'{args.method} alone', dict(type=args.method, widths=[bits]), None, [bits],
                    tuple(args.options))
            else:
                run(f'{name} alone', dict(type=name), bits, [bits])


def calibrated(network: Network, args: argparse.Namespace, calib: torch.Tensor, asked: dict,
               seed: int) -> tuple[torch.nn.Module, float]:
    """A network calibrated once, and the seconds of processors that it took."""
    chosen = torch.randperm(len(calib), generator=torch.Generator().manual_seed(seed))
    batches = calib[chosen[:args.num_images]].split(64)
    model = load_model(network, [args.data])
    started = time.process_time()
    quantize_model(model, batches, asked)
    return model, time.process_time() - started


if __name__ == '__main__':
    main()
