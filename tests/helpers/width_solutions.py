"""Solutions and nets of layers with several widths, without any solver."""

import dataclasses
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmbitsplit.export import pack_checkpoint
from mmbitsplit.functional import midrise_offset, narrower_codes, narrower_qparams
from mmbitsplit.functional.stored_widths import bias_as_stored, scale_as_stored
from mmbitsplit.models import QuantizedLayer, quantized_layers
from mmbitsplit.structures import LayerGeometry, LayerSolution, QParams

CONV = LayerGeometry('conv2d', 6, 8, kernel_size=(3, 3), groups=2)


def several(geometry=CONV, widths=(2, 3, 5, 8), nesting='floor', inputs=(4, 8), stored=True,
            bias=True, seed=0):
    """A solution of several widths with random values.

    Args:
        geometry: Of the layer.
        widths, inputs: Rising.
        nesting: ``None``: codes of each width are its own.
        stored: Whether scales and biases are such as a file holds in steps.
        bias: Whether there is one.
        seed: Of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    widest, channels = widths[-1], geometry.out_channels

    def codes(num_bits):
        half = 2 ** (num_bits - 1)
        low = -half + (nesting == 'planes')
        return torch.randint(low, half, geometry.weight_shape, generator=generator).to(torch.int8)

    def noise():
        return torch.rand(channels, generator=generator)

    shared, scale, shift = codes(widest), noise() + 0.1, noise() if bias else None

    def width(num_bits):
        steps, own, values = widest - num_bits, shift, scale
        if steps:
            values = scale * 2 ** steps * (1 + noise() / 5)
            own = None if shift is None else shift + noise() / 10
        if steps and stored:
            values = scale_as_stored(values, scale, steps, num_bits)
            own = None if own is None else bias_as_stored(own, shift)
        return LayerSolution(
            codes=narrower_codes(shared, widest, num_bits, nesting) if nesting else
            codes(num_bits), num_bits=num_bits, weight_scale=values, bias=own, qparams=None,
            weight_offset=midrise_offset(values) if nesting == 'floor' else None, nesting=nesting)

    qparams = QParams(
        torch.rand(geometry.in_channels, generator=generator) + 0.1,
        torch.randint(0, 30, (geometry.in_channels,), generator=generator).float(), 0,
        2 ** inputs[-1] - 1)
    return replace(
        width(widest), qparams=qparams, narrower=tuple(map(width, reversed(widths[:-1]))),
        narrower_inputs=tuple(narrower_qparams(qparams, 17.3, one) for one in inputs[-2::-1]))


# A net of all kinds, beside layers of one width.
KINDS = (dict(), dict(widths=(4,), inputs=(8,), nesting=None), dict(nesting=None, widths=(3, 8)),
         dict(nesting='planes', stored=False), dict(widths=(4, 8), inputs=(8,), bias=False))


def net_of(kinds=KINDS) -> nn.Sequential:
    """A net of a layer for each of the arguments of ``several``."""
    layers = []
    for seed, kind in enumerate(kinds):
        solution = several(**kind, seed=seed)
        layer = QuantizedLayer(CONV, torch.zeros(CONV.weight_shape), None)
        layer.install(solution)
        layer.release_float()
        layers.append(layer)
    return nn.Sequential(*layers)


def description_of(net):
    """What ``models.describe`` would say of such a net."""
    return {'layers': {name: layer.plan_row() for name, layer in net.named_children()},
            'folded': []}


def state_of(net):
    """Its state as a ``QuantizedModel`` gives it."""
    return {f'model.{name}': value for name, value in net.state_dict().items()}


def expecting(description):
    """A net that expects what a description says."""
    net = nn.Sequential(*(QuantizedLayer(CONV, torch.zeros(CONV.weight_shape), None)
                          for _ in description['layers']))
    for name, row in description['layers'].items():
        net.get_submodule(name).expect(row)
    return net


def load(net, state):
    """Loads the state of a ``QuantizedModel`` into such a net."""
    net.load_state_dict({name.removeprefix('model.'): value for name, value in state.items()})
    return net


def with_narrower(model, kept):
    """The checkpoint of a quantized model whose layers are given all narrower widths, too.

    Args:
        model: Without a wrapper; its layers have the narrower widths afterwards.
        kept: Its checkpoint of one width, as read.
    """
    def narrower(solution, num_bits, place):
        steps = solution.num_bits - num_bits
        scale, bias = solution.weight_scale * (1 + place / 10), solution.bias
        return replace(
            solution, num_bits=num_bits, qparams=None,
            codes=narrower_codes(solution.codes, solution.num_bits, num_bits, 'planes'),
            weight_scale=scale_as_stored(scale * 2 ** steps, solution.weight_scale, steps,
                                         num_bits),
            bias=None if bias is None else bias_as_stored(bias + bias.abs() / 50, bias))

    rows = dict(kept.description['layers'])
    for place, (name, layer) in enumerate(quantized_layers(model)):
        solution = layer.solution()
        inputs = solution.qparams
        layer.install(replace(
            solution, narrower=tuple(narrower(solution, num_bits, place % 7)
                                     for num_bits in range(solution.num_bits - 1, 1, -1)),
            narrower_inputs=() if inputs is None else tuple(
                narrower_qparams(inputs, 1.9 ** (inputs.num_bits - num_bits), num_bits)
                for num_bits in range(inputs.num_bits - 1, 1, -1))))
        rows[name] = {**rows[name], **{key: value for key, value in layer.plan_row().items()
                                       if key not in ('input', 'output')}}
    state = {f'model.{name}': value for name, value in model.state_dict().items()}
    return pack_checkpoint(state, {**kept.description, 'layers': rows}, kept.meta)


def assert_same(one, other):
    """Two dataclasses hold the same, bit for bit."""
    for item in dataclasses.fields(one):
        first, second = getattr(one, item.name), getattr(other, item.name)
        if isinstance(first, Tensor):
            assert torch.equal(first.float(), second.float()), item.name
        elif dataclasses.is_dataclass(first):
            assert_same(first, second)
        elif isinstance(first, tuple):
            assert len(first) == len(second), item.name
            for pair in zip(first, second):
                assert_same(*pair)
        else:
            assert first == second, item.name


def assert_computes_alike(net, other):
    """Each layer gives the same at all widths that the other has."""
    image = torch.rand(1, CONV.in_channels, 5, 5, generator=torch.Generator().manual_seed(1))
    for layer, like in zip(net, other, strict=True):
        for weight in like.weight_quantizer.widths:
            for inputs in like.input_quantizer.widths:
                layer.use(weight=weight, input=inputs)
                like.use(weight=weight, input=inputs)
                assert torch.equal(layer(image), like(image))
