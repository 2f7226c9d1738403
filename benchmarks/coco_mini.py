"""Quantizes a COCO-trained YOLOX-nano by several requests and prints box AP over seeds.

Half of 128 COCO images calibrates (those of lowest id), the other half is evaluated. AP on 64
images moves by half a point to a point when nothing changed, so beside it stand the error of the
raw head outputs (squared, relative to the float model's spread, mean over the nine outputs) and how
many of the float model's sure detections (score of 0.3 and above) are found again with the same
class and an overlap of 0.7: both compare with the float model image by image.

The data folder holds ``images/*.jpg`` and ``instances_boxes.json`` in COCO's format; the weights
are a checkpoint of mmdet's ``yolox_nano_8xb8-300e_coco.py``.
"""

import argparse
import contextlib
import io
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import load_checkpoint
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_iou

import mmbitsplit.engine  # noqa: F401  declares operators that mmdet's import needs
from benchmarks.budget_rows import Row, add_budget_arguments, plan_taken, width_rows
from benchmarks.cifar import over_seeds
from benchmarks.method_names import (
    add_method_arguments,
    add_width_argument,
    at_each,
    chosen_methods,
    method_request,
    own_options,
    tuning_request,
)
from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import read_request
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.structures.widths import MAX_BITS

CONFIG = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
SURE, OVERLAP = 0.3, 0.7


@dataclass(frozen=True)
class Found:
    """What a model gives on the evaluation images.

    Args:
        raw: Outputs of the head, one list of (images, ...) tensors.
        results: One detection result (``bboxes``, ``scores``, ``labels``) an image.
        ap: Box AP, per cent.
    """

    raw: list[Tensor]
    results: list
    ap: float


def load_images(cfg: Config, data: Path) -> list[dict]:
    """Reads all images through the test pipeline, in the order of their ids, without labels."""
    pipeline = [step for step in cfg.test_dataloader.dataset.pipeline
                if step['type'] != 'LoadAnnotations']
    dataset = DATASETS.build(dict(
        type='CocoDataset', data_root=f'{data}/', ann_file='instances_boxes.json',
        data_prefix=dict(img='images/'), test_mode=True, pipeline=pipeline))
    samples = [dataset[index] for index in range(len(dataset))]
    return sorted(samples, key=lambda sample: sample['data_samples'].img_id)


def batches_of(samples: Sequence[dict], size: int) -> list[dict]:
    """As a dataloader collates them."""
    return [{key: [sample[key] for sample in samples[start:start + size]] for key in samples[0]}
            for start in range(0, len(samples), size)]


def load_model(cfg: Config, weights: Path) -> nn.Module:
    """Builds the detector and loads its trained weights."""
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(weights), map_location='cpu')
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, samples: Sequence[dict], truth: COCO) -> Found:
    """Runs the evaluation images."""
    raw, results = [], []
    for batch in batches_of(samples, 8):
        data = model.data_preprocessor(batch, False)
        outputs = model(data['inputs'], data['data_samples'], mode='tensor')
        raw.append([level for kind in outputs for level in kind])
        metas = [sample.metainfo for sample in data['data_samples']]
        results += model.bbox_head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=True)
    ids = [sample['data_samples'].img_id for sample in samples]
    return Found([torch.cat(parts) for parts in zip(*raw)], results,
                 average_precision(ids, results, truth))


def average_precision(ids: Sequence[int], results: Sequence, truth: COCO) -> float:
    """COCO's box AP over some images, per cent."""
    rows = []
    for image, result in zip(ids, results):
        corners = result.bboxes.double()
        sizes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        rows += [{'image_id': image, 'category_id': label + 1, 'bbox': box, 'score': score}
                 for box, score, label in zip(sizes.tolist(), result.scores.tolist(),
                                              result.labels.tolist())]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth, truth.loadRes(rows), 'bbox')
        judge.params.imgIds = list(ids)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return 100 * float(judge.stats[0])


def raw_error(raw: Sequence[Tensor], floats: Sequence[Tensor]) -> float:
    """Squared error relative to the spread of the float model's outputs, mean over outputs."""
    errors = [(a - b).double().square().sum() / (b - b.mean((0, 2, 3), keepdim=True))
              .double().square().sum() for a, b in zip(raw, floats)]
    return float(torch.stack(errors).mean())


