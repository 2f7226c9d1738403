"""Times calibration in units of the float model's forwards over the same images, and its memory.

Weights are random where no trained ones are at hand: time and memory do not depend on them.
RetinaNet takes ``--data``, a folder of ``images`` and ``instances_boxes.json`` in COCO's format;
ResNet-50 and DeiT-S synthetic images; the demo its own data set (``make data``).
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmbitsplit.engine  # noqa: F401  declares operators that mmpretrain's import needs
from mmbitsplit.calibration import Progress, calibrate
from mmbitsplit.engine.data.calibration_data import load_calibration_data
from mmbitsplit.engine.run.float_weights import forget_pretrained
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.quantize import read_spec

ROOT = Path(__file__).parents[1]
PARTS = ('float_forward', 'quantized_forward', 'watch', 'sampling', 'solve_scales',
         'solve_statistics', 'solve_codes', 'rest')


def retinanet(args: argparse.Namespace) -> Config:
    """RetinaNet R50-FPN on real images at 800x1333."""
    cfg = Config.fromfile(ROOT / 'configs/retinanet_r50_w4a8.py')
    cfg.merge_from_dict({
        'train_dataloader.dataset.data_root': f'{args.data}/',
        'train_dataloader.dataset.ann_file': 'instances_boxes.json',
        'train_dataloader.dataset.data_prefix.img': 'images/',
        'quantization.calibration.num_images': args.images or 32})
    return cfg


def demo(args: argparse.Namespace) -> Config:
    """The small RetinaNet of ``make demo``, with its calibration set."""
    cfg = Config.fromfile(ROOT / 'configs/demo/retinanet_digits_w4a8.py')
    if args.images:
        cfg.quantization.calibration.num_images = args.images
    return cfg


def resnet50(args: argparse.Namespace) -> Config:
    """ResNet-50 on synthetic images of 224x224."""
    cfg = Config.fromfile(ROOT / 'configs/resnet50_w4a8.py')
    cfg.quantization.calibration.num_images = args.images or 1024
    return cfg


def deit_small(args: argparse.Namespace) -> Config:
    """DeiT-S, which is a ViT-S, on synthetic images of 224x224."""
    cfg = Config.fromfile(ROOT / 'configs/transformers/deit_small_w4a8.py')
    cfg.quantization.calibration.num_images = args.images or 256
    return cfg


def load_batches(name: str, cfg: Config) -> list:
    """Calibration batches of a case."""
    spec = read_spec(cfg)
    if name not in ('resnet50', 'deit_small'):
        return load_calibration_data(cfg, spec.calibration, []).batches
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((spec.calibration.num_images,), 1).split(spec.calibration.batch_size)
    return [{'inputs': torch.randint(0, 256, (len(size), 3, 224, 224), generator=generator,
                                     dtype=torch.uint8)} for size in sizes]


def measure(name: str, args: argparse.Namespace) -> dict:
    """Calibrates one case and returns seconds, ratios and memory."""
    cfg = CASES[name](args)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    forget_pretrained(cfg.model)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    batches, spec = load_batches(name, cfg), read_spec(cfg)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _, report = calibrate(model, batches, spec, run=lambda model, batch: model.test_step(batch),
                          replay_points=replay_points(model), progress=_show(name))
    seconds = dict(report.seconds)
    seconds['rest'] = seconds['calibration'] - sum(
        seconds[part] for part in ('float_forward', 'quantized_forward', 'watch', 'sampling',
                                   'solve_scales', 'solve_statistics', 'solve_codes'))
    slowest = sorted(report.layers, key=lambda layer: -layer.seconds)[:5]
    return {'name': name, 'images': spec.calibration.num_images, 'layers': len(report.layers),
            'ratio': seconds['calibration'] / seconds['float_forward'], 'seconds': seconds,
            'peak_rss_bytes': report.peak_rss_bytes, 'rss_before_bytes': before,
            'estimated_bytes': report.estimated_bytes,
            'slowest': {layer.name: layer.seconds for layer in slowest}}


def table(results: list[dict]) -> str:
    """Markdown: calibration in float forwards, where they go, memory."""
    lines = ['| Model | Images | Layers | Float forwards, s | Calibration / float forwards | '
             + ' | '.join(part.replace('_', ' ') for part in PARTS)
             + ' | Peak memory, GB (estimate) |',
             '|---|' + '---:|' * (len(PARTS) + 5)]
    for result in results:
        seconds = result['seconds']
        parts = ' | '.join(f"{seconds[part] / seconds['float_forward']:.2f}" for part in PARTS)
        estimate = result['rss_before_bytes'] + result['estimated_bytes']
        lines.append(
            f"| {result['name']} | {result['images']} | {result['layers']} "
            f"| {seconds['float_forward']:.1f} | {result['ratio']:.2f} | {parts} "
            f"| {result['peak_rss_bytes'] / 1e9:.1f} ({estimate / 1e9:.1f}) |")
    return '\n'.join(lines)


def _show(name: str):
    started = time.perf_counter()

    def show(step: Progress) -> None:
        detail = '' if step.layer is None else f' {step.layer.name} {step.layer.seconds:.1f} s'
        print(f'\r{name}: {step.stage} {step.done}/{step.total}{detail}, '
              f'{time.perf_counter() - started:.0f} s\033[K', end='', flush=True)
    return show


CASES = {'retinanet': retinanet, 'resnet50': resnet50, 'deit_small': deit_small, 'demo': demo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', nargs='+', choices=list(CASES), default=list(CASES))
    parser.add_argument('--data', type=Path, help='folder with images and instances_boxes.json')
    parser.add_argument('--images', type=int, help='calibration images, for a shorter run')
    parser.add_argument('--json', type=Path, help='also write the numbers here')
    args = parser.parse_args()
    if 'retinanet' in args.cases and args.data is None:
        parser.error('retinanet needs --data')
    print(f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}')
    results = []
    for name in args.cases:
        results.append(measure(name, args))
        print(f"\n{name}: slowest layers, s: "
              + ', '.join(f'{layer} {seconds:.1f}'
                          for layer, seconds in results[-1]['slowest'].items()), flush=True)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
    main()
