"""Prints one table of several quantized detectors and draws their detections."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from demo.pictures import comparison_figure
from mmbitsplit.apis import load_quantized
from mmbitsplit.report import results_text

IMAGES_PER_MODEL = 2  # two detectors make the four images of the demo's picture


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='example: python tools/demo_summary.py '
        'work_dirs/demo/retinanet_digits_w4a8 work_dirs/demo/mask_rcnn_digits_w4a8')
    parser.add_argument('work_dirs', nargs='+', type=Path, help='of tools/quantize.py')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo/detections.png'))
    parser.add_argument('--images', type=int, default=IMAGES_PER_MODEL, help='of each model')
    parser.add_argument('--score', type=float, default=0.4, help='least score drawn')
    args = parser.parse_args()
    results = [json.loads((work_dir / 'results.json').read_text()) for work_dir in args.work_dirs]
    rows, labels = [], []
    for number, (work_dir, result) in enumerate(zip(args.work_dirs, results)):
        indices = range(number * args.images, (number + 1) * args.images)
        pairs = draw_pairs(Config.fromfile(result['config']), work_dir, indices, args.score)
        rows += pairs
        labels += [work_dir.name] * len(pairs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    comparison_figure(rows, ('float', 'quantized'), labels, str(args.out))
    print(results_text(results))
    print(f'Detections of the float and the quantized models: {args.out}')
    return 0


def draw_pairs(cfg: Config, work_dir: Path, indices: Iterable[int], score: float,
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Runs both models on some validation images and draws what they detect."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        quantized = load_quantized(work_dir / 'quantized_config.py',
                                   work_dir / 'quantized.pth')
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        float_model = MODELS.build(cfg.model).eval()
        load_checkpoint(float_model, cfg.load_from, map_location='cpu')
        return [(draw(float_model, dataset, index, score), draw(quantized, dataset, index, score))
                for index in indices]


@torch.no_grad()
def draw(model: nn.Module, dataset, index: int, score: float) -> np.ndarray:
    """Returns the image with the model's detections on it, (H, W, 3) uint8 RGB."""
    from mmdet.visualization import DetLocalVisualizer

    sample = model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
    image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
    np.random.seed(0)  # mmdet varies the colours of masks: the same ones on both sides
    visualizer = DetLocalVisualizer(line_width=1, alpha=0.5)
    visualizer.dataset_meta = dataset.metainfo
    visualizer.add_datasample('detections', image, sample, draw_gt=False, pred_score_thr=score)
    return visualizer.get_image()


if __name__ == '__main__':
    sys.exit(main())
