"""Times each layer and product of models inside a forward: float32, quantized in float, integers.

    PYTHONPATH=. python benchmarks/integer_layers.py mmpretrain::deit/deit-tiny_4xb256_in1k.py

Weights are random, batch norms take the statistics of random images; neither changes the time.
Forwards of the three models take turns, and each layer's figure is the median over turns of the
processor time inside its call, so that what lies in caches and how maps lie in memory is as in use.
What a layer rounds is in its time, a batch norm behind a float layer is not. With
ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 NUMBA_CPU_NAME=haswell
it is as on a processor without VNNI.
"""

import argparse
import copy
import json
import logging
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

import mmbitsplit.engine  # noqa: F401  declares operators that mmpretrain's import needs
from benchmarks.integer import WARM_UP, settle
from benchmarks.model_probe import build_model
from mmbitsplit.apis import quantize_model
from mmbitsplit.engine.configs.upstream_configs import MARK, find_upstream
from mmbitsplit.engine.onnx.export_targets import export_requests
from mmbitsplit.engine.run.map_order import may_be_channels_last
from mmbitsplit.models import quantized_layers, quantized_products, to_integer

KINDS = ('float', 'simulated', 'integer')


def build(name: str) -> nn.Module:
    """A config's model with random weights."""
    cfg = Config.fromfile(find_upstream(name) if MARK in name else name)
    init_default_scope(cfg.get('default_scope', name.partition(MARK)[0]))
    return build_model(cfg)


class Clock:
    """Sums the processor time inside the calls of some modules, a forward at a time."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.turns: dict[str, list[float]] = {name: [] for name in modules}
        self.shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        self._first = True
        self._now: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}
        for name, module in modules.items():
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave(name))

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple) -> None:
            self._started[name] = time.process_time()
        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            self._now[name] += time.process_time() - self._started[name]
            if self._first:
                self.shapes[name].append(tuple(inputs[0].shape))
        return hook

    def end_turn(self, keep: bool) -> None:
        """Notes the milliseconds of a forward."""
        for name, seconds in self._now.items():
            if keep:
                self.turns[name].append(1000 * seconds)
        self._first = False
        self._now.clear()

    def medians(self) -> dict[str, float]:
        """Milliseconds of each module that was called."""
        return {name: statistics.median(each) for name, each in self.turns.items() if each}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times one model.

    Returns:
        Names of layers and products to rows, and the medians of whole forwards.
    """
    shape = tuple(args.shape)
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(2))
    plain = build(name)
    whole = export_requests(plain, shape)[0].module
    settle(whole, shape)
    simulated = copy.deepcopy(plain)
    quantize_model(export_requests(simulated, shape)[0].module, [image], dict(
        weight=dict(num_bits=args.weight_bits), activation=dict(num_bits=8),
        method=dict(type='RoundToNearest'),
        calibration=dict(num_images=1, rows_per_layer=256, holdout=0.0)))
    integer = copy.deepcopy(simulated)
    done = to_integer(integer, channels_last=may_be_channels_last(integer))
    models = dict(zip(KINDS, (plain, simulated, integer)))
    parts = {**dict(quantized_layers(simulated)), **dict(quantized_products(simulated))}
    clocks, wholes, totals = {}, {}, {kind: [] for kind in KINDS}
    for kind, model in models.items():
        there = dict(model.named_modules())
        clocks[kind] = Clock({part: there[part] for part in parts if part in there})
        wholes[kind] = export_requests(model, shape)[0].module
    with torch.inference_mode():
        for turn in range(WARM_UP + args.repeats):
            for kind in KINDS:
                started = time.process_time()
                wholes[kind](image)
                if turn >= WARM_UP:
                    totals[kind].append(1000 * (time.process_time() - started))
                clocks[kind].end_turn(turn >= WARM_UP)
    return dict(model=name, shape=shape, isa=os.environ.get('ONEDNN_MAX_CPU_ISA', 'all'),
                left=done.left, total={kind: statistics.median(totals[kind]) for kind in KINDS},
                rows=rows_of(parts, clocks, done.left))


def rows_of(parts: dict[str, nn.Module], clocks: dict[str, Clock], left: dict[str, str],
            ) -> list[dict[str, Any]]:
    """A row a layer or product, in the order of the model."""
    medians = {kind: clock.medians() for kind, clock in clocks.items()}
    rows = []
    for name, part in parts.items():
        geometry = getattr(part, 'geometry', None)
        if name not in medians['integer']:
            continue
        said = 'product' if geometry is None else (
            f'{geometry.kind} {geometry.in_channels}>{geometry.out_channels} '
            f'k{geometry.kernel_size[0]} s{geometry.stride[0]} g{geometry.groups}')
        rows.append(dict(name=name, layer=said, shapes=clocks['integer'].shapes[name],
                         left=left.get(name), **{kind: medians[kind].get(name) for kind in KINDS}))
    return rows


def table(found: dict[str, Any], slower_only: bool) -> str:
    """Lines of text: whole forwards, then layers."""
    total = found['total']
    lines = [f"{found['model']} {found['shape']} {found['isa']}: "
             + ', '.join(f'{kind} {total[kind]:.1f} ms' for kind in KINDS)
             + f", {total['float'] / total['integer']:.2f} times faster than float32"]
    for row in found['rows']:
        best = min(value for value in (row['float'], row['simulated']) if value is not None)
        if slower_only and row['integer'] <= best:
            continue
        times = ' '.join('       -' if row[kind] is None else f'{row[kind]:8.3f}' for kind in KINDS)
        lines.append(f"{times}  {row['layer']:36} {row['shapes'][0]} x{len(row['shapes'])} "
                     f"{row['name']}" + (f" LEFT: {row['left']}" if row['left'] else ''))
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='files, or PACKAGE::NAME of upstream')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), help='of the image')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--weight-bits', type=int, default=4)
    parser.add_argument('--slower', action='store_true', help='only layers slower with integers '
                        'than in float32 or quantized in float')
    parser.add_argument('--json', type=Path, help='also write all numbers here')
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of mmengine: how each weight was made
    torch.set_num_threads(1)
    found = []
    for name in args.configs:
        found.append(measure(name, args))
        print(table(found[-1], args.slower), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
