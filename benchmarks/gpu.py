"""Everything about a GPU that a machine without one cannot show; about eight minutes by default.

Needs torch with CUDA and Triton (they come together), greenlet and Numba, and this checkout on the
path; no OpenMMLab package. On a bare machine:

    PYTHONPATH=. python benchmarks/gpu.py --json gpu.json --seconds 450
    PYTHONPATH=. python benchmarks/gpu.py --json gpu.json --parts qdrop_resnet50 retinanet_default

With --seconds no part begins after so many; the file is written after each part, and a part that
fails leaves its error there. The second line runs what takes longer: QDrop with its 20 000 steps on
ResNet-50 and 1024 images, the default on RetinaNet R50-FPN and 32 images of 800x1344; each says
whether it kept to its time.

Weights are random (batch norms are given statistics by a few forwards), images noise: nothing about
accuracy follows. What follows: whether all layers are found with torch's defaults (TF32), whether
the Triton kernels give the codes of plain torch, how far a model calibrated on the GPU is from one
calibrated on the CPU, what calibration costs in time and memory, and how long layers and models
take in integers, in half precision and in float32 (``gpu_integers.py``).
"""

import argparse
import copy
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

if importlib.util.find_spec('mmbitsplit'):
    import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

DEVICE = torch.device('cuda')
NEEDED = {'triton': 'comes with torch for Linux', 'greenlet': 'pip install greenlet',
          'numba': 'pip install numba', 'mmbitsplit': 'PYTHONPATH=. in the root of the checkout'}


