"""What learning takes of a whole model, from a few of its units and few steps.

A CPU does not learn all of ResNet-50 in a sitting. So some units are learned alone, all other
layers left in float, with few steps and with twice as many: the difference is what steps take, the
rest is solving. A step is told in forwards of its unit on the same images, of which all units have
as many as the model; that makes it a time of the whole model with all steps. Weights are random and
images noise: time does not depend on them.
"""

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from torch import Tensor, nn

from benchmarks.gpu import Detector, ResNet, RetinaNet, make_batches, resnet50
from benchmarks.method_names import MODES, PLACEMENTS, method_request
from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import METHODS, read_request
from mmbitsplit.planning.preparation import divide_as_requested
from mmbitsplit.structures import QuantizationReport, Unit


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its calibration.

    Args:
        build: Makes the model.
        shape: Of an image.
        images: Of a whole calibration.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    images: int


CASES = {'resnet50': Case(resnet50, (3, 224, 224), 1024),
         'retinanet': Case(RetinaNet, (3, 800, 1344), 32),
         'detector': Case(Detector, (3, 320, 480), 64),
         'tiny': Case(lambda: ResNet((1, 1, 1, 1), 4, 10), (3, 32, 32), 64)}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What was measured of one unit.

    Args:
        unit: Its name.
        layers: How many it has.
        forward: Seconds that it computes an image for, in float.
        step: Seconds of a step of learning, for each of its images.
        fixed: Seconds of the rest of its solution.
    """

    unit: str
    layers: int
    forward: float
    step: float
    fixed: float

    @property
    def ratio(self) -> float:
        """A step in forwards on the same images."""
        return self.step / self.forward


def steps_option(method: str) -> tuple[str, int]:
    """Which option of a method says how long it learns, and what it is by default.

    Raises:
        ValueError: The method does not learn.
    """
    for field in dataclasses.fields(METHODS[method]):
        if field.name in ('iterations', 'steps') and field.default:
            return field.name, int(field.default)
    raise ValueError(f"method '{method}' learns nothing in steps; benchmarks/calibration.py "
                     'measures what it takes.')


def choose_units(units: Sequence[Unit], count: int) -> list[Unit]:
    """Units of several layers at even distances, or any where there are too few of these."""
    found = [unit for unit in units if len(unit.layers) > 1]
    found = found if len(found) >= count else [*units]
    count = min(count, len(found))
    return [found[(2 * place + 1) * len(found) // (2 * count)] for place in range(count)]


def request_of(name: str, bits: str, steps: int | None = None, layers: Sequence[str] = (),
               all_layers: Sequence[str] = ()) -> dict[str, Any]:
    """The request of a run.

    Args:
        name: Method as on the command line.
        bits: Such as ``'3/3'``.
        steps: Of the method.
        layers: That are quantized.
        all_layers: Of the model; empty for all.
    """
    method, activation = method_request(name)
    if steps is not None:
        method = {**method, steps_option(method['type'])[0]: steps}
    weight_bits, activation_bits = map(int, bits.split('/'))
    return {'weight': {'num_bits': weight_bits},
            'activation': {'num_bits': activation_bits, **activation}, 'method': method,
            'overrides': [{'match': layer, 'skip': True} for layer in all_layers
                          if layer not in layers]}


@contextmanager
def timed_calls(modules: Sequence[nn.Module]) -> Iterator[list[float]]:
    """Collects the seconds of calls of modules."""
    seconds: list[float] = []
    started: list[float] = []
    handles = []
    for module in modules:
        handles += [
            module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
            module.register_forward_hook(
                lambda *_: seconds.append(time.perf_counter() - started.pop()))]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def forward_seconds(model: nn.Module, batches: Sequence[Tensor], modules: Sequence[nn.Module],
                    ) -> tuple[float, float]:
    """Seconds an image of the model, and of some modules of it, after a run that warms up."""
    model(batches[0])
    with timed_calls(modules) as inside:
        started = time.perf_counter()
        for batch in batches:
            model(batch)
        whole = time.perf_counter() - started
    images = sum(map(len, batches))
    return whole / images, sum(inside) / images


def measure(unit: Unit, case: Case, batches: list[Tensor], name: str, bits: str, steps: int,
            all_layers: Sequence[str]) -> Cost:
    """Learns one unit with few steps, and with twice as many."""
    seconds = []
    for count in (1, steps, 2 * steps):  # the first without what a first run sets up
        report = quantize_model(make_model(case), batches, request_of(
            name, bits, count, unit.layers, all_layers))
        seconds.append(solve_seconds(report))
    method = METHODS[method_request(name)[0]['type']]
    drawn = min(getattr(method(), 'batch_size', 32), sum(map(len, batches)))
    model = make_model(case)
    _, forward = forward_seconds(model, batches, [model.get_submodule(part)
                                                  for part in unit.modules])
    step = max(0.0, seconds[2] - seconds[1]) / steps
    return Cost(unit.name, len(unit.layers), forward, step / drawn,
                max(0.0, seconds[1] - step * steps))


def solve_seconds(report: QuantizationReport) -> float:
    """Seconds of all layers of a run."""
    return sum(layer.seconds for layer in report.layers)


def make_model(case: Case) -> nn.Module:
    """The model, whose batch norms know its own statistics."""
    torch.manual_seed(0)
    model = case.build().train()
    with torch.no_grad():
        model(torch.cat(make_batches(1, 4, case.shape, seed=1)))
    return model.eval()


def in_words(name: str, case: str, costs: Sequence[Cost], whole: float, images: int, steps: int,
             batch_size: int) -> str:
    """Says what all of it would take here.

    Args:
        name, case: Method and case.
        costs: Of the units that were measured.
        whole: Seconds of the model's forward on an image.
        images: Of a whole calibration.
        steps, batch_size: Of the method, as published.
    """
    ratio = sum(cost.step for cost in costs) / sum(cost.forward for cost in costs)
    learning = ratio * whole * batch_size * steps
    lines = [f'{cost.unit} ({cost.layers} layers): a step of {batch_size} images takes '
             f'{cost.step * batch_size:.3f} s, {cost.ratio:.1f} of its forwards; all else '
             f'{cost.fixed:.1f} s' for cost in costs]
    return '\n'.join([
        *lines, f'{name} on {case}: the model computes an image in {whole:.3f} s here, its '
        f'{images} calibration images in {whole * images:.0f} s. A step of a unit takes '
        f'{ratio:.1f} of its forwards on the same images, so {steps} steps of {batch_size} images '
        f'for every unit would take about {learning / 3600:.1f} hours here, '
        f'{learning / (whole * images):.0f} float forwards of the calibration images, beside '
        'running and solving them as without learning.'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--case', choices=list(CASES), default='resnet50')
    parser.add_argument('--method', default='QDrop', help='NAME[:MODE], of methods that learn; '
                        f'modes are {", ".join([*MODES, *PLACEMENTS])}')
    parser.add_argument('--bits', default='4/4', help='weight/activation bits')
    parser.add_argument('--units', type=int, default=3, help='how many are measured')
    parser.add_argument('--steps', type=int, default=10, help='and twice as many, for each')
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--json', type=Path, help='also write the numbers here')
    args = parser.parse_args()
    case, method = CASES[args.case], method_request(args.method)[0]['type']
    _, published = steps_option(method)
    count = min(args.images, 8)
    batches = make_batches(args.images // count, count, case.shape)
    units = divide_as_requested(
        make_model(case), batches[:1], read_request(request_of(args.method, args.bits)),
        run=lambda model, batch: model(batch))
    all_layers = [layer for unit in units for layer in unit.layers]
    print(f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}; {len(units)} units', flush=True)
    costs = [measure(unit, case, batches, args.method, args.bits, args.steps, all_layers)
             for unit in choose_units(units, args.units)]
    whole, _ = forward_seconds(make_model(case), batches, [])
    batch_size = getattr(METHODS[method](), 'batch_size', 32)
    print(in_words(args.method, args.case, costs, whole, case.images, published, batch_size))
    if args.json:
        args.json.write_text(json.dumps({
            'case': args.case, 'method': args.method, 'bits': args.bits, 'forward': whole,
            'units': [dataclasses.asdict(cost) for cost in costs]}, indent=1))


if __name__ == '__main__':
    main()
