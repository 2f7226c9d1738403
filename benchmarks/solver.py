"""Times one sweep in matrix products, and the whole solver beside the published algorithm.

    python benchmarks/solver.py                        # both tables; the second takes long
    python benchmarks/solver.py --only sweep --sizes 576x64 256x9x1
    python benchmarks/solver.py --only published --published-size 576 64 3000

The number of threads is that of torch; OMP_NUM_THREADS sets it for torch, Numba and NumPy alike.
"""

import argparse
import functools
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from published_bitsplit import solve_published
from torch import Tensor

from mmbitsplit.functional import (
    add_ridge,
    code_range,
    layer_statistics,
    solve_bitsplit,
    weight_scale,
)
from mmbitsplit.functional.solvers.coordinate_descent import sweep_
from mmbitsplit.functional.solvers.error_feedback import FeedbackFactor
from mmbitsplit.structures import LayerStatistics, WeightSolution

BITS = 4
DTYPES = ('float32', 'float64')
SIZES = ('576x64', '2304x256', '4608x512', '256x9x1')


def make_layer(groups: int, inputs: int, outputs: int, rows: int) -> tuple[Tensor, ...]:
    """A layer after a ReLU: correlated inputs at 8 bits, outputs of the float inputs.

    Returns:
        x (G, N, K), y (G, M, K) and weight (G, M, N), all float32.
    """
    normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    rank = max(1, inputs // 8)
    x = normal(groups, inputs, rank) / rank ** 0.5 @ normal(groups, rank, rows)
    x = x.add_(normal(groups, inputs, rows), alpha=0.5).relu_()
    weight = normal(groups, outputs, inputs) / inputs ** 0.5
    y = weight @ x
    step = x.max() / code_range(8, signed=False)[1]
    return x.div_(step).round_().mul_(step), y, weight


def timed(action: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def interleaved_medians(actions: list[tuple[Callable, ...]], repeats: int) -> list[float]:
    """Median seconds of the last step of each action, in turn so that drift hits all alike.

    A first round is not counted: Numba compiles, threads start. Short actions are repeated for
    a second in all.
    """
    started, rounds = None, []
    while len(rounds) < repeats or time.perf_counter() - started < 1:
        times = []
        for *prepare, action in actions:
            for step in prepare:
                step()
            times.append(timed(action)[0])
        if started is None:
            started = time.perf_counter()
        else:
            rounds.append(times)
    return [statistics.median(times) for times in zip(*rounds)]


def time_sweep(sums: LayerStatistics, dtype: str, repeats: int) -> dict:
    """Times the first polishing sweep and the warm start of one layer, sums with a ridge."""
    gram, cross = (part.to(getattr(torch, dtype)) for part in (sums.gram, sums.cross))
    scale = weight_scale(FeedbackFactor(gram, cross).target, BITS, 'mse')

    def warm_start() -> Tensor:
        return FeedbackFactor(gram, cross).round(scale, BITS)

    codes = warm_start()
    product = codes @ gram
    fitted = (codes * cross).sum(-1) / (codes * product).sum(-1)  # Eq. 4, as the solver does
    target = cross / fitted.unsqueeze(-1)
    low, high = code_range(BITS, signed=True, narrow_range=True)
    values, kept, out = codes.clone(), product.clone(), torch.empty_like(product)

    def sweep() -> Tensor | int:
        return sweep_(values, kept, target, gram, step=1.0, low=low, high=high)

    moved = int(torch.as_tensor(sweep()).sum())
    multiply = (lambda: torch.bmm(codes, gram, out=out),)
    restored_sweep = (lambda: values.copy_(codes), lambda: kept.copy_(product), sweep)
    product_s, sweep_s = interleaved_medians([multiply, restored_sweep], repeats)
    start_s, = interleaved_medians([(warm_start,)], max(1, repeats // 5))
    groups, outputs, inputs = codes.shape
    return dict(groups=groups, inputs=inputs, outputs=outputs, dtype=dtype,
                product_seconds=product_s, sweep_seconds=sweep_s, sweep_ratio=sweep_s / product_s,
                moved=moved / codes.numel(), start_seconds=start_s, start_ratio=start_s / product_s)


def squared_error(x: Tensor, y: Tensor, codes: Tensor, scale: Tensor) -> float:
    """Eq. 2 in float64 from the outputs themselves, all channels; x (N, K), y (M, K)."""
    weight = codes.double() * scale.double().unsqueeze(1)  # (M, N)
    return sum(float((part_y.double() - weight @ part_x.double()).square().sum())
               for part_x, part_y in zip(x.split(1024, 1), y.split(1024, 1)))


def compare_published(inputs: int, outputs: int, rows: int, epochs: int) -> dict:
    """Solves one layer, both from the same x and y, without a ridge: one objective for both."""
    x, y, weight = make_layer(1, inputs, outputs, rows)
    x_rows, y_rows = (part[0].T.contiguous().numpy() for part in (x, y))  # as published: (K, .)

    def ours(x: Tensor, y: Tensor, weight: Tensor) -> WeightSolution:
        sums = layer_statistics(x, y)
        return solve_bitsplit(sums.gram, sums.cross, weight, BITS, y_sq=sums.y_sq)

    ours(*make_layer(1, 576, 128, 1500))  # Numba compiles, threads start
    runs = [timed(lambda: ours(x, y, weight)) for _ in range(2)]
    started = time.perf_counter()
    rest: list[tuple[int, float]] = []  # when the published algorithm changed nothing any more

    def tell(epoch: int, moved: int) -> None:
        if moved == 0 and not rest:
            rest.append((epoch, time.perf_counter() - started))
        if epoch <= 3 or epoch % 10 == 0:
            print(f'published: epoch {epoch} of {epochs}, {moved} bits changed, '
                  f'{time.perf_counter() - started:.0f} s', file=sys.stderr, flush=True)

    published_seconds, theirs = timed(lambda: solve_published(
        x_rows, y_rows, weight[0].numpy(), BITS, epochs=epochs, stop_at_rest=False, on_epoch=tell))
    runs.append(timed(lambda: ours(x, y, weight)))  # once more after the long run, against drift
    our_seconds, solution = statistics.median(taken for taken, _ in runs), runs[-1][1]
    energy = float(y.double().square().sum())
    return dict(
        inputs=inputs, outputs=outputs, rows=rows, bits=BITS, ratio=published_seconds / our_seconds,
        published_seconds=published_seconds, published_epochs=theirs.epochs,
        rest_epoch=rest[0][0] if rest else None, rest_seconds=rest[0][1] if rest else None,
        published_error=squared_error(x[0], y[0], torch.from_numpy(theirs.codes),
                                      torch.from_numpy(theirs.scale)) / energy,
        our_seconds=our_seconds, our_sweeps=solution.num_sweeps,
        our_error=squared_error(x[0], y[0], solution.codes[0], solution.scale[0]) / energy)


def print_table(title: str, rows: list[dict[str, str]]) -> None:
    """Prints rows as Markdown; their keys are the head."""
    print(f'\n{title}\n\n| ' + ' | '.join(rows[0]) + ' |')
    print('|' + ' --- |' * len(rows[0]))
    for row in rows:
        print('| ' + ' | '.join(row.values()) + ' |', flush=True)


def print_sweeps(results: list[dict]) -> None:
    print_table('One sweep, and the warm start, in matrix products `codes @ gram`', [{
        'G': str(one['groups']), 'N': str(one['inputs']), 'M': str(one['outputs']),
        'dtype': one['dtype'], 'product, ms': f'{1e3 * one["product_seconds"]:.4g}',
        'sweep, ms': f'{1e3 * one["sweep_seconds"]:.4g}',
        'sweep / product': f'{one["sweep_ratio"]:.2f}',
        'elements moved': f'{100 * one["moved"]:.1f} %',
        'warm start, ms': f'{1e3 * one["start_seconds"]:.4g}',
        'warm start / product': f'{one["start_ratio"]:.1f}'} for one in results])


def print_published(one: dict) -> None:
    rest = ''
    if one['rest_epoch'] is not None:
        rest = (f'; it comes to rest in epoch {one["rest_epoch"]}, after '
                f'{one["rest_seconds"]:.1f} s, {one["rest_seconds"] / one["our_seconds"]:.1f} '
                'times as long')
    print_table(
        f'A whole layer from the same x and y: N = {one["inputs"]}, M = {one["outputs"]}, '
        f'{one["rows"]} rows, {one["bits"]} bits; the published algorithm with all of its epochs '
        f'takes {one["ratio"]:.1f} times as long{rest}',
        [{'algorithm': name, 'seconds': f'{one[f"{who}_seconds"]:.2f}',
          'error / energy of y': f'{one[f"{who}_error"]:.6f}', 'rounds': rounds}
         for name, who, rounds in (
             ('published, NumPy, all in float32', 'published', f'{one["published_epochs"]} epochs'),
             ('`layer_statistics` + `solve_bitsplit`', 'our', f'{one["our_sweeps"]} sweeps'))])


def processor() -> str:
    """The processor's name, where Linux tells it with the number of cores."""
    info = Path('/proc/cpuinfo')
    names = re.findall(r'^model name\s*: (.+)$', info.read_text() if info.exists() else '', re.M)
    return f'{names[0]}, {len(names)} cores' if names else platform.machine()


def parse_size(text: str) -> tuple[int, ...]:
    """(G, N, M) from GxNxM or NxM."""
    sizes = tuple(map(int, text.split('x')))
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(text)
    return (1, *sizes)[-3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=['sweep', 'published'])
    parser.add_argument('--sizes', nargs='+', type=parse_size, metavar='[Gx]NxM',
                        default=list(map(parse_size, SIZES)))
    parser.add_argument('--dtype', nargs='+', choices=DTYPES, default=DTYPES)
    parser.add_argument('--rows', type=int, default=12000, help='of the layers of the sweeps')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--published-size', nargs=3, type=int, default=[4608, 512, 12000],
                        metavar=('N', 'M', 'ROWS'))
    parser.add_argument('--published-epochs', type=int, default=100)
    parser.add_argument('--json', type=Path, help='file for the same numbers')
    args = parser.parse_args()
    if args.published_size[2] <= args.published_size[0]:
        parser.error('--published-size: ROWS must be more than N, or the gram is singular')
    dtypes = f'sweeps {", ".join(args.dtype)}' if args.only != 'published' else 'x, y float32'
    report = dict(processor=processor(), threads=torch.get_num_threads(), torch=torch.__version__)
    print(f'Processor: {report["processor"]}\n\nThreads: {report["threads"]}; '
          f'torch {report["torch"]}; {dtypes}')
    if args.only != 'published':
        report['rows'] = args.rows
        report['sweep'] = []
        for size in args.sizes:
            x, y, weight = make_layer(*size, args.rows)
            sums = add_ridge(layer_statistics(x, y), weight)
            report['sweep'] += [time_sweep(sums, dtype, args.repeats) for dtype in args.dtype]
        print_sweeps(report['sweep'])
    if args.only != 'sweep':
        report['published'] = compare_published(*args.published_size, args.published_epochs)
        print_published(report['published'])
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    with torch.inference_mode():
        main()
