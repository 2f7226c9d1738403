"""What of a quantized model a tuning stage may move: one vector, zero where it began."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.functional import code_positions, code_range, per_output, weight_rows
from mmbitsplit.functional.norm_statistics import mean_and_variance, output_moments
from mmbitsplit.functional.quantizers.integer_bias import whole_steps
from mmbitsplit.methods.tuning import Learned
from mmbitsplit.models import QuantizedLayer
from mmbitsplit.models.layers.quantizers import ActivationQuantizer, WeightQuantizer
from mmbitsplit.passes.hooks import hooked

# How far a position keeps from half a step, so that it rounds to its code.
CLEAR = 0.01
CODE_STEP = 0.5  # code steps a unit of the vector: codes move half as fast as logarithms
LEAST_SPREAD = 0.1  # of a channel's output, of the layer's


@dataclass
class LearnedValues:
    """Codes, scales and biases of all layers as one vector of real numbers.

    A code is ``position + c / 2`` rounded, with gradients straight through; the position is that
    of the float weight, or just within half a step of the code where that is farther away. Layers
    of several widths keep their codes.

    A weight scale is ``start * exp(w)``, an input scale ``start * exp(x)``, a bias
    ``start + spread * b``. Where codes of inputs enter the product (``unit``), the weight scale
    holds the input scale, too: it grows with the mean ``x``, so that ``x`` moves what is clipped
    and how finely it is rounded, and not how large the output is. A zero point of a range of both
    signs is ``start + (largest code - smallest) * z`` rounded, with gradients straight through:
    it moves what is clipped at either end.

    Args:
        layers: By name, quantized; a layer without a bias is given one of zeros.
        learns: What moves.
        spreads: (out_channels,) of each layer's outputs, by name.
        shared: Layers whose input or output grid others have, too; it stays.
        fixed: Layers that stay as they are.
    """

    layers: Mapping[str, QuantizedLayer]
    learns: Sequence[Learned]
    spreads: Mapping[str, Tensor]
    shared: Container[str] = ()
    fixed: Container[str] = ()
    parts: list['_Part'] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = 0
        for name, layer in self.layers.items():
            learns = [kind for kind in self.learns if name not in self.fixed
                      and (kind not in ('input_scales', 'zero_points') or name not in self.shared)]
            part = _Part(name, layer, learns, self.spreads[name], first)
            self.parts.append(part)
            first += part.size
        self.size = first

    def counts(self) -> dict[str, int]:
        """How many numbers there are of each kind."""
        return {kind: sum(len(range(*place.indices(self.size))) for part in self.parts
                          for which, place in part.places.items() if which == kind)
                for kind in ('scales', 'input_scales', 'output_scales', 'biases', 'codes',
                             'zero_points', 'output_zero_points')}

    def changed_codes(self) -> int:
        """How many codes are others than in the beginning."""
        return sum(int((part.weight.codes != part.start_codes).sum())
                   for part in self.parts if part.start_codes is not None)

    def write(self, point: Tensor) -> None:
        """Writes a point (size,) into the layers; at zero all is as it was, bit for bit."""
        with torch.no_grad():
            for part in self.parts:
                part.write(point)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Inside, the tensors that are learned require gradients; they are given in order."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.real_zero_points())
            leaves = [leaf for part in self.parts for leaf in part.leaves()]
            try:
                yield [leaf.requires_grad_(True) for leaf in leaves]
            finally:
                for leaf in leaves:
                    leaf.requires_grad_(False)

    def reached(self, found: Sequence[Tensor | None]) -> set[str]:
        """Layers of which one of the gradients of ``recorded`` is there."""
        names = [part.name for part in self.parts for _ in part.leaves()]
        return {name for name, gradient in zip(names, found) if gradient is not None}

    def end(self) -> None:
        """Takes back biases that layers were given and that have stayed zero."""
        for part in self.parts:
            if part.made_bias and not bool(part.weight.bias.any()):
                part.weight.bias = None

    def gradient(self, found: Sequence[Tensor | None]) -> Tensor:
        """(size,) float64, from the gradients of ``recorded``; ``None`` counts as zero."""
        total, rest = torch.zeros(self.size, dtype=torch.float64), list(found)
        for part in self.parts:
            count = len(part.leaves())
            part.add_gradient(total, rest[:count])
            del rest[:count]
        return total


class _Part:
    """A layer's share of the vector."""

    def __init__(self, name: str, layer: QuantizedLayer, learns: Sequence[Learned],
                 spread: Tensor, first: int):
        self.name, self.spread = name, spread
        channels = layer.geometry.out_channels
        self.weight: WeightQuantizer = getattr(layer.weight_quantizer, 'active',
                                               layer.weight_quantizer)
        self.input: ActivationQuantizer | None = layer.input_quantizer
        self.output: ActivationQuantizer | None = layer.output_quantizer
        self.unit = self.input is not None and self.input.unit
        sizes = {'scales': channels if 'scales' in learns else 0}
        if 'input_scales' in learns:
            sizes['input_scales'] = 0 if self.input is None else self.input.scale.numel()
            sizes['output_scales'] = 0 if self.output is None else self.output.scale.numel()
        sizes['biases'] = channels if 'biases' in learns else 0
        self.start_codes: Tensor | None = None
        if 'codes' in learns and len(layer.weight_quantizer.widths) == 1:
            sizes['codes'] = self.weight.codes.numel()
            self.start_codes = self.weight.codes.clone()
            self.position = self.moved = nearby(code_positions(
                layer.float_weights().weight.detach(), layer.geometry, self.weight.scale,
                self.input.scale if self.unit else None, self.weight.offset), self.start_codes)
        if 'zero_points' in learns:
            sizes['zero_points'] = _zero_points(self.input)
            sizes['output_zero_points'] = _zero_points(self.output)
        self.made_bias = bool(sizes['biases']) and self.weight.bias is None
        if self.made_bias:
            self.weight.bias = torch.nn.Parameter(
                torch.zeros_like(self.weight.scale), requires_grad=False)
        self.places: dict[str, slice] = {}
        for kind, size in sizes.items():
            if size:
                self.places[kind] = slice(first, first + size)
                first += size
        self.size = sum(sizes.values())
        self.tensors = {'scale': self.weight.scale, 'offset': self.weight.offset,
                        'bias': self.weight.bias,
                        'input': None if self.input is None else self.input.scale,
                        'output': None if self.output is None else self.output.scale}
        for _, name, quantizer in self._zeros():
            self.tensors[name] = quantizer.zero_point
        self.start = {name: value.detach().clone() for name, value in self.tensors.items()
                      if value is not None}

    def _zeros(self) -> Iterator[tuple[str, str, ActivationQuantizer]]:
        """Zero points that are learned: kind, name of the tensor, whose they are."""
        for kind, name, quantizer in (('zero_points', 'zero', self.input),
                                      ('output_zero_points', 'output_zero', self.output)):
            if kind in self.places:
                yield kind, name, quantizer

    @contextmanager
    def real_zero_points(self) -> Iterator[None]:
        """Inside, those that are learned are real numbers, as autograd knows no whole ones."""
        for _, name, quantizer in self._zeros():
            quantizer.zero_point = self.tensors[name].to(quantizer.scale)
        try:
            yield
        finally:
            for _, name, quantizer in self._zeros():
                quantizer.zero_point = self.tensors[name]

    def write(self, point: Tensor) -> None:
        moved = point[self.places_range()]
        for name, start in self.start.items():
            self.tensors[name].copy_(start)
        if self.start_codes is not None:
            self.weight.codes, self.moved = self.start_codes, self.position
        if bool((moved != 0).any()):
            self._move(point.to(self.weight.scale.device))
        self.weight.refresh()

    def places_range(self) -> slice:
        """Where this layer's numbers are."""
        places = self.places.values()
        return slice(min((place.start for place in places), default=0),
                     max((place.stop for place in places), default=0))

    def _place_codes(self, point: Tensor) -> Tensor:
        """Where codes are at a point, before they are rounded; shape of the weight."""
        return self.position + CODE_STEP * point[self.places['codes']].to(
            self.position).view_as(self.position)

    def _move(self, point: Tensor) -> None:
        if 'codes' in self.places:
            self.moved = self._place_codes(point)
            self.weight.codes = self.moved.round().clamp_(*self._range()).to(
                self.start_codes.dtype)
        factor = point[self.places['scales']].exp() if 'scales' in self.places else 1.0
        if 'input_scales' in self.places:
            moved = point[self.places['input_scales']]
            self.tensors['input'].mul_(moved.exp())
            if self.unit:
                factor = factor * moved.mean().exp()
        for name in ('scale', 'offset'):
            if self.tensors[name] is not None and isinstance(factor, Tensor):
                self.tensors[name].mul_(factor)
        if 'output_scales' in self.places:
            self.tensors['output'].mul_(point[self.places['output_scales']].exp())
        for kind, name, quantizer in self._zeros():
            low, high = quantizer.qparams.limits()
            moved = self.start[name] + (high - low) * point[self.places[kind]]
            self.tensors[name].copy_(moved.round().clamp(low, high))
        bias = self.tensors['bias']
        if bias is None:
            return
        total = bias.double()
        if 'biases' in self.places:
            total = total + self.spread.to(point) * point[self.places['biases']]
        if self.unit:  # integer kernels add whole steps of the product
            total = whole_steps(total, self.tensors['scale'])
        bias.copy_(total)

    def _range(self) -> tuple[int, int]:
        return code_range(self.weight.num_bits, signed=True, narrow_range=True)

    def leaves(self) -> list[Tensor]:
        """Tensors whose gradients make those of this layer's numbers."""
        special = {'weight': self.weight.hard_weight,
                   **{name: quantizer.zero_point for _, name, quantizer in self._zeros()}}
        return [special.get(name, self.tensors.get(name)) for name in self._names()]

    def _names(self) -> list[str]:
        names = []
        if 'codes' in self.places:  # all that the weight is made of has its gradients from it
            names += ['weight']
        elif 'scales' in self.places or ('input_scales' in self.places and self.unit):
            names += ['scale'] + (['offset'] if self.tensors['offset'] is not None else [])
        names += [name for kind, name in (('input_scales', 'input'), ('output_scales', 'output'),
                                          ('biases', 'bias')) if kind in self.places]
        return names + [name for _, name, _ in self._zeros()]

    def add_gradient(self, total: Tensor, found: Sequence[Tensor | None]) -> None:
        """Adds by the chain rule: of a logarithm, the gradient times the value."""
        gradients = {name: gradient.detach().double() for name, gradient
                     in zip(self._names(), found) if gradient is not None}
        if 'weight' in gradients:
            gradients |= self._of_weight(gradients.pop('weight'), total)
        for kind, name, quantizer in self._zeros():
            if name in gradients:
                low, high = quantizer.qparams.limits()
                total[self.places[kind]] += (gradients.pop(name) * (high - low).double()).cpu()
        relative = {name: (gradient * self.tensors[name].detach().double()).cpu()
                    for name, gradient in gradients.items()}
        of_weight = sum((relative[name] for name in ('scale', 'offset') if name in relative),
                        torch.zeros((), dtype=torch.float64))
        if 'scales' in self.places:
            total[self.places['scales']] += of_weight
        if 'input_scales' in self.places:
            place = self.places['input_scales']
            if 'input' in relative:
                total[place] += relative['input']
            if self.unit:
                total[place] += of_weight.sum() / (place.stop - place.start)
        if 'output' in relative:
            total[self.places['output_scales']] += relative['output']
        if 'bias' in gradients:
            total[self.places['biases']] += gradients['bias'].cpu() * self.spread

    def _of_weight(self, gradient: Tensor, total: Tensor) -> dict[str, Tensor]:
        """Adds the gradients of the codes; returns those of scale and offset."""
        geometry = self.weight.geometry
        low, high = self._range()
        # A code at the end of the range comes back from where rounding would still give it.
        inside = (self.moved > low - 0.5) & (self.moved < high + 0.5)
        steps = gradient * per_output(self.weight.scale, geometry) * inside
        total[self.places['codes']] += CODE_STEP * steps.flatten().cpu()
        rows = weight_rows(gradient * self.weight.codes, geometry)
        found = {'scale': rows.sum(-1).flatten()}
        if self.weight.offset is not None:
            found['offset'] = weight_rows(gradient, geometry).sum(-1).flatten()
        return found


