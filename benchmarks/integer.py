"""Times models computed with integers inside torch against the float model, in one run.

Weights are random and rounded to the nearest codes, batch norms take the statistics of random
images, scales are calibrated on another: none of it changes the time. Calls of the float model, of
the quantized one in float and of the quantized one in integers take turns; the figure is the median
of the ratios of a turn. ONEDNN_MAX_CPU_ISA=AVX2 measures as on a processor without VNNI.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from torch import Tensor, nn

from benchmarks.onnx_latency import CASES, MULTIPLE, build, machine, quantize
from mmbitsplit.engine.onnx.export_targets import export_requests
from mmbitsplit.engine.run.map_order import may_be_channels_last
from mmbitsplit.models import quantized_layers, to_integer
from mmbitsplit.models.layers.integer_weight import IntegerWeight

WARM_UP = 4  # codes are packed after three calls with one shape
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


@dataclass(frozen=True)
class Timing:
    """One model with some number of threads."""

    model: str
    shape: tuple[int, int]
    threads: int
    isa: str
    float_ms: float
    simulated_ms: float
    integer_ms: float
    speedup: float
    integer_layers: int
    layers: int
    weight_bytes: int
    float_weight_bytes: int
    largest_difference: float


def alternate(models: dict[str, nn.Module], image: Tensor, repeats: int,
              clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of the calls of each model; calls of all take turns."""
    found: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(WARM_UP + repeats):
            for name, model in models.items():
                started = clock()
                model(image)
                if turn >= WARM_UP:
                    found[name].append(1000 * (clock() - started))
    return found


@torch.no_grad()
def settle(whole: nn.Module, shape: tuple[int, int]) -> None:
    """Gives batch norms the statistics of two random images: values stay sane with depth.

    Args:
        whole: Takes images; in eval mode, before and after.
        shape: Height and width of the images.
    """
    norms = [module for module in whole.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    whole(torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(3)))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def measure(name: str, args: argparse.Namespace) -> list[Timing]:
    """Times one model with each number of threads."""
    shape = tuple(max(MULTIPLE, round(size * args.scale / MULTIPLE) * MULTIPLE)
                  for size in CASES[name][1])
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(2))
    plain = build(name)
    settle(export_requests(plain, shape)[0].module, shape)
    simulated = copy.deepcopy(plain)
    quantize(simulated, shape, 'inputs', args.weight_bits)
    integer = copy.deepcopy(simulated)
    done = to_integer(integer, channels_last=may_be_channels_last(integer))
    models = {kind: export_requests(model, shape)[0].module for kind, model in (
        ('float', plain), ('simulated', simulated), ('integer', integer))}
    weights = [layer.weight_quantizer for _, layer in quantized_layers(integer)]
    float_bytes = sum(4 * weight.codes.numel() for weight in weights)
    held = sum(weight.nbytes if isinstance(weight, IntegerWeight)
               else 5 * weight.codes.numel() for weight in weights)
    with torch.inference_mode():
        difference = _difference(*(models[kind](image) for kind in ('simulated', 'integer')))
    timings = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        ms = alternate(models, image, args.repeats, CLOCKS[args.clock])
        timings.append(Timing(
            name, shape, threads, os.environ.get('ONEDNN_MAX_CPU_ISA', 'all'),
            *(statistics.median(ms[kind]) for kind in models),
            statistics.median(one / other for one, other in zip(ms['float'], ms['integer'])),
            len(done.integer), len(weights), held, float_bytes, difference))
        print(row(timings[-1]), flush=True)
    return timings


def _difference(simulated: Any, integer: Any) -> float:
    """Largest difference of two models' outputs, as a part of the largest value of a tensor."""
    if isinstance(simulated, Tensor):
        return float((simulated - integer).abs().max() / simulated.abs().max())
    return max(_difference(one, other) for one, other in zip(simulated, integer))


def row(timing: Timing) -> str:
    """A line of the table."""
    height, width = timing.shape
    return (f'| {timing.model} {height}x{width} | {timing.isa} | {timing.threads} '
            f'| {timing.float_ms:.0f} | {timing.simulated_ms:.0f} | {timing.integer_ms:.0f} '
            f'| {timing.speedup:.2f} | {timing.integer_layers} of {timing.layers} '
            f'| {timing.weight_bytes / timing.float_weight_bytes:.2f} '
            f'| {timing.largest_difference:.0e} |')


HEADER = ('| Model | Instructions | Threads | float32, ms | quantized in float, ms | integers, ms '
          '| Times faster than float32 | Integer layers | Weights to float32 '
          '| Difference of outputs |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', nargs='+', choices=list(CASES), default=list(CASES))
    parser.add_argument('--threads', type=int, nargs='+', default=[torch.get_num_threads()])
    parser.add_argument('--clock', choices=list(CLOCKS), default='wall',
                        help='cpu: time of the process, for one thread on a machine that others '
                             'use, too')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--weight-bits', type=int, default=4)
    parser.add_argument('--scale', type=float, default=1.0,
                        help='of the image sides, for a quick look')
    parser.add_argument('--json', type=Path, help='also write the numbers here')
    args = parser.parse_args()
    print(machine(max(args.threads)))
    print(HEADER, flush=True)
    timings = [timing for name in args.cases for timing in measure(name, args)]
    if args.json:
        args.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=2))


if __name__ == '__main__':
    main()
