"""Quantizes trained CIFAR-10 networks by several methods and prints top-1 over seeds.

Beside it stand how many test images get the float model's class, and the Kullback-Leibler
divergence of the predicted probabilities from the float model's: both compare image by image and
so vary less than top-1, where one point is 50 images.

The data folder holds ``calib/<class>/*.jpg``, ``test/<class>/*.jpg``,
``resnet20-12fca82f.th`` and ``resnet56-4bfd9763.th`` (from akamaster/pytorch_resnet_cifar10), and
``cifar10_shufflenetv2_x0_5-1308b4e9.pt`` (from chenyaofo/pytorch-cifar-models), there or in
``--weights``.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.method_names import (
    SHORT,
    add_method_arguments,
    chosen_methods,
    method_request,
    own_options,
    tuning_request,
)
from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import read_request

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def request(name: str, weight_bits: int, activation_bits: int, seed: int,
            options: Sequence[str] = (), sampling: str = 'even') -> dict:
    """Returns the quantization dict that a name on the command line stands for."""
    method, activation = method_request(name)
    return dict(weight=dict(num_bits=weight_bits),
                activation=dict(num_bits=activation_bits, **activation),
                method={**method, **own_options(method['type'], options)},
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


class Shuffle(nn.Module):
    """ShuffleNetV2's block (Ma et al., 2018, figure 3): half the channels, or all at stride 2."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        wide, self.stride = planes // 2, stride
        inner = in_planes if stride == 2 else in_planes // 2
        if stride == 2:
            self.branch1 = nn.Sequential(
                nn.Conv2d(in_planes, in_planes, 3, 2, 1, groups=in_planes, bias=False),
                nn.BatchNorm2d(in_planes), nn.Conv2d(in_planes, wide, 1, bias=False),
                nn.BatchNorm2d(wide), nn.ReLU(inplace=True))
        self.branch2 = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.Conv2d(wide, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = (self.branch1(x), x) if self.stride == 2 else x.chunk(2, 1)
        out = torch.cat([kept, self.branch2(changed)], 1)
        return out.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class CifarShuffleNet(nn.Module):
    """ShuffleNetV2 x0.5 for images of 32 pixels: no stride and no pool at its start."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24),
                                   nn.ReLU(inplace=True))
        planes = 24
        for stage, (count, width) in enumerate(((4, 48), (8, 96), (4, 192)), 2):
            blocks = [Shuffle(planes if not index else width, width, 1 if index else 2)
                      for index in range(count)]
            setattr(self, f'stage{stage}', nn.Sequential(*blocks))
            planes = width
        self.conv5 = nn.Sequential(nn.Conv2d(planes, 1024, 1, bias=False), nn.BatchNorm2d(1024),
                                   nn.ReLU(inplace=True))
        self.fc = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv5(self.stage4(self.stage3(self.stage2(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    Args:
        label: For the output.
        build: Makes it, with random weights.
        weights: File of its weights.
        mean, std: Of its input's channels, of values from 0 to 1.
    """

    label: str
    build: Callable[[], nn.Module]
    weights: str
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


NETWORKS = {
    'resnet20': Network('ResNet-20', lambda: CifarResNet(20), 'resnet20-12fca82f.th'),
    'resnet56': Network('ResNet-56', lambda: CifarResNet(56), 'resnet56-4bfd9763.th'),
    'shufflenetv2': Network('ShuffleNetV2 x0.5', CifarShuffleNet,
                            'cifar10_shufflenetv2_x0_5-1308b4e9.pt',
                            (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


def load_images(folder: Path, most: int | None = None, mean: Sequence[float] = MEAN,
                std: Sequence[float] = STD) -> tuple[Tensor, Tensor]:
    """Reads a folder per class; ``most`` images are taken evenly over the classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(path.glob('*.jpg'))
        files = files if most is None else files[:-(-most // len(classes))]
        for file in files:
            image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            images.append((image / 255.0 - mean) / std)
            labels.append(label)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().contiguous()
    return x, torch.tensor(labels)


def load_model(network: Network, folders: Sequence[Path]) -> nn.Module:
    """Builds a network and loads its trained weights, from the first folder that has them."""
    file = next((folder / network.weights for folder in folders
                 if (folder / network.weights).is_file()), folders[0] / network.weights)
    state = torch.load(file, map_location='cpu', weights_only=True)
    model = network.build()
    model.load_state_dict({name.removeprefix('module.'): value
                           for name, value in state.get('state_dict', state).items()})
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
    parser.add_argument('--weights', type=Path, help='another folder of weights')
    parser.add_argument('--num-images', type=int, default=1024)
    parser.add_argument('--networks', nargs='+', choices=list(NETWORKS),
                        help='default: those of --depths')
    parser.add_argument('--depths', type=int, nargs='+', default=[20, 56],
                        choices=(20, 56), help='of ResNets')
    parser.add_argument('--bits', nargs='+', default=['4/8', '3/3', '2/4'],
                        help='weight/activation bits')
    add_method_arguments(parser, SHORT)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--sampling', default='even', help='how positions are drawn')
    args = parser.parse_args()
    names = chosen_methods(args)
    for name in names:
        read_request(request(name, 4, 8, 0, args.method_options))  # an unknown name ends here
    for network in args.networks or [f'resnet{depth}' for depth in args.depths]:
        measure(NETWORKS[network], names, args)


def measure(network: Network, names: Sequence[str], args: argparse.Namespace) -> None:
    """Quantizes a network at all widths by all methods and prints a line each."""
    width = max(map(len, names))
    folders = [folder for folder in (args.data, args.weights) if folder is not None]
    calib, _ = load_images(args.data / 'calib', None, network.mean, network.std)
    images, labels = load_images(args.data / 'test', None, network.mean, network.std)
    floats = predict(load_model(network, folders), images)
    print(f'{network.label} float: {accuracy(floats, labels):.2f}', flush=True)
    for bits in args.bits:
        weight_bits, activation_bits = map(int, bits.split('/'))
        for name in names:
            found, seconds = [], []
            for seed in args.seeds:
                chosen = torch.randperm(
                    len(calib), generator=torch.Generator().manual_seed(seed))
                batches = calib[chosen[:args.num_images]].split(64)
                model = load_model(network, folders)
                started = time.perf_counter()
                quantize_model(model, batches, {**request(
                    name, weight_bits, activation_bits, seed, args.method_options, args.sampling),
                    **tuning_request(args)})
                seconds.append(time.perf_counter() - started)
                found.append(predict(model, images))
            top1 = over_seeds([accuracy(logits, labels) for logits in found])
            agree = over_seeds([agreement(logits, floats) for logits in found])
            apart = over_seeds([divergence(logits, floats) for logits in found], 4)
            print(f'{network.label} W{weight_bits}A{activation_bits} {name:{width}s} {top1}, '
                  f'as float {agree}, divergence {apart}  ({np.mean(seconds):.0f} s)',
                  flush=True)


if __name__ == '__main__':
    main()
