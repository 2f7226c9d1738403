"""Quantizes a small vision transformer on Fashion-MNIST and prints what is left of it.

mmpretrain's VisionTransformer: 4 blocks of 128 channels and 4 heads on 16 overlapping patches,
0.8 M parameters. Where ``--weights`` holds none, it is trained first. Of the training images
``--num-images``, drawn by the seed, calibrate; all test images are evaluated.

The data folder holds ``train.npz`` and ``test.npz`` with ``x`` (N, 28, 28) uint8 and ``y`` (N,).
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmbitsplit.engine  # noqa: F401  before mmpretrain: it declares missing operators

# isort: split
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier

from benchmarks.cifar import accuracy, agreement, divergence, over_seeds, predict, request
from benchmarks.method_names import (
    add_method_arguments,
    add_width_argument,
    at_each,
    chosen_methods,
    tuning_request,
)
from mmbitsplit.apis import quantize_model

WEIGHTS = 'fashion_vit.pth'
MEAN, STD = 0.286, 0.353
BATCH = 128


def build_model() -> nn.Module:
    """The classifier, with random weights."""
    arch = dict(embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512)
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # another may be in force
        return ImageClassifier(
            backbone=dict(type='VisionTransformer', arch=arch, img_size=28, patch_size=10,
                          patch_cfg=dict(stride=6), in_channels=1, out_type='avg_featmap',
                          with_cls_token=False),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=128))


def load_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images of a part, (N, 1, 28, 28), and their classes (N,)."""
    with np.load(folder / f'{part}.npz') as found:
        images, labels = torch.from_numpy(found['x']), torch.from_numpy(found['y'])
    return ((images / 255 - MEAN) / STD).unsqueeze(1), labels.long()


def train(data: Path, file: Path, epochs: int) -> None:
    """Trains the classifier from random weights and writes its state dict.

    Matrices learn by Muon (torch 2.9 and later), which needs few epochs, all else by AdamW; one
    cycle, half the images mirrored.
    """
    torch.manual_seed(0)
    images, labels = load_images(data, 'train')
    test_images, test_labels = load_images(data, 'test')
    model = build_model()
    model.init_weights()
    inner = [weight for name, weight in model.named_parameters()
             if weight.ndim == 2 and 'layers' in name]
    others = [weight for weight in model.parameters() if all(weight is not part for part in inner)]
    optimizers = [
        torch.optim.Muon(inner, lr=4e-3, weight_decay=0.05, adjust_lr_fn='match_rms_adamw'),
        torch.optim.AdamW(others, lr=4e-3, weight_decay=0.05)]
    steps = len(images) // BATCH
    cycles = [torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, epochs * steps, pct_start=0.15, cycle_momentum=False)
        for optimizer in optimizers]
    for epoch in range(epochs):
        model.train()
        started, losses = time.perf_counter(), []
        for chosen in torch.randperm(len(images))[:steps * BATCH].split(BATCH):
            x = images[chosen]
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(3))
            loss = F.cross_entropy(model(x), labels[chosen])
            model.zero_grad()
            loss.backward()
            for optimizer, cycle in zip(optimizers, cycles):
                optimizer.step()
                cycle.step()
            losses.append(loss.item())
        top1 = accuracy(predict(model.eval(), test_images), test_labels)
        print(f'epoch {epoch + 1}: loss {np.mean(losses):.4f}, top-1 {top1:.2f} '
              f'({time.perf_counter() - started:.0f} s)', flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)


def load_model(file: Path) -> nn.Module:
    """The trained classifier."""
    model = build_model()
    model.load_state_dict(torch.load(file, map_location='cpu', weights_only=True))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True,
                        help=f'folder of {WEIGHTS}, which is trained and written where it is not')
    parser.add_argument('--epochs', type=int, default=10, help='of training')
    parser.add_argument('--num-images', type=int, default=1024)
    parser.add_argument('--bits', nargs='+', default=['8/8', '4/8', '4/6', '4/4'],
                        help='weight/activation bits')
    add_method_arguments(parser, ['rounding', 'default'])
    add_width_argument(parser)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    names = chosen_methods(args)
    file = args.weights / WEIGHTS
    if not file.is_file():
        train(args.data, file, args.epochs)
    images, labels = load_images(args.data, 'test')
    floats = predict(load_model(file), images)
    print(f'float: {accuracy(floats, labels):.2f} of {len(images)} images', flush=True)
    for bits in args.bits:
        for name in names:
            measure(name, bits, floats, args)


def measure(name: str, bits: str, floats: Tensor, args: argparse.Namespace) -> None:
    """Quantizes by one method at one width with all seeds and prints a line."""
    weight_bits, activation_bits = map(int, bits.split('/'))
    calib, _ = load_images(args.data, 'train')
    images, labels = load_images(args.data, 'test')
    found, seconds = defaultdict(list), []
    for seed in args.seeds:
        chosen = torch.randperm(len(calib), generator=torch.Generator().manual_seed(seed))
        model = load_model(args.weights / WEIGHTS)
        started = time.perf_counter()
        report = quantize_model(model, calib[chosen[:args.num_images]].split(64), {**request(
            name, weight_bits, activation_bits, seed, args.method_options),
            **tuning_request(args)})
        seconds.append(time.perf_counter() - started)
        for width in at_each(model, args.at):
            found[width].append(predict(model, images))
    for width, rows in found.items():
        top1 = over_seeds([accuracy(logits, labels) for logits in rows])
        agree = over_seeds([agreement(logits, floats) for logits in rows])
        apart = over_seeds([divergence(logits, floats) for logits in rows], 4)
        print(f'{width or f"W{weight_bits}A{activation_bits}"} {name}: {top1}, as float {agree}, '
              f'divergence {apart}, {100 * report.multiplications["quantized"]:.1f} % of '
              f'multiplications and {len(report.products)} products quantized  '
              f'({np.mean(seconds):.0f} s)', flush=True)


if __name__ == '__main__':
    main()
