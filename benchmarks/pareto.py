"""Figures 3 and 4 of PTMQ on CIFAR networks: sensitivity over size, and top-1 over size.

One calibration gives a model of several widths (``--method``); the plans of its front, uniform
ones beside them, are set in it and evaluated, without calibrating again. Leaves ``pareto.json``,
a plan a budget, ``figure_3.svg`` and ``figure_4.svg`` in ``--out``. The paper's figures are of
ResNet-18 on ImageNet, which is not at hand: theirs show points and no table, and say that mixed
plans of 4 bits are 2 points above uniform ones.

Data and weights are those of ``benchmarks/cifar.py``.

Source: Xu et al., *PTMQ* (AAAI 2024), Figures 3 and 4.
"""

import argparse
import json
import time
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import numpy as np
import torch

from benchmarks.cifar import NETWORKS, accuracy, load_images, load_model, predict
from benchmarks.front_pictures import picture
from benchmarks.method_names import own_options
from mmbitsplit.apis import pareto_front, quantize_model, set_plan
from mmbitsplit.structures import plan_text
from mmbitsplit.structures.plan_file import widths_value
from mmbitsplit.structures.plan_front import PlanFront


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--network', choices=list(NETWORKS), default='resnet20')
    parser.add_argument('--num-images', type=int, default=1024, help='of calibration')
    parser.add_argument('--judged', type=int, default=512, help='of these, plans are measured on')
    parser.add_argument('--test-images', type=int, help='default: all')
    parser.add_argument('--method', default='NestedBitSplit')
    parser.add_argument('--widths', type=int, nargs='+', default=[3, 4, 6, 8])
    parser.add_argument('--activation-widths', type=int, nargs='+', help='default: tied')
    parser.add_argument('--options', nargs='*', default=(), help='of the method')
    parser.add_argument('--budgets', nargs='+', default=['3.5', '4', '5', '6'])
    parser.add_argument('--evaluations', type=int, default=200)
    parser.add_argument('--granularity', default='block')
    parser.add_argument('--pairs', default='tied')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--reference', choices=['float', 'widest'], default='float')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    network = NETWORKS[args.network]
    calib, _ = load_images(args.data / 'calib', None, network.mean, network.std)
    images, labels = load_images(args.data / 'test', args.test_images, network.mean,
                                 network.std)
    float_model = load_model(network, [args.data])
    top1 = accuracy(predict(float_model, images), labels)
    print(f'{network.label} float: {top1:.2f}', flush=True)
    order = np.random.default_rng(args.seed).permutation(len(calib))[:args.num_images]
    chosen = calib[torch.from_numpy(order)]

    model, started = load_model(network, [args.data]), time.perf_counter()
    quantize_model(model, list(chosen.split(64)), dict(
        method={**dict(type=args.method, widths=args.widths),
                **({} if args.activation_widths is None
                   else dict(activation_widths=args.activation_widths)),
                **own_options(args.method, args.options)}, calibration=dict(seed=args.seed)))
    print(f'calibrated in {time.perf_counter() - started:.0f} s', flush=True)
    front = pareto_front(
        model, list(chosen[:args.judged].split(256)), args.budgets, seed=args.seed,
        evaluations=args.evaluations, granularity=args.granularity, pairs=args.pairs,
        reference=float_model if args.reference == 'float' else None)
    print(f'{front.measured} plans measured in {front.seconds:.0f} s', flush=True)
    rows = []
    for one in front.plans:
        set_plan(model, one.plan)
        rows.append(accuracy(predict(model, images), labels))
        print(f'{one.found.name:<20} {one.found.costs["weight_bits"]:5.2f} bits '
              f'{one.found.costs["bytes"] / 1e3:8.1f} kB  bitops {one.found.costs["bitops"]:.3f}  '
              f'loss {one.found.whole:.4g}  top-1 {rows[-1]:.2f}', flush=True)
    leave(front, rows, top1, args.out)


def leave(front: PlanFront, top1: list[float], float_top1: float, out: Path) -> None:
    """Writes plans, figures and what they show.

    Args:
        front: With plans.
        top1: Of each plan, percent.
        float_top1: Of the float model.
        out: Folder.
    """
    found = front.to_json()
    for row, value in zip(found['plans'], top1):
        row['top1'] = value
    (out / 'pareto.json').write_text(json.dumps({**found, 'float_top1': float_top1}, indent=1))
    for one in front.plans:
        if one.best:
            (out / f'plan_{one.budget}.json').write_text(plan_text(widths_value(one.plan)))
    kilobytes = [one.found.costs['bytes'] / 1e3 for one in front.plans]
    for number, values, label, logarithmic in (
            (3, [one.found.whole for one in front.plans], 'loss (KL divergence)', True),
            (4, top1, 'top-1, %', False)):
        points = {name: [(x, y, one.found.name.removeprefix(f'{name} '))
                         for x, y, one in zip(kilobytes, values, front.plans)
                         if one.source == name] for name in ('program', 'genetic', 'uniform')}
        behind = [(each['bytes'] / 1e3, each['whole']) for each in front.looked_at] \
            if number == 3 else []
        (out / f'figure_{number}.svg').write_text(picture(
            points, 'size, kB', label, behind=behind, logarithmic=logarithmic))


if __name__ == '__main__':
    main()
