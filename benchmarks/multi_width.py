"""Calibrates CIFAR networks once for several widths, and prints top-1 at each of them.

Beside it stand the same method at each width by itself, and Bit-split. With ``--front 4`` the
plans of a mean of 4 bits are searched on the calibration images instead, and stand beside uniform
widths: ``'4,bitops=0.25'`` also bounds the bit operations, which mean bits leave free. Seconds are
those of processors, which other programs on the machine hardly change: take OMP_NUM_THREADS=1.
What only the first calibration of a process pays (kernels are loaded) is paid before, on a few
images. Data and weights are those of ``benchmarks/cifar.py``.
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
from mmbitsplit.apis import pareto_front, quantize_model, set_plan
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
    parser.add_argument('--front', nargs='+', help='budgets of plans, as of mmbitsplit pareto')
    parser.add_argument('--evaluations', type=int, default=200, help='plans measured a budget')
    parser.add_argument('--search', default='both', help='of plans: program, genetic or both')
    parser.add_argument('--granularity', default='block', help='of plans: block or layer')
    parser.add_argument('--pairs', nargs='+', default=['tied'],
                        help='of widths in plans: tied, all (activations free) or both')
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
    if args.front:
        fronts(network, args, calib, (images, labels, floats), {**joint, **effort})
        return
    for asked in (request(dict(type='NestedBitSplit', effort='fast'), 0),
                  request(dict(type='BitSplit', effort='fast'), 0, 4)):
        quantize_model(load_model(network, [args.data]), calib[:16].split(4), asked)
    run(' '.join([args.method, *args.options]), joint, None, args.widths, tuple(args.options))
    for name in args.alone:
        for bits in args.widths:
            if name == 'same':
                run(f'{args.method} alone', dict(type=args.method, widths=[bits]), None, [bits],
                    tuple(args.options))
            else:
                run(f'{name} alone', dict(type=name), bits, [bits])


def fronts(network: Network, args: argparse.Namespace, calib: torch.Tensor,
           test: tuple[torch.Tensor, torch.Tensor, torch.Tensor], method: dict) -> None:
    """Prints plans of budgets beside uniform widths, over all seeds.

    Args:
        network, args, calib: See ``calibrated``.
        test: Images, labels and the float scores of them.
        method: With its widths.
    """
    images, labels, floats = test
    figures: dict[str, list[tuple[float, ...]]] = {}
    reference = load_model(network, [args.data])
    for seed in args.seeds:
        model, _ = calibrated(network, args, calib, request(method, seed, None, args.options),
                              seed)
        batches = chosen(calib, args.num_images, seed)
        for pairs in args.pairs:
            front = pareto_front(model, batches, args.front, seed=seed, reference=reference,
                                 evaluations=args.evaluations, granularity=args.granularity,
                                 pairs=pairs, search=args.search)
            print(f'seed {seed}, {pairs}: {front.measured} plans measured in '
                  f'{front.seconds:.0f} s', flush=True)
            for one in front.plans:
                if not one.budget and pairs != 'tied':
                    continue  # as many as there are pairs of widths
                name = f'{pairs} {one.source} {one.budget}' if one.budget else one.found.name
                set_plan(model, one.plan)
                logits, costs = predict(model, images), one.found.costs
                figures.setdefault(name, []).append((
                    accuracy(logits, labels), agreement(logits, floats), one.found.whole,
                    costs['weight_bits'], costs['bitops']))
    for name, rows in figures.items():
        top1, alike, loss, bits, operations = zip(*rows)
        print(f'{name:28s} {over_seeds(top1)}, as float {over_seeds(alike)}, divergence '
              f'{over_seeds(loss, 4)}, {np.mean(bits):.2f} bits, bit operations '
              f'{np.mean(operations):.3f}  ({" ".join(f"{one:.2f}" for one in top1)})',
              flush=True)


def chosen(calib: torch.Tensor, num_images: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Batches of the images that a seed calibrates on."""
    order = torch.randperm(len(calib), generator=torch.Generator().manual_seed(seed))
    return calib[order[:num_images]].split(64)


def calibrated(network: Network, args: argparse.Namespace, calib: torch.Tensor, asked: dict,
               seed: int) -> tuple[torch.nn.Module, float]:
    """A network calibrated once, and the seconds of processors that it took."""
    batches = chosen(calib, args.num_images, seed)
    model = load_model(network, [args.data])
    started = time.process_time()
    quantize_model(model, batches, asked)
    return model, time.process_time() - started


if __name__ == '__main__':
    main()
