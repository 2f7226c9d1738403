"""Quantizes trained CIFAR-10 ResNets by several methods and prints top-1 over seeds.

Beside it stand how many test images get the float model's class, and the Kullback-Leibler
divergence of the predicted probabilities from the float model's: both compare image by image and
so vary less than top-1, where one point is 50 images.

The data folder holds ``calib/<class>/*.jpg``, ``test/<class>/*.jpg``,
``resnet20-12fca82f.th`` and ``resnet56-4bfd9763.th`` (from akamaster/pytorch_resnet_cifar10).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import METHODS, read_request

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = {20: 'resnet20-12fca82f.th', 56: 'resnet56-4bfd9763.th'}
# Short names of methods; any registered one may be named too. 'NAME:MODE' changes how it quantizes
# activations (per_tensor, per_channel, ecaq), 'NAME:deploy' quantizes outputs too.
SHORT = {'rounding': 'MSE', 'paper': 'PublishedBitSplit', 'default': 'BitSplit'}


def request(name: str, weight_bits: int, activation_bits: int, seed: int,
            sampling: str = 'even') -> dict:
    """Returns the quantization dict that a name on the command line stands for."""
    method, _, mode = name.partition(':')
    activation = dict(placement='deploy') if mode == 'deploy' else dict(mode=mode) if mode else {}
    return dict(weight=dict(num_bits=weight_bits),
                activation=dict(num_bits=activation_bits, **activation),
                method=dict(type=SHORT.get(method, method)),
                calibration=dict(seed=seed, sampling=sampling))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al., 2016, section 4.2)."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.extra = stride, planes - in_planes

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            side = self.extra // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """He et al.'s CIFAR network of 6n + 2 layers."""

    def __init__(self, depth: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        planes = 16
        for stage, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
            layers = []
            for index in range(blocks):
                layers.append(BasicBlock(planes, width, stride if index == 0 else 1))
                planes = width
            setattr(self, f'layer{stage}', nn.Sequential(*layers))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_images(folder: Path, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Reads a folder per class; ``most`` images are taken evenly over the classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(path.glob('*.jpg'))
        files = files if most is None else files[:-(-most // len(classes))]
        for file in files:
            image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            images.append((image / 255.0 - MEAN) / STD)
            labels.append(label)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().contiguous()
    return x, torch.tensor(labels)


def load_model(data: Path, depth: int) -> CifarResNet:
    """Builds the network and loads its trained weights."""
    state = torch.load(data / WEIGHTS[depth], map_location='cpu', weights_only=True)
    model = CifarResNet(depth)
    model.load_state_dict({name.removeprefix('module.'): value
                           for name, value in state['state_dict'].items()})
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, (images, classes)."""
    return torch.cat([model(x) for x in images.split(250)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 in per cent."""
    return 100.0 * float((logits.argmax(1) == labels).double().mean())


def agreement(logits: Tensor, float_logits: Tensor) -> float:
    """Images that get the float model's class, in per cent."""
    return accuracy(logits, float_logits.argmax(1))


def divergence(logits: Tensor, float_logits: Tensor) -> float:
    """Kullback-Leibler divergence from the float model's probabilities, nats an image."""
    return float(F.kl_div(logits.log_softmax(1), float_logits.log_softmax(1), log_target=True,
                          reduction='batchmean'))


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and sample standard deviation where there are several values."""
    text = f'{np.mean(values):.{digits}f}'
    return text + (f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else '')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--num-images', type=int, default=1024)
    parser.add_argument('--depths', type=int, nargs='+', default=[20, 56])
    parser.add_argument('--bits', nargs='+', default=['4/8', '3/3', '2/4'],
                        help='weight/activation bits')
    parser.add_argument('--methods', nargs='+', default=list(SHORT),
                        help=f"of {', '.join([*SHORT, *sorted(METHODS)])}; NAME:MODE with a mode "
                        'of the activations; all for every registered method')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--sampling', default='even', help='how positions are drawn')
    args = parser.parse_args()
    names = sorted(METHODS) if args.methods == ['all'] else args.methods
    for name in names:
        read_request(request(name, 4, 8, 0))  # a name that is not known ends here
    width = max(map(len, names))
    calib, _ = load_images(args.data / 'calib', None)
    images, labels = load_images(args.data / 'test')
    for depth in args.depths:
        floats = predict(load_model(args.data, depth), images)
        print(f'ResNet-{depth} float: {accuracy(floats, labels):.2f}')
        for bits in args.bits:
            weight_bits, activation_bits = map(int, bits.split('/'))
            for name in names:
                found, seconds = [], []
                for seed in args.seeds:
                    chosen = torch.randperm(
                        len(calib), generator=torch.Generator().manual_seed(seed))
                    batches = calib[chosen[:args.num_images]].split(64)
                    model = load_model(args.data, depth)
                    started = time.perf_counter()
                    quantize_model(model, batches, request(
                        name, weight_bits, activation_bits, seed, args.sampling))
                    seconds.append(time.perf_counter() - started)
                    found.append(predict(model, images))
                top1 = over_seeds([accuracy(logits, labels) for logits in found])
                agree = over_seeds([agreement(logits, floats) for logits in found])
                apart = over_seeds([divergence(logits, floats) for logits in found], 4)
                print(f'ResNet-{depth} W{weight_bits}A{activation_bits} {name:{width}s} {top1}, '
                      f'as float {agree}, divergence {apart}  ({np.mean(seconds):.0f} s)',
                      flush=True)


if __name__ == '__main__':
    main()
