"""Integers on a GPU: products of bytes against cuDNN in half precision and float32.

Parts of ``benchmarks/gpu.py``. A row is a layer of ResNet-50, RetinaNet or ViT-B, or a product of
its attention; ``equal`` says whether Triton's kernels give the whole sums of torch's own to the
last bit, with bytes and with two codes of 4 bits in one. Times are milliseconds of a call in a row
of calls with the same input; those of all kinds take turns. Layers and products are captured in a
graph, so that Python's part of a call does not count; models are called as users call them.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbitsplit.functional.kernels import byte_products
from mmbitsplit.functional.kernels.byte_products import Rounding, Scaling, Windows, pack_weight
from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.models.layers.gpu_support import Kernels, kernels_named

ROUNDS, CALLS = 5, 20


@dataclass(frozen=True)
class Case:
    """A convolution, or a linear layer where ``size`` has one number.

    Args:
        images: Of the batch.
        size: (height, width) of the input, or (rows,).
        inputs, outputs: Channels.
        kernel, stride: Of a convolution.
    """

    images: int
    size: tuple[int, ...]
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1

    @property
    def linear(self) -> bool:
        return len(self.size) == 1


CASES: dict[str, Case] = {
    'resnet50 layer1 1x1': Case(32, (56, 56), 64, 256),
    'resnet50 layer1 3x3': Case(32, (56, 56), 64, 64, 3),
    'resnet50 layer2 3x3': Case(32, (28, 28), 128, 128, 3),
    'resnet50 layer3 3x3': Case(32, (14, 14), 256, 256, 3),
    'resnet50 layer3 1x1': Case(32, (14, 14), 1024, 256),
    'resnet50 layer4 3x3, stride': Case(32, (14, 14), 512, 512, 3, 2),
    'resnet50 layer3 3x3, one image': Case(1, (14, 14), 256, 256, 3),
    'retinanet head 3x3, 100x168': Case(1, (100, 168), 256, 256, 3),
    'retinanet scores 3x3, 100x168': Case(1, (100, 168), 256, 720, 3),
    'retinanet head 3x3, 13x21': Case(1, (13, 21), 256, 256, 3),
    'retinanet lateral 1x1, 25x42': Case(1, (25, 42), 2048, 256),
    'vit_b linear, 32 images': Case(32, (197,), 768, 3072),
    'vit_b linear, one image': Case(1, (197,), 768, 3072),
    'a row, 4096 x 4096': Case(1, (1,), 4096, 4096)}
SWEPT = ('resnet50 layer2 3x3', 'resnet50 layer3 1x1', 'retinanet head 3x3, 100x168',
         'vit_b linear, 32 images')
PRODUCTS = {  # images, heads, M, K, N
    'vit_b q k^T': (32, 12, 197, 64, 197), 'vit_b a v': (32, 12, 197, 197, 64),
    'swin_t q k^T': (1024, 3, 49, 32, 49)}
# Outputs and places of a program, bytes of a block, warps, stages.
TILES = ((128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 128, 128, 8, 3), (128, 64, 64, 4, 4),
         (64, 128, 64, 4, 4), (64, 64, 64, 4, 4), (64, 64, 128, 4, 3), (128, 256, 64, 8, 3))


def measure_layers(device: torch.device, cases: dict[str, Case] | None = None,
                   kernels: Kernels = 'triton') -> list[dict[str, Any]]:
    """Times each case and compares what kernels give."""
    return [{'name': name, **_layer(case, device, kernels)}
            for name, case in (CASES if cases is None else cases).items()]


def measure_products(device: torch.device, cases: dict[str, tuple[int, ...]] | None = None,
                     kernels: Kernels = 'triton') -> list[dict[str, Any]]:
    """Times products of activations, against float32 and half precision."""
    module, rows = kernels_named(kernels), []
    for name, (images, heads, m, k, n) in (PRODUCTS if cases is None else cases).items():
        a, b = _draw(device, images, heads, m, k), _draw(device, images, heads, k, n)
        rounding = _rounding(device)
        halves = a.half(), b.half()

        def rounded(a=a, b=b, rounding=rounding) -> tuple[Tensor, Tensor, Tensor]:
            left, missing = module.round_bytes(a, rounding)
            return left, module.round_bytes(b.transpose(2, 3), rounding)[0], missing

        def multiply(kind, sides, rounding=rounding, k=k) -> Tensor:
            return kind.multiply_pairs(*sides, (rounding.shift, rounding.shift), rounding.scale,
                                       k, torch.float16)

        sides = rounded()
        timed = _times(device, {
            'float32': lambda a=a, b=b: a @ b, 'half': lambda halves=halves: halves[0] @ halves[1],
            'rounding': rounded, 'int8': lambda sides=sides: multiply(module, sides),
            'layer': lambda: multiply(module, rounded()),
            'torch': lambda sides=sides: multiply(byte_products, sides)})
        rows.append({'name': name, 'shape': (images, heads, m, k, n), **timed, 'equal': torch.equal(
            multiply(module, sides), multiply(byte_products, sides))})
    return rows


def sweep_tiles(device: torch.device, names: tuple[str, ...] = SWEPT) -> list[dict[str, Any]]:
    """Times other tiles than the chosen one; those that do not compile say why."""
    from mmbitsplit.functional.kernels import triton_products
    rows = []
    for name in names:
        case = CASES[name]
        for four_bits in (False, True):
            weight, scaling, windows, bytes_, found = _parts(case, device, four_bits, 'triton')
            found_ms: dict[str, float | str] = {}
            for outputs, places, block, warps, stages in TILES:
                if weight.bytes.shape[2] % block:
                    continue
                tile = {'OUTPUTS': outputs, 'PLACES': places, 'INPUTS': block, 'num_warps': warps,
                        'num_stages': stages}
                try:
                    found_ms[f'{outputs}x{places}x{block}, {warps} warps, {stages} stages'] = \
                        _times(device, {'': lambda tile=tile, parts=(
                            weight, bytes_, found, windows, scaling): triton_products.multiply(
                                *parts, tile)})['']
                except Exception as error:  # a tile that asks for too much is a result
                    found_ms[str(tile)] = str(error).splitlines()[0]
            chosen = triton_products.choose_tile(
                case.outputs, _places(case), weight.bytes.shape[2], device)
            rows.append({'name': name, 'four_bits': four_bits, 'chosen': chosen, 'ms': found_ms})
    return rows


def measure_model(model: nn.Module, images: Tensor, request: dict) -> dict[str, Any]:
    """Times a model in float32, in half precision, quantized in float and in integers.

    Args:
        model: Float, in eval mode, on the device of the images.
        images: The batch that is timed; it calibrates, too.
        request: The ``quantization`` dict.
    """
    from mmbitsplit.apis import quantize_model
    from mmbitsplit.models import to_integer
    half = copy.deepcopy(model).half().to(memory_format=torch.channels_last)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    simulated = copy.deepcopy(model)
    quantize_model(simulated, [images[:8]], request)
    integer = copy.deepcopy(simulated)
    started = time.perf_counter()
    done = to_integer(integer)
    with torch.no_grad():
        expected, found = simulated(images), integer(images)
    _wait(images.device)
    first_call = time.perf_counter() - started
    halves = images.half().to(memory_format=torch.channels_last)
    channels_last = images.to(memory_format=torch.channels_last)
    pairs = [(expected, found)] if isinstance(expected, Tensor) else list(zip(expected, found))
    timed = _times(images.device, {
        'float32': lambda: model(images), 'float32, channels last': lambda: last(channels_last),
        'half': lambda: half(halves), 'simulated': lambda: simulated(images),
        'integers': lambda: integer(images)}, captured=False)
    return {'images': len(images), 'integer_layers': len(done.integer), 'left': done.left, **timed,
            'first_call_seconds': first_call, 'difference': max(
                float((one - other).abs().max() / one.abs().max()) for one, other in pairs)}


def _layer(case: Case, device: torch.device, kernels: Kernels) -> dict[str, Any]:
    module = kernels_named(kernels)
    x, rounding = _input(case, device), _rounding(device)
    padding = (case.kernel // 2,) * 2
    parts = {bits: _parts(case, device, bits == 4, kernels) for bits in (8, 4)}
    weight = parts[8][0]

    def rounded() -> tuple[Tensor, Tensor]:
        return module.round_bytes(x, rounding, padding, weight.padded)

    def multiply(bits: int, kind: Any = module) -> Tensor:
        weight, scaling, windows, bytes_, found = parts[bits]
        return kind.multiply(weight, bytes_, found, windows, scaling)

    def whole() -> Tensor:
        bytes_, found = rounded()
        return module.multiply(weight, bytes_, found, *reversed(parts[8][1:3]))

    timed = _times(device, {
        **_float_calls(case, x), 'rounding': rounded, 'int8': lambda: multiply(8),
        'int4': lambda: multiply(4), 'layer': whole, 'torch': lambda: multiply(8, byte_products)})
    return {'case': vars(case), **timed, 'equal': torch.equal(
        multiply(8), multiply(8, byte_products)), 'equal_4_bits': torch.equal(
            multiply(4), multiply(4, byte_products)), 'packed': parts[4][0].packed}


def _float_calls(case: Case, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """cuDNN's and cuBLAS's: float32 as torch does it by default (convolutions in TF32), in full,
    and half."""
    if case.linear:
        weight = _draw(x.device, case.outputs, case.inputs)
        flat, call = x.flatten(0, 2), F.linear
        rest: tuple[int, ...] = ()
    else:
        weight = _draw(x.device, case.outputs, case.inputs, case.kernel, case.kernel).to(
            memory_format=torch.channels_last)
        flat, call = x.permute(0, 3, 1, 2), F.conv2d
        rest = (case.stride, case.kernel // 2)
    bias = _draw(x.device, case.outputs)
    half = [value.half() for value in (flat, weight, bias)]

    def in_full() -> Tensor:
        with full_float32():
            return call(flat, weight, bias, *rest)

    return {'float32': lambda: call(flat, weight, bias, *rest), 'float32 in full': in_full,
            'half': lambda: call(*half, *rest)}


@contextmanager
def _quickest() -> Iterator[None]:
    """Inside, cuDNN tries its algorithms."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _parts(case: Case, device: torch.device, four_bits: bool, kernels: Kernels) -> tuple:
    """Weight, scaling, windows and rounded inputs; sums as they are wanted by a layer."""
    largest = 8 if four_bits else 128
    codes = torch.randint(-largest, largest, (case.outputs, case.kernel ** 2, case.inputs),
                          dtype=torch.int8, generator=torch.Generator().manual_seed(0)).to(device)
    weight, rounding = pack_weight(codes, four_bits), _rounding(device)
    scaling = Scaling(_draw(device, case.outputs) / 1000,
                      -(codes.to(torch.int32).sum((1, 2)) * rounding.shift).to(torch.int32),
                      _draw(device, case.outputs), dtype=torch.float16)
    windows = Windows((case.kernel,) * 2, (case.stride,) * 2)
    bytes_ = kernels_named(kernels).round_bytes(
        _input(case, device), rounding, (case.kernel // 2,) * 2, weight.padded)
    return weight, scaling, windows, *bytes_


def _input(case: Case, device: torch.device) -> Tensor:
    """(A, H, W, C), channels last in memory as maps are between layers."""
    size = (case.images, *case.size) if len(case.size) == 2 else (1, case.images, *case.size)
    return _draw(device, *size, case.inputs).relu()


def _places(case: Case) -> int:
    sizes = [-(-size // case.stride) for size in case.size]
    return case.images * sizes[0] * (sizes[1] if len(sizes) > 1 else 1)


def _rounding(device: torch.device) -> Rounding:
    """Of what comes out of a ReLU."""
    low, high, scale = (torch.tensor([value], device=device) for value in (0.0, 255.0, 0.02))
    return Rounding(scale, low, high, torch.tensor([-128], dtype=torch.int32, device=device))


def _draw(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def _times(device: torch.device, calls: dict[str, Callable[[], Any]], captured: bool = True,
           ) -> dict[str, float]:
    """Milliseconds of a call of each, median of ``ROUNDS`` times ``CALLS`` calls in a row."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad(), _quickest():
        rows = {name: _row(device, call, captured) for name, call in calls.items()}
        for _ in range(ROUNDS):
            for name, row in rows.items():
                _wait(device)
                started = time.perf_counter()
                row()
                _wait(device)
                found[name].append(1000 * (time.perf_counter() - started) / CALLS)
    return {name: statistics.median(values) for name, values in found.items()}


def _row(device: torch.device, call: Callable[[], Any], captured: bool) -> Callable[[], None]:
    """A row of calls, after two that compile and choose."""
    def plain() -> None:
        for _ in range(CALLS):
            call()

    if device.type != 'cuda' or not captured:
        call()
        return plain
    apart = torch.cuda.Stream(device)
    apart.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(apart):
        call()
        call()
    torch.cuda.current_stream(device).wait_stream(apart)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain()
    return graph.replay


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
