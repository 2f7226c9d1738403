"""Times exported int8 graphs against float32 ones, each runtime against itself, in one run.

Weights are random and rounded to the nearest codes, scales calibrated on one random image: neither
codes nor scales change the time. Float and int8 calls alternate; medians are compared. Needs the
extra ``onnx``.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import mmbitsplit.engine  # noqa: F401  declares operators that mmpretrain's import needs
from mmbitsplit.apis import export_onnx, quantize_model
from mmbitsplit.engine.onnx.export_targets import export_requests
from mmbitsplit.export.onnx.operator_check import executed_operators
from mmbitsplit.export.onnx.runtimes import RUNTIMES, OnnxGraph

ROOT = Path(__file__).parents[1]
CASES = {'resnet18': ('resnet18_w4a8', (224, 224)), 'resnet50': ('resnet50_w4a8', (224, 224)),
         'retinanet_r50': ('retinanet_r50_w4a8', (800, 1344))}  # 1333 padded to whole strides
PLACEMENTS = {'inputs': {}, 'deploy': {'placement': 'deploy'}}
MULTIPLE = 32
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Medians of one model in one runtime, and what runs in integers."""

    model: str
    shape: tuple[int, int]
    placement: str
    runtime: str
    float_ms: float
    int8_ms: float
    integer_convolutions: int
    convolutions: int
    float_bytes: int
    int8_bytes: int

    @property
    def speedup(self) -> float:
        """Times faster than float32."""
        return self.float_ms / self.int8_ms


def build(name: str) -> nn.Module:
    """The float model with random weights."""
    cfg = Config.fromfile(ROOT / f'configs/{CASES[name][0]}.py')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def quantize(model: nn.Module, shape: tuple[int, int], placement: str, weight_bits: int) -> None:
    """Rounds the weights to the nearest codes; one random image gives the scales."""
    whole = export_requests(model, shape)[0].module
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    quantize_model(whole, [image], dict(
        weight=dict(num_bits=weight_bits), activation=dict(num_bits=8, **PLACEMENTS[placement]),
        method=dict(type='RoundToNearest'),
        calibration=dict(num_images=1, rows_per_layer=256, holdout=0.0)))


def alternate(graphs: dict[str, OnnxGraph], image: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of a call of each graph; calls of all take turns."""
    seconds = {name: [] for name in graphs}
    for turn in range(WARM_UP + repeats):
        for name, graph in graphs.items():
            started = time.perf_counter()
            graph(image)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def measure(name: str, args: argparse.Namespace, folder: Path) -> list[Timing]:
    """Exports and times one model, for each placement and runtime."""
    shape = tuple(max(MULTIPLE, round(size * args.scale / MULTIPLE) * MULTIPLE)
                  for size in CASES[name][1])
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(2))
    plain = export_onnx(build(name), folder / name / 'float32', shape=shape)[0]
    timings = []
    for placement in args.placements:
        model = build(name)
        quantize(model, shape, placement, args.weight_bits)
        file = export_onnx(model, folder / name / placement, shape=shape)[0]
        for runtime in args.runtimes:
            graphs = {kind: OnnxGraph(path, runtime, args.threads)
                      for kind, path in (('float', plain.path), ('int8', file.path))}
            found = alternate(graphs, image, args.repeats)
            del graphs
            counts = executed_operators(file.path, runtime)
            timings.append(Timing(name, shape, placement, runtime, found['float'], found['int8'],
                                  counts.integer_convolutions, counts.convolutions, plain.bytes,
                                  file.bytes))
            print(row(timings[-1]), flush=True)
    return timings


def row(timing: Timing) -> str:
    """A line of the table."""
    height, width = timing.shape
    return (f'| {timing.model} {height}x{width} | {timing.placement} | {timing.runtime} '
            f'| {timing.float_ms:.1f} | {timing.int8_ms:.1f} | {timing.speedup:.2f} '
            f'| {timing.integer_convolutions} of {timing.convolutions} '
            f'| {timing.float_bytes / 1e6:.1f} | {timing.int8_bytes / 1e6:.1f} |')


HEADER = ('| Model | Placement | Runtime | float32, ms | int8, ms | Times faster '
          '| Integer convolutions | float32, MB | int8, MB |\n'
          '|---|---|---|---:|---:|---:|---:|---:|---:|')


def machine(threads: int) -> str:
    """What the machine has: processor, integer instructions, threads, versions."""
    try:
        facts = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        facts = ''
    values = dict(line.split(':', 1) for line in facts.splitlines() if ':' in line)
    values = {key.strip(): value.strip() for key, value in values.items()}
    flags = set(values.get('flags', '').split())
    known = [flag for flag in ('avx2', 'avx512f', 'avx512_vnni', 'avx_vnni', 'amx_int8')
             if flag in flags]
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in RUNTIMES)
    return (f"{values.get('model name', platform.machine())} ({', '.join(known) or 'flags unknown'}"
            f'), {threads} threads, {versions}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', nargs='+', choices=list(CASES), default=list(CASES))
    parser.add_argument('--placements', nargs='+', choices=list(PLACEMENTS),
                        default=list(PLACEMENTS))
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--weight-bits', type=int, default=4)
    parser.add_argument('--scale', type=float, default=1.0,
                        help='of the image sides, for a quick look')
    parser.add_argument('--json', type=Path, help='also write the numbers here')
    args = parser.parse_args()
    print(machine(args.threads))
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        timings = [timing for name in args.cases
                   for timing in measure(name, args, Path(folder))]
    if args.json:
        args.json.write_text(json.dumps(
            [{**asdict(timing), 'speedup': timing.speedup} for timing in timings], indent=2))


if __name__ == '__main__':
    main()
