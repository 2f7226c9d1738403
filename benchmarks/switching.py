"""Times switching a model between widths, beside a forward of the same model, in one run.

Weights are random, each layer gets all widths in one set of codes, and inputs have the same widths.
Neither codes nor scales change the time. Switches and forwards take turns; figures are medians.
The processor's time of a switch does not grow where other programs run beside.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from torch import nn

from benchmarks.onnx_latency import CASES, MULTIPLE, build, machine, quantize
from mmbitsplit.engine.onnx.export_targets import export_requests
from mmbitsplit.functional import midrise_offset, narrower_codes, narrower_qparams
from mmbitsplit.models import QuantizedLayer, quantized_layers, set_bits

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """One model with some number of threads."""

    model: str
    shape: tuple[int, int]
    threads: int
    widths: tuple[int, ...]
    layers: int
    switch_ms: float
    processor_us: float  # a layer, of all threads
    largest_us: float
    forward_ms: float
    ratio: float
    code_bytes: int
    real_bytes: int


def widen(layer: QuantizedLayer, widths: list[int]) -> None:
    """Gives a layer of 8 bits the narrower widths that its codes hold."""
    whole = layer.solution()
    parts = [replace(
        whole, num_bits=num_bits, nesting='floor',
        codes=narrower_codes(whole.codes, 8, num_bits, 'floor'),
        weight_scale=whole.weight_scale * 2 ** (8 - num_bits),
        weight_offset=midrise_offset(whole.weight_scale * 2 ** (8 - num_bits)))
        for num_bits in sorted({8, *widths}, reverse=True)]
    inputs = () if whole.qparams is None else tuple(
        narrower_qparams(whole.qparams, 2 ** (8 - num_bits), num_bits)
        for num_bits in widths if num_bits < 8)
    layer.install(replace(parts[0], narrower=tuple(parts[1:]), narrower_inputs=inputs))
    layer.release_float()


def seconds(call, *args) -> tuple[float, float]:
    """What a call takes, and what of it processors work."""
    started, worked = time.perf_counter(), time.process_time()
    call(*args)
    return time.perf_counter() - started, time.process_time() - worked


def measure(name: str, args: argparse.Namespace) -> Timing:
    """Times one model."""
    shape = tuple(max(MULTIPLE, round(size * args.scale / MULTIPLE) * MULTIPLE)
                  for size in CASES[name][1])
    model: nn.Module = build(name)
    quantize(model, shape, 'inputs', 8)
    layers = [layer for _, layer in quantized_layers(model)]
    for layer in layers:
        widen(layer, args.widths)
    module = export_requests(model, shape)[0].module
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(2))
    switches, worked, forwards, single = [], [], [], {layer: [] for layer in layers}
    with torch.inference_mode():
        for turn, num_bits in zip(range(WARM_UP + args.repeats), cycle(args.widths)):
            switch, forward = seconds(set_bits, module, num_bits), seconds(module, image)
            if turn >= WARM_UP:
                switches.append(switch[0])
                worked.append(switch[1])
                forwards.append(forward[0])
        for _, num_bits in zip(range(2 * len(args.widths)), cycle(args.widths)):
            for layer in layers:
                single[layer].append(seconds(layer.use, num_bits)[0])
    return Timing(
        name, shape, torch.get_num_threads(), tuple(args.widths), len(layers),
        1e3 * statistics.median(switches), 1e6 * statistics.median(worked) / len(layers),
        1e6 * max(map(statistics.median, single.values())),
        1e3 * statistics.median(forwards),
        statistics.median(one / other for one, other in zip(switches, forwards)),
        sum(layer.codes.numel() for layer in layers),
        sum(4 * layer.product_weight.numel() for layer in layers))


def row(timing: Timing) -> str:
    """A line of the table."""
    height, width = timing.shape
    return (f'| {timing.model} {height}x{width} | {timing.threads} | {timing.layers} '
            f'| {timing.switch_ms:.1f} | {1000 * timing.switch_ms / timing.layers:.0f} '
            f'| {timing.processor_us:.0f} | {timing.largest_us:.0f} | {timing.forward_ms:.0f} '
            f'| {timing.ratio:.2f} |')


HEADER = ('| Model | Threads | Layers | Switch, ms | a layer, us | processor, us '
          '| largest layer, us | Forward, ms | Switch to forward |\n'
          '|---|---:|---:|---:|---:|---:|---:|---:|---:|')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', nargs='+', choices=list(CASES), default=['resnet18', 'resnet50'])
    parser.add_argument('--widths', type=int, nargs='+', default=[3, 4, 6, 8])
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--scale', type=float, default=1.0,
                        help='of the image sides, for a quick look')
    parser.add_argument('--json', type=Path, help='also write the numbers here')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args.threads))
    print(HEADER, flush=True)
    timings = []
    for name in args.cases:
        timings.append(measure(name, args))
        print(row(timings[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=2))


if __name__ == '__main__':
    main()
