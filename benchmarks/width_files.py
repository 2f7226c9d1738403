"""Counts what a file of several widths takes beside the 8-bit file, for the shapes of some nets.

Layers are filled with random codes, and packed. Scales and biases differ from width to width as
those that ``NestedBitSplit`` solved for ResNet-20 do (``SPREAD``): that is what their bytes depend
on. Payload: codes, scales, biases, inputs of one ECAQ scale a channel whose zero points are 0; the
first and the last layer have 8 bits. For the small net whole files are written too, so that the
header counts: ``python -m benchmarks.width_files``.
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import replace

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import torch
from torch import nn

from benchmarks.cifar import CifarResNet
from mmbitsplit.export import pack_checkpoint
from mmbitsplit.functional import midrise_offset, narrower_codes, narrower_qparams
from mmbitsplit.functional.stored_widths import SCALE_STEPS, bias_as_stored, scale_as_stored
from mmbitsplit.models import QuantizedLayer, layer_geometry, layer_kind
from mmbitsplit.models.layers.layer_state import solution_to_file
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams

# Standard deviation of scales from what nesting alone gives, in 1/96 octave, by width: ResNet-20,
# CIFAR-10, widths 2 to 8 of weights and inputs, effort='fast'.
SPREAD = {2: 24, 3: 8, 4: 2.8, 5: 1.1, 6: 0.7, 7: 0.2}


def shapes(model: nn.Module) -> list[LayerGeometry]:
    """Convolutions and linear layers, in the order of the modules."""
    return [layer_geometry(module) for module in model.modules() if layer_kind(module)]


def payload(layers: Sequence[LayerGeometry], widths: Sequence[int], nested: bool = True) -> int:
    """Bytes of a file with these widths, first and last layer of 8 bits; not of its header."""
    total = 0
    for place, layer in enumerate(layers):
        first_or_last = place in (0, len(layers) - 1)
        made = solution_to_file(solution(layer, [8] if first_or_last else widths, nested), layer)
        total += sum(value.numel() * value.element_size() for name, value in made.items()
                     if name != 'input_zero_point' and (place or name != 'input_scale'))
    return total


def solution(layer: LayerGeometry, widths: Sequence[int], nested: bool = True) -> LayerSolution:
    """Random values, such as a file holds in steps."""
    nesting = 'floor' if nested else None
    codes = torch.randint(-128, 128, layer.weight_shape).to(torch.int8)
    scale, bias = torch.rand(layer.out_channels) + 0.1, torch.randn(layer.out_channels)
    qparams = QParams(torch.rand(layer.in_channels) + 0.1, torch.zeros(layer.in_channels), 0, 255)

    def width(num_bits: int) -> LayerSolution:
        steps = widths[-1] - num_bits
        away = SPREAD.get(num_bits, 0) * torch.randn(layer.out_channels) / SCALE_STEPS
        own = scale_as_stored(scale * 2 ** steps * 2 ** away, scale, steps, num_bits) \
            if steps else scale
        moved = bias_as_stored(bias + torch.randn(layer.out_channels) / 50, bias) if steps else bias
        chosen = narrower_codes(codes, widths[-1], num_bits, 'floor')
        return LayerSolution(codes=chosen if nested else chosen ^ 1, num_bits=num_bits,
                             weight_scale=own, bias=moved, qparams=None, nesting=nesting,
                             weight_offset=midrise_offset(own) if nested else None)
    if len(widths) == 1:
        return replace(width(8), nesting=None, weight_offset=None, qparams=qparams)
    return replace(width(8), qparams=qparams, narrower=tuple(map(width, widths[-2::-1])),
                   narrower_inputs=tuple(narrower_qparams(qparams, 2.1 ** (8 - one), one)
                                         for one in widths[-2::-1]))


def file_bytes(layers: Sequence[LayerGeometry], widths: Sequence[int]) -> int:
    """Bytes of a whole file, header and all."""
    state, rows = {}, {}
    for place, layer in enumerate(layers):
        made = QuantizedLayer(layer, torch.zeros(layer.weight_shape), None)
        made.install(solution(layer, [8] if place in (0, len(layers) - 1) else widths))
        name = f'layers.{place // 6}.{place % 6}.conv'  # as long as names are
        rows[name] = made.plan_row()
        state |= {f'model.{name}.{key}': value for key, value in made.state_dict().items()}
    file = io.BytesIO()
    torch.save(pack_checkpoint(state, {'layers': rows, 'folded': []}, {}), file)
    return len(file.getvalue())


def main() -> None:
    """Prints a row a net."""
    from torchvision.models import mobilenet_v2, resnet50
    from torchvision.models.detection import retinanet_resnet50_fpn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--widths', type=int, nargs='+', default=[2, 3, 4, 5, 6, 7, 8])
    widths = parser.parse_args().widths
    torch.manual_seed(0)
    nets = {'ResNet-20': CifarResNet(20), 'ResNet-50': resnet50(), 'MobileNetV2': mobilenet_v2(),
            'RetinaNet-R50': retinanet_resnet50_fpn(weights=None, weights_backbone=None)}
    print(f'| Net | 8 bits | {", ".join(map(str, widths))} nested | each with its own codes |')
    print('|---|---|---|---|')
    for name, model in nets.items():
        layers = shapes(model)
        one, many, apart = (payload(layers, *rest) for rest in (
            ([8],), (widths,), (widths, False)))
        print(f'| {name}, payload | {one:,} | {many / one:.4f} | {apart / one:.3f} |')
    layers = shapes(nets['ResNet-20'])
    one, many = file_bytes(layers, [8]), file_bytes(layers, widths)
    print(f'| ResNet-20, file | {one:,} | {many / one:.4f} | |')


if __name__ == '__main__':
    main()
