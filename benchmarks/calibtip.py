"""What each stage of CalibTIP's pipelines gains: widths by budget, renewed norms, bias tuning.

Rows are cumulative, as in the paper's ablation: a method at one width everywhere, then, with
``--budget``, at widths chosen within that many bits a weight on average; then, as ``--stages``
says, with batch norms renewed (``NormReestimation``), then with biases tuned (``BiasTuning``).
Rows without a stage have what the method brings. Figures as in ``benchmarks/cifar.py`` and
``benchmarks/imagenet_mini.py``, whose data and networks these are; ``lite0`` needs ``--imagenet``
and ``--lite0-weights``.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import cifar, imagenet_mini
from benchmarks.budget_rows import add_budget_arguments, budget_options, plan_taken
from benchmarks.cifar import NETWORKS, accuracy, agreement, divergence, over_seeds
from benchmarks.method_names import add_method_arguments, chosen_methods, typed_options
from mmbitsplit.apis import quantize_model

NORMS, BIASES = 'NormReestimation', 'BiasTuning'


@dataclass(frozen=True)
class Case:
    """A network, the images of a seed, and the others.

    Args:
        build: Makes the trained float model.
        split: Gives, by seed, calibration batches, images to evaluate on, and their labels.
        predict: Logits of a model.
    """

    build: Callable[[], nn.Module]
    split: Callable[[int], tuple[Sequence[Tensor], Tensor, Tensor]]
    predict: Callable[[nn.Module, Tensor], Tensor]


def cifar_case(network: cifar.Network, args: argparse.Namespace) -> Case:
    """A network for CIFAR-10; calibrated on training images drawn by the seed."""
    folders = [folder for folder in (args.data, args.weights) if folder is not None]
    calib, _ = cifar.load_images(args.data / 'calib', None, network.mean, network.std)
    images, labels = cifar.load_images(args.data / 'test', None, network.mean, network.std)

    def split(seed: int) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        chosen = torch.randperm(len(calib), generator=torch.Generator().manual_seed(seed))
        return calib[chosen[:args.num_images]].split(64), images, labels

    return Case(lambda: cifar.load_model(network, folders), split, cifar.predict)


def lite0_case(args: argparse.Namespace) -> Case:
    """EfficientNet-Lite0; calibrated on 64 images drawn by the seed, evaluated on the others."""
    images, labels = imagenet_mini.load_images(args.imagenet)

    def split(seed: int) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        return images[order[:64]].split(8), images[order[64:]], labels[order[64:]]

    return Case(lambda: imagenet_mini.load_model(args.lite0_weights), split,
                imagenet_mini.predict)


def rows(args: argparse.Namespace) -> Iterator[tuple[str, float | None, list[dict[str, Any]]]]:
    """Yields what a row adds, the mean bits within which widths are chosen, and the stages."""
    known = {'norms': {'type': NORMS, **typed_options(args.norm_options)},
             'biases': {'type': BIASES, **typed_options(args.bias_options)}}
    stages = [known[name] for name in args.stages]
    names = [''.join(f' + {name}' for name in args.stages[:count + 1])
             for count in range(len(stages))]
    yield 'alone', None, []
    if not args.budget:
        for count, name in enumerate(names, 1):
            yield name[1:], None, stages[:count]
        if args.apart:
            yield '+ biases', None, [known['biases']]
    for budget in args.budget:
        yield '+ widths', budget, []
        for count, name in enumerate(names, 1):
            yield f'+ widths{name}', budget, stages[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True, help='of benchmarks/cifar.py')
    parser.add_argument('--weights', type=Path, help='another folder of weights')
    parser.add_argument('--imagenet', type=Path, help='of benchmarks/imagenet_mini.py')
    parser.add_argument('--lite0-weights', type=Path)
    parser.add_argument('--networks', nargs='+', choices=[*NETWORKS, 'lite0'],
                        default=['resnet20'])
    parser.add_argument('--num-images', type=int, default=1024, help='of CIFAR-10')
    parser.add_argument('--bits', nargs='+', default=['4/4', '3/4'],
                        help='weight/activation bits of the uniform row')
    add_budget_arguments(parser)
    parser.add_argument('--stages', nargs='*', choices=('norms', 'biases'),
                        default=['norms', 'biases'], help='that come after widths, in this order')
    add_method_arguments(parser, ['RoundToNearest'])
    parser.add_argument('--norm-options', nargs='*', default=[], metavar='KEY=VALUE')
    parser.add_argument('--bias-options', nargs='*', default=[], metavar='KEY=VALUE')
    parser.add_argument('--apart', action='store_true', help='bias tuning without norms, too')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    args = parser.parse_args()
    warnings.filterwarnings('ignore', category=UserWarning, module='mmbitsplit')
    for name in args.networks:
        case = lite0_case(args) if name == 'lite0' else cifar_case(NETWORKS[name], args)
        for bits in args.bits:
            for method in chosen_methods(args):
                measure(name, case, bits, method, args)


def measure(name: str, case: Case, bits: str, method: str, args: argparse.Namespace) -> None:
    """Prints the rows of one method at one width."""
    weight_bits, activation_bits = map(int, bits.split('/'))
    floats, plans = {}, {}
    for row, budget, stages in rows(args):
        found = []
        for seed in args.seeds:
            batches, images, labels = case.split(seed)
            if seed not in floats:
                floats[seed] = case.predict(case.build(), images)
            spec = cifar.request(method, weight_bits, activation_bits, seed, args.method_options)
            if budget is not None:  # chosen once; the later rows calibrate at the same widths
                spec |= {'plan': plans[budget, seed]} if (budget, seed) in plans else {'budget': {
                    'weight_bits': budget, **budget_options(args.budget_options)}}
            # Rows that ask for no stage have those that the method brings.
            spec |= {'tuning': stages} if stages else {}
            model, started = case.build(), time.process_time()
            report = quantize_model(model, batches, spec)
            seconds = time.process_time() - started
            if budget is not None:
                plans[budget, seed] = report.plan
            if report.budget:
                print(f'{name} seed {seed}, {plan_taken(report.budget)}', flush=True)
            logits = case.predict(model, images)
            found.append((accuracy(logits, labels), agreement(logits, floats[seed]),
                          divergence(logits, floats[seed]), seconds,
                          [stage['kept'] != 'start' for stage in report.tuning],
                          accuracy(floats[seed], labels)))
        top1, agree, apart, seconds, kept, before = zip(*found)
        kept = ', '.join(f'{stage["type"]} kept {sum(taken)} of {len(kept)}'
                         for stage, taken in zip(report.tuning, zip(*kept)))
        width = f'W{weight_bits}' if budget is None else f'mean {budget:g}'
        print(f'{name} {width}A{activation_bits} {method} {row}: {over_seeds(top1)} (float '
              f'{np.mean(before):.2f}), as float {over_seeds(agree)}, divergence '
              f'{over_seeds(apart, 4)}  ({np.mean(seconds):.0f} s of a core){"; " * bool(kept)}'
              f'{kept}', flush=True)


if __name__ == '__main__':
    main()