def kept(results: Sequence, floats: Sequence) -> float:
    """Part of the float model's sure detections that are found again, per cent."""
    again = total = 0
    for found, wanted in zip(results, floats):
        sure = wanted.scores >= SURE
        overlap = box_iou(wanted.bboxes[sure], found.bboxes)
        same = wanted.labels[sure].unsqueeze(1) == found.labels
        close = (overlap >= OVERLAP) & same & (found.scores >= SURE / 2)
        again, total = again + int(close.any(1).sum()), total + int(sure.sum())
    return 100.0 * again / max(total, 1)


def request(row: Row, mode: str, search: str, method: str, seed: int, images: int,
            options: Sequence[str] = ()) -> dict:
    """Returns the quantization dict of a row of the command line; 'default' leaves it open."""
    chosen, own = method_request(method)
    activation = {key: value for key, value in (('mode', mode), ('scale_search', search))
                  if value != 'default'}
    bits = row.activation_bits if row.activation_bits <= MAX_BITS else None
    return dict(weight=dict(num_bits=row.weight_bits),
                activation=dict(num_bits=bits, **{**own, **activation}),
                method={**chosen, **own_options(chosen['type'], options)},
                calibration=dict(seed=seed, num_images=images), **row.request)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True, help='images and instances_boxes.json')
    parser.add_argument('--weights', type=Path, required=True, help='checkpoint of YOLOX-nano')
    parser.add_argument('--bits', nargs='+', default=['w8a8', 'w4a8'],
                        help='wXaY; a32 leaves the inputs in float')
    add_budget_arguments(parser)
    parser.add_argument('--modes', nargs='+', default=['default', 'per_channel'])
    parser.add_argument('--searches', nargs='+', default=['default'])
    add_method_arguments(parser, ['BitSplit'])
    add_width_argument(parser)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--sampling', default='even', help='how positions are drawn')
    parser.add_argument('--rows', type=int, default=16384, help='positions of a layer')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--layers', type=Path, help='where the reports of the layers are written')
    args = parser.parse_args()
    asked = width_rows(args, args.bits)
    register_all_modules()
    cfg = get_config(CONFIG)
    samples = load_images(cfg, args.data)
    half = len(samples) // 2
    calibration, evaluation = batches_of(samples[:half], args.batch_size), samples[half:]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(args.data / 'instances_boxes.json'))
    floats = evaluate(load_model(cfg, args.weights), evaluation, truth)
    print(f'float: AP {floats.ap:.2f} on {len(evaluation)} images', flush=True)
    names = chosen_methods(args)
    for name in names:
        read_request(request(asked[0], 'default', 'default', name, 0, half, args.method_options))
    reports = {}
    for row, name, mode, search in itertools.product(asked, names, args.modes, args.searches):
        rows, seconds, taken = defaultdict(list), [], []
        for seed in args.seeds:
            spec = request(row, mode, search, name, seed, half, args.method_options)
            spec['calibration'] |= dict(sampling=args.sampling, rows_per_layer=args.rows)
            spec.update(tuning_request(args))
            model = load_model(cfg, args.weights)
            started = time.perf_counter()
            report = quantize_model(
                model, calibration, spec, replay_points=replay_points(model),
                run=lambda model, batch: model.test_step(batch))
            seconds.append(time.perf_counter() - started)
            for width in at_each(model, args.at):
                found = evaluate(model, evaluation, truth)
                rows[width].append((found.ap, raw_error(found.raw, floats.raw),
                                    kept(found.results, floats.results)))
            if report.budget:
                taken.append(plan_taken(report.budget))
            reports[f'{row.name} {name} {mode} {search} {seed}'] = [
                vars(layer) | {'input_ranges': None} for layer in report.layers]
        for width, figures in rows.items():
            ap, error, again = zip(*figures)
            print(f'{width or row.name} {name} {mode} {search}: AP {over_seeds(ap)}, raw error '
                  f'{over_seeds(error, 5)}, kept {over_seeds(again)}  '
                  f'({np.mean(seconds):.0f} s)', *taken, sep='; ', flush=True)
    if args.layers:
        args.layers.write_text(json.dumps(reports))


if __name__ == '__main__':
    main()
