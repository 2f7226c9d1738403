"""Times each layer of a model alone, in float32 and in int8: a table for quantization.budget.

    python benchmarks/layer_latency.py CONFIG --output times.csv
    mmbitsplit quantize CONFIG --budget latency=0.6 --latency-table times.csv

Weights are random, images made up: neither changes the time. A layer's graph is one operator; of
int8, input and output are codes, as between layers that run in integers. Layers of one geometry on
inputs of one shape are timed once, and those that are called several times have the sum. Float and
int8 calls alternate; the table has medians. Padding that a layer's class does by itself is left
out. Needs the extra ``onnx``.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mmbitsplit.cli  # noqa: E402, F401  before torch: its threads wait without spinning

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.onnx_latency import machine  # noqa: E402
from mmbitsplit.export.onnx.requirements import need  # noqa: E402
from mmbitsplit.export.onnx.runtimes import RUNTIMES, OnnxGraph  # noqa: E402
from mmbitsplit.functional import explicit_padding  # noqa: E402
from mmbitsplit.models import layer_geometry, layer_input, layer_kind  # noqa: E402
from mmbitsplit.planning.latency_table import FLOAT_BITS, latencies_text  # noqa: E402
from mmbitsplit.structures import LayerGeometry  # noqa: E402

OPSET = 21
WARM_UP, LEAST_CALLS = 3, 5
INT8_BITS = 8
Call = tuple[LayerGeometry, tuple[int, ...]]  # and the shape of the input
OPERATORS = {'conv2d': 'Conv', 'conv_transpose2d': 'ConvTranspose', 'linear': 'MatMul'}


@torch.no_grad()
def calls_of(model: nn.Module, run: Callable[[], Any]) -> dict[str, list[Call]]:
    """Runs a model once and notes what each layer of a supported kind is called on.

    Args:
        model: Float model.
        run: Runs it.

    Returns:
        By the layer's name, in the order of first calls.
    """
    calls: dict[str, list[Call]] = {}

    def noting(name: str, geometry: LayerGeometry) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            shape = tuple(layer_input(args, kwargs).shape)
            own = geometry if geometry.kind == 'linear' else explicit_padding(geometry, shape)
            calls.setdefault(name, []).append((own, shape))
        return hook

    hooks = [module.register_forward_pre_hook(noting(name, layer_geometry(module)),
                                              with_kwargs=True)
             for name, module in model.named_modules() if layer_kind(module) is not None]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def write_graph(call: Call, path: Path, integer: bool) -> None:
    """Writes a layer as a graph of one operator, from codes to codes where it is of integers."""
    onnx = need('onnx')
    geometry, shape = call
    helper, kind = onnx.helper, onnx.TensorProto.UINT8 if integer else onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    weight = rng.integers(-63, 64, geometry.weight_shape).astype(np.int8)
    if geometry.kind == 'linear':
        weight = np.ascontiguousarray(weight.T)
    constants = {'weight': weight if integer else weight.astype(np.float32) / 64}
    nodes, operands = [], ['x', 'weight']
    if integer:
        constants |= {'scale': np.float32(0.02), 'zero': np.uint8(0), 'zero_signed': np.int8(0)}
        nodes = [helper.make_node('DequantizeLinear', ['x', 'scale', 'zero'], ['real_x']),
                 helper.make_node('DequantizeLinear', ['weight', 'scale', 'zero_signed'],
                                  ['real_weight'])]
        operands = ['real_x', 'real_weight']
    nodes.append(helper.make_node(OPERATORS[geometry.kind], operands,
                                  ['product' if integer else 'y'], **_attributes(geometry)))
    if integer:
        nodes.append(helper.make_node('QuantizeLinear', ['product', 'scale', 'zero'], ['y']))
    graph = helper.make_graph(
        nodes, 'layer', [helper.make_tensor_value_info('x', kind, shape)],
        [helper.make_tensor_value_info('y', kind, [None] * len(shape))],
        [onnx.numpy_helper.from_array(np.asarray(value), name)
         for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)],
                              ir_version=10, producer_name='mmbitsplit')
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _attributes(geometry: LayerGeometry) -> dict[str, Any]:
    if geometry.kind == 'linear':
        return {}
    left, right, top, bottom = geometry.pre_padding
    height, width = geometry.padding
    found = {'strides': geometry.stride, 'dilations': geometry.dilation, 'group': geometry.groups,
             'pads': (top + height, left + width, bottom + height, right + width)}
    if geometry.kind == 'conv_transpose2d':
        found['output_padding'] = geometry.output_padding
    return found


def time_call(call: Call, folder: Path, runtime: str, threads: int, seconds: float,
              ) -> tuple[float, float]:
    """Median microseconds of a layer in float32 and in int8; calls of both take turns.

    Args:
        call: The layer.
        folder: Where its graphs are written.
        runtime: Which runs them.
        threads: Of a call.
        seconds: How long it is timed at least, if that is not less than a few calls.
    """
    graphs: list[tuple[OnnxGraph, Tensor]] = []
    for integer in (False, True):
        path = folder / f'{"int8" if integer else "float"}.onnx'
        write_graph(call, path, integer)
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, call[1], generator=generator, dtype=torch.uint8)
        graphs.append((OnnxGraph(path, runtime, threads), x if integer else x.float() / 64))
    for graph, x in graphs * WARM_UP:
        graph(x)
    times: list[list[float]] = [[], []]
    started = time.perf_counter()
    while len(times[0]) < LEAST_CALLS or time.perf_counter() - started < seconds:
        for (graph, x), own in zip(graphs, times):
            before = time.perf_counter()
            graph(x)
            own.append(time.perf_counter() - before)
    return 1e6 * statistics.median(times[0]), 1e6 * statistics.median(times[1])


def rows_of(calls: Mapping[str, Sequence[Call]], times: Mapping[Call, tuple[float, float]],
            ) -> list[tuple[str, int, int, float]]:
    """Rows of the table: of each layer the sum over its calls, in float and in int8."""
    return [(name, bits, bits, sum(times[call][place] for call in own))
            for name, own in calls.items() for place, bits in enumerate((FLOAT_BITS, INT8_BITS))]


def measure(calls: Mapping[str, Sequence[Call]], runtime: str, threads: int, seconds: float,
            tell: Callable[[str], None] = print) -> dict[Call, tuple[float, float]]:
    """Times each distinct call once."""
    distinct = list(dict.fromkeys(call for own in calls.values() for call in own))
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, call in enumerate(distinct, 1):
            times[call] = time_call(call, Path(folder), runtime, threads, seconds)
            geometry, shape = call
            tell(f'{number}/{len(distinct)} {geometry.kind} {geometry.in_channels} to '
                 f'{geometry.out_channels}, kernel {geometry.kernel_size}, {geometry.groups} '
                 f'groups, input {tuple(shape)}: float {times[call][0]:.0f} us, int8 '
                 f'{times[call][1]:.0f} us')
    return times


def read_calls(args: argparse.Namespace) -> dict[str, list[Call]]:
    """Builds the model of a config with random weights and runs it on a made-up image."""
    from mmengine.registry import init_default_scope

    from benchmarks.model_probe import build_model
    from mmbitsplit.cli.config_arguments import read_config
    from mmbitsplit.engine.data.synthetic_images import reach_all_stages, synthetic_batches

    cfg = read_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    reach_all_stages(cfg.model)
    shape = tuple(args.shape) if args.shape else None
    batch = synthetic_batches(cfg, 1, args.batch, shape)[0]
    model = build_model(cfg)
    return calls_of(model, lambda: model.test_step(batch))


def main(argv: Sequence[str] | None = None) -> None:
    from mmbitsplit.cli.config_arguments import add_config_arguments

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config, or the name of one of mmdet or mmpretrain')
    add_config_arguments(parser)
    parser.add_argument('--output', type=Path, default=Path('layer_latency.csv'))
    parser.add_argument('--runtime', choices=RUNTIMES, default=RUNTIMES[0])
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--batch', type=int, default=1, help='images of a batch')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help="of the image; that of the config's test pipeline when not given")
    parser.add_argument('--seconds', type=float, default=0.3, help='for each distinct layer')
    args = parser.parse_args(argv)
    print(machine(args.threads))
    calls = read_calls(args)
    times = measure(calls, args.runtime, args.threads, args.seconds)
    rows = rows_of(calls, times)
    args.output.write_text(latencies_text(rows), encoding='utf-8')
    whole = [sum(row[3] for row in rows if row[1] == bits) for bits in (FLOAT_BITS, INT8_BITS)]
    print(f'{len(calls)} layers, {len(times)} distinct: float {whole[0] / 1e3:.2f} ms, int8 '
          f'{whole[1] / 1e3:.2f} ms in sum. The table is {args.output}')


if __name__ == '__main__':
    main()