def _zero_points(quantizer: ActivationQuantizer | None) -> int:
    """How many there are of a range of both signs; none of others, whose zero is at an end."""
    two_sided = quantizer is not None and quantizer.quant_min == 0 and bool(
        (quantizer.zero_point > 0).any())
    return quantizer.zero_point.numel() if two_sided else 0


def nearby(position: Tensor, codes: Tensor) -> Tensor:
    """Positions moved so near to codes that each rounds to its own.

    Args:
        position: In code steps.
        codes: Whole, same shape.
    """
    return codes + (position - codes).clamp(CLEAR - 0.5, 0.5 - CLEAR)


@contextmanager
def output_spreads(layers: Mapping[str, QuantizedLayer]) -> Iterator[dict[str, Tensor]]:
    """Adds up, while the model runs, (3, out_channels) of each layer's outputs: how many there
    are, their sum, the sum of their squares. ``spread`` makes of these what a bias is counted in.
    """
    sums: dict[str, Tensor] = {}

    def hook_for(name: str):
        def hook(layer, args, output):
            sums[name] = sums.get(name, 0) + output_moments(output, layer.geometry).cpu()
        return hook

    with hooked(layers.items(), hook_for, prepend=True):
        yield sums


def spread(sums: Tensor) -> Tensor:
    """(out_channels,) standard deviation of outputs; at least a part of the layer's.

    Args:
        sums: (3, out_channels), see ``output_spreads``.
    """
    _, variance = mean_and_variance(sums)
    least = LEAST_SPREAD * float(variance.mean().sqrt())
    return variance.sqrt().clamp(min=least if least > 0 else 1.0)