class Bottleneck(nn.Module):
    """He et al., 2015: 1x1, 3x3, 1x1, added to what came in."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, width, 1), nn.ReLU(), *conv_norm(width, width, 3, stride), nn.ReLU(),
            *conv_norm(width, 4 * width, 1))
        self.shortcut = nn.Identity() if inputs == 4 * width and stride == 1 \
            else nn.Sequential(*conv_norm(inputs, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias and its batch norm."""
    return (nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet of bottlenecks; returns class scores, or the maps of its stages.

    Args:
        depths: Blocks of each stage; (3, 4, 6, 3) is ResNet-50.
        width: Channels of the stem.
        num_classes: ``None`` for the maps.
    """

    def __init__(self, depths: tuple[int, ...], width: int, num_classes: int | None):
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        inputs, stages = width, []
        for stage, depth in enumerate(depths):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(inputs, width << stage,
                                         2 if stage and not block else 1))
                inputs = 4 * width << stage
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = None if num_classes is None else nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:] if self.head is None else self.head(maps[-1].mean((2, 3)))


class Detector(nn.Module):
    """A small one-stage detector: backbone, feature pyramid, one head for all levels."""

    def __init__(self):
        super().__init__()
        self.backbone = ResNet((1, 1, 1, 1), 32, None)
        self.laterals = nn.ModuleList(nn.Conv2d(128 << level, 64, 1) for level in (1, 2, 3))
        self.outputs = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(*(layer for _ in range(2) for layer in (
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())))
        self.scores, self.boxes = nn.Conv2d(64, 80, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [lateral(one) for lateral, one in zip(self.laterals, self.backbone(x)[1:])]
        for level in (1, 0):
            maps[level] = maps[level] + nn.functional.interpolate(
                maps[level + 1], size=maps[level].shape[-2:], mode='nearest')
        towers = [self.tower(output(one)) for output, one in zip(self.outputs, maps)]
        return [head(one) for one in towers for head in (self.scores, self.boxes)]


class RetinaNet(nn.Module):
    """RetinaNet R50-FPN (Lin et al., 2017): five levels of 256 channels, towers of four layers."""

    def __init__(self):
        super().__init__()
        self.backbone = ResNet((3, 4, 6, 3), 64, None)
        self.laterals = nn.ModuleList(nn.Conv2d(256 << level, 256, 1) for level in (1, 2, 3))
        self.outputs = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(3))
        self.extra = nn.ModuleList(nn.Conv2d(inputs, 256, 3, 2, 1) for inputs in (2048, 256))
        self.score_tower, self.box_tower = (nn.Sequential(*(layer for _ in range(4) for layer in (
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()))) for _ in range(2))
        self.scores = nn.Conv2d(256, 9 * 80, 3, padding=1)
        self.boxes = nn.Conv2d(256, 9 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        stages = self.backbone(x)[1:]
        maps = [lateral(one) for lateral, one in zip(self.laterals, stages)]
        for level in (1, 0):
            maps[level] = maps[level] + nn.functional.interpolate(
                maps[level + 1], size=maps[level].shape[-2:], mode='nearest')
        levels = [output(one) for output, one in zip(self.outputs, maps)]
        levels.append(self.extra[0](stages[-1]))
        levels.append(self.extra[1](levels[-1].relu()))
        return [layer for level in levels for layer in (
            self.scores(self.score_tower(level)), self.boxes(self.box_tower(level)))]


def resnet50() -> nn.Module:
    return ResNet((3, 4, 6, 3), 64, 1000)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    'resnet50': (resnet50, (3, 224, 224)), 'detector': (Detector, (3, 320, 480)),
    'retinanet': (RetinaNet, (3, 800, 1344))}
USUAL = {'weight': {'num_bits': 4}}  # W4A8 with the defaults
NEAREST = {'weight': {'num_bits': 4}, 'method': {'type': 'RoundToNearest'},
           'calibration': {'num_images': 8, 'rows_per_layer': 256}}
QDROP = {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4, 'placement': 'qdrop'},
         'method': {'type': 'QDrop'}}


def make_model(name: str) -> nn.Module:
    """A float model in eval mode, on the CPU, whose batch norms know its own statistics."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().to(DEVICE).train()
    with torch.no_grad():
        few = 2 if name == 'retinanet' else 16
        for images in make_batches(4, few, shape, seed=1):
            model(images.to(DEVICE))
    return model.cpu().eval()


def make_batches(count: int, size: int, shape: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Noise on the CPU that is smoother than white, so that no map is all edges."""
    generator = torch.Generator().manual_seed(seed)
    small = (shape[0], shape[1] // 4, shape[2] // 4)
    return [nn.functional.interpolate(torch.randn(size, *small, generator=generator),
                                      size=shape[1:], mode='bilinear') for _ in range(count)]


def check_kernels() -> list[dict]:
    """Codes of the Triton kernels against those of plain torch on the same device."""
    from mmbitsplit.functional.kernels.triton_loops import descent_block, feedback_block
    from mmbitsplit.functional.solvers.coordinate_descent import BLOCK, block_loop_torch
    from mmbitsplit.functional.solvers.error_feedback import feedback_loop_torch
    rows = []
    for groups, outputs, dtype in ((1, 512, torch.float64), (1, 512, torch.float32),
                                   (64, 1, torch.float64), (8, 30, torch.float32)):
        generator = torch.Generator(DEVICE).manual_seed(0)

        def random(*shape: int, dtype=dtype, generator=generator) -> Tensor:
            return torch.randn(*shape, dtype=dtype, device=DEVICE, generator=generator)

        x = random(groups, BLOCK, 4 * BLOCK)
        gram = x @ x.mT
        values = (random(groups, outputs, BLOCK) * 3).round().clamp(-7, 7)
        residual = random(groups, outputs, BLOCK) @ gram
        found = [values.clone(), values.clone()]
        descent_block(found[0], residual.clone(), gram, 1.0, -7.0, 7.0)
        block_loop_torch(found[1], residual.clone(), gram, 1.0, -7.0, 7.0)
        scale = random(groups, outputs).abs() + 0.5
        factor = torch.linalg.cholesky(torch.linalg.inv(gram)).mT.contiguous()
        rounded = []
        for loop in (feedback_block, feedback_loop_torch):
            codes = torch.zeros_like(values)
            loop(values * 1.3, codes, scale, factor, -7.0, 7.0)
            rounded.append(codes)
        rows.append({'groups': groups, 'outputs': outputs, 'columns': BLOCK,
                     'dtype': str(dtype).removeprefix('torch.'),
                     'moved': share(found[0] != values),
                     'descent_equal': share(found[0] == found[1]),
                     'feedback_equal': share(rounded[0] == rounded[1])})
    return rows


def share(mask: Tensor) -> float:
    """Part of a mask that is true."""
    return float(mask.double().mean())


def compare_devices(name: str, images: int) -> dict:
    """Calibrates the same model on the same images on the GPU and on the CPU."""
    _, shape = MODELS[name]
    reference, results = make_model(name), {}
    fresh = make_batches(1, 8, shape, seed=2)[0]
    for device in (DEVICE, torch.device('cpu')):
        model = copy.deepcopy(reference).to(device)
        batches = [batch.to(device) for batch in make_batches(images // 8, 8, shape)]
        report, seconds = calibrated(model, batches, f'{name} on {device.type}')
        with torch.no_grad():
            outputs = [one.cpu() for one in leaves(model(fresh.to(device)))]
        results[device.type] = (report, seconds, model.cpu(), outputs)
    with torch.no_grad():
        float_outputs = leaves(reference(fresh))
    (on_gpu, gpu_seconds, gpu_model, gpu_outputs) = results['cuda']
    (on_cpu, cpu_seconds, cpu_model, cpu_outputs) = results['cpu']
    equal = [share(one == other) for one, other in zip(codes_of(gpu_model), codes_of(cpu_model))]
    with torch.no_grad():  # the very model of the GPU, run on the CPU
        carried = leaves(gpu_model(fresh))
    return {
        'images': images, 'layers': len(on_gpu.layers), 'layers_cpu': len(on_cpu.layers),
        'kept_float': [(one.name, one.reason) for one in on_gpu.kept_float],
        'equal_codes': mean(equal), 'equal_codes_first_layers': equal[:3],
        'mean_layer_error': [mean([layer.error for layer in one.layers])
                             for one in (on_gpu, on_cpu)],
        'output_error': [relative_error(one, float_outputs) for one in (gpu_outputs, cpu_outputs)],
        'same_codes_other_device': relative_error(gpu_outputs, carried),
        'seconds': [gpu_seconds, cpu_seconds]}


def codes_of(model: nn.Module) -> list[Tensor]:
    """Weight codes of all quantized layers."""
    from mmbitsplit.models import quantized_layers
    return [layer.codes for _, layer in quantized_layers(model)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def leaves(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Squared error of all outputs relative to their spread."""
    return float(sum((one - other).double().square().sum() for one, other in zip(found, wanted))
                 / sum((other - other.mean()).double().square().sum() for other in wanted))


def measure_cost(name: str, images: int, batch_size: int, request: dict | None = None,
                 allowed: float | None = None) -> dict:
    """Seconds of a calibration on the GPU in float forwards over the same images, and memory.

    Args:
        name: Key of ``MODELS``.
        images, batch_size: Of the calibration.
        request: The ``quantization`` dict.
        allowed: Seconds that it may take; the result says whether it kept to them.
    """
    _, shape = MODELS[name]
    model = make_model(name).to(DEVICE)
    batches = [batch.to(DEVICE) for batch in make_batches(images // batch_size, batch_size, shape)]
    with torch.no_grad():
        for _ in range(2):  # the second time without what the first one sets up
            torch.cuda.synchronize()
            started = time.perf_counter()
            for batch in batches:
                model(batch)
            torch.cuda.synchronize()
            forward = time.perf_counter() - started
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    report, seconds = calibrated(model, batches, f'{name}, {images} images', request)
    kept = {} if allowed is None else {'allowed': allowed, 'within': seconds <= allowed}
    return {'images': images, 'float_forward': forward, 'calibration': seconds, **kept,
            'request': request or USUAL,
            'parts': report.seconds, 'held_bytes': held,
            'peak_bytes': torch.cuda.max_memory_allocated(),
            'estimated_bytes': report.estimated_bytes}


def calibrated(model: nn.Module, batches: list[Tensor], title: str, request: dict | None = None):
    """Calibrates, W4A8 by default, with torch's own settings; returns report and seconds."""
    from mmbitsplit.apis import quantize_model
    started = time.perf_counter()

    def progress(step) -> None:
        if not sys.stdout.isatty():
            return
        print(f'\r{title}: {step.stage} {step.done}/{step.total}, '
              f'{time.perf_counter() - started:.0f} s\033[K', end='', flush=True)

    report = quantize_model(model, batches, request or USUAL, progress=progress)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    print(f'\r{title}: {len(report.layers)} layers, {len(report.kept_float)} kept in float, '
          f'{seconds:.1f} s\033[K', flush=True)
    return report, seconds


def measure_integers(part: str) -> object:
    """A part of ``gpu_integers``."""
    from benchmarks import gpu_integers
    return getattr(gpu_integers, part)(DEVICE)


def measure_integer_model(name: str, images: int) -> dict:
    """Times a model quantized by rounding, whose scales are of one batch of noise."""
    from benchmarks.gpu_integers import measure_model
    _, shape = MODELS[name]
    return measure_model(make_model(name).to(DEVICE),
                         make_batches(1, images, shape)[0].to(DEVICE), NEAREST)


PARTS: dict[str, Callable[[], object]] = {
    'integer_layers': lambda: measure_integers('measure_layers'),
    'integer_products': lambda: measure_integers('measure_products'),
    'integer_resnet50': lambda: measure_integer_model('resnet50', 32),
    'integer_resnet50_one': lambda: measure_integer_model('resnet50', 1),
    'integer_retinanet': lambda: measure_integer_model('retinanet', 1),
    'integer_tiles': lambda: measure_integers('sweep_tiles'),
    'kernels': check_kernels,
    'detector': lambda: compare_devices('detector', 32),
    'resnet50': lambda: compare_devices('resnet50', 32),
    'cost_detector': lambda: measure_cost('detector', 64, 8),
    'cost_resnet50': lambda: measure_cost('resnet50', 512, 32)}
LONG: dict[str, Callable[[], object]] = {
    'qdrop_resnet50': lambda: measure_cost('resnet50', 1024, 32, QDROP, allowed=20 * 60),
    'retinanet_default': lambda: measure_cost('retinanet', 32, 1, allowed=5 * 60)}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=[*PARTS, *LONG], default=list(PARTS),
                        help=f'all but {", ".join(LONG)} when not given')
    parser.add_argument('--json', type=Path, help='also write the numbers here, after every part')
    parser.add_argument('--seconds', type=float, default=float('inf'),
                        help='after which no part begins')
    return parser.parse_args(given)


def main() -> None:
    args = arguments()
    missing = [f'{name} ({how})' for name, how in NEEDED.items()
               if importlib.util.find_spec(name) is None]
    if missing or not torch.cuda.is_available():
        sys.exit('benchmarks/gpu.py needs ' + ', '.join(
            missing + ['a GPU that torch sees (torch.cuda.is_available())']
            * (not torch.cuda.is_available())))
    results: dict[str, object] = {
        'device': torch.cuda.get_device_name(), 'torch': torch.__version__,
        'tf32': [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]}
    print(results)
    begun, failed = time.perf_counter(), []
    for part in args.parts:
        started = time.perf_counter()
        if started - begun > args.seconds:
            results[part] = {'not_begun': f'{args.seconds:.0f} s were over'}
        else:
            try:
                results[part] = {**PARTS, **LONG}[part]()
            except Exception:  # the machine is there for minutes: the others are to run
                results[part] = {'error': traceback.format_exc()}
                failed.append(part)
        print(f'{part} ({time.perf_counter() - started:.0f} s): '
              f'{json.dumps(results[part], indent=1)}', flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    if failed:
        sys.exit(f'failed: {", ".join(failed)}; their errors stand above')


if __name__ == '__main__':
    main()
