"""One model, several widths: which there are, which are in use, and switching between them.

Layers that were planned with one width keep it. What is switched is one layer, product or stream
at a time, between forwards; another model's forwards are no matter.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mmbitsplit.models.layers.layer_view import SIDES as LAYER_SIDES
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer
from mmbitsplit.models.layers.streams import is_rounded, stream_widths, use_stream
from mmbitsplit.models.surgery.embedding import QuantizedEmbedding
from mmbitsplit.models.surgery.install import layer_name
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import BitPlan, PlanSpec, read_plan
from mmbitsplit.structures.given_plan import AS_REQUESTED
from mmbitsplit.structures.products import SIDES

_NAMED = 3  # places that an error names


@dataclass(frozen=True)
class LayerWidths:
    """Widths that a place of a model has, rising; empty where there is no such quantizer.

    Args:
        weight, input, output: Of a layer (or an embedding: ``weight`` alone).
        a, b: Of the inputs of a product of activations.
        stream: Of what a module gives to several readers.
    """

    weight: tuple[int, ...] = ()
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    a: tuple[int, ...] = ()
    b: tuple[int, ...] = ()
    stream: tuple[int, ...] = ()

    @property
    def several(self) -> bool:
        """Whether there is something to switch."""
        return any(len(getattr(self, item.name)) > 1 for item in fields(self))


@dataclass(frozen=True)
class LayerBits:
    """Widths in use at a place of a model; ``None`` where there is no such quantizer.

    Args:
        weight, input, output, a, b, stream: As for ``LayerWidths``.
    """

    weight: int | None = None
    input: int | None = None
    output: int | None = None
    a: int | None = None
    b: int | None = None
    stream: int | None = None


@dataclass(frozen=True)
class _Place:
    """A quantizer of a model: a side of a layer, of a product, or a stream."""

    name: str
    side: str
    widths: tuple[int, ...]
    in_use: int
    use: Callable[..., None]  # of all sides of one owner


def widths_of(model: nn.Module) -> dict[str, LayerWidths]:
    """The widths of all that is quantized, by name: layers, embeddings, products, streams.

    Args:
        model: Quantized.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in _places(model):
        found.setdefault(place.name, {})[place.side] = place.widths
    return {name: LayerWidths(**sides) for name, sides in found.items()}


def bits_of(model: nn.Module) -> dict[str, LayerBits]:
    """The widths in use of all that is quantized, by name as in ``widths_of``.

    Args:
        model: Quantized.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in _places(model):
        found.setdefault(place.name, {})[place.side] = place.in_use
    return {name: LayerBits(**sides) for name, sides in found.items()}


def set_bits(model: nn.Module, bits: int | None = None, *, weight: int | None = None,
             activation: int | None = None) -> None:
    """Switches all layers with several widths to one; the others keep theirs.

    Args:
        model: Quantized, with several widths.
        bits: For weights and activations. Activations keep their width where there is one only.
        weight: For weights instead; ``None`` with no ``bits`` leaves them as they are.
        activation: For inputs, outputs, products and streams instead, likewise.

    Raises:
        ValueError: A layer with several widths lacks it, or there is none with several. Nothing
            has been switched then.
    """
    if bits is None and weight is None and activation is None:
        raise ValueError('set_bits needs a width: set_bits(model, 4), or '
                         'set_bits(model, weight=3, activation=8).')
    places = list(_places(model))
    weights = [place for place in places if place.side == 'weight']
    activations = [place for place in places if place.side != 'weight']
    switches = _switches(weights, bits if weight is None else weight, 'weight')
    if activation is not None or any(len(place.widths) > 1 for place in activations):
        switches += _switches(activations, bits if activation is None else activation,
                              'activation')
    _switch(switches)


def use_bits(model: nn.Module, bits: int | Mapping[str, Any] | str | Path | None,
             key: str = 'bits') -> None:
    """Switches to a width, to ``dict(weight=3, activation=8)``, or to a plan; ``None``: to nothing.

    Args:
        model: Quantized.
        bits: What to use; a plan by its path or its contents.
        key: What ``bits`` is called where it was given.

    Raises:
        ValueError: It is no width and no plan, or a layer lacks it.
    """
    if bits is None:
        return
    if isinstance(bits, int):
        set_bits(model, bits)
    elif not isinstance(bits, Mapping) or 'layers' in bits:
        set_plan(model, bits if isinstance(bits, (str, Path)) else dict(bits))
    elif not bits or set(bits) - {'weight', 'activation'}:
        raise ValueError(f'{key}={dict(bits)!r} is not supported; give a width such as 4, '
                         'dict(weight=3, activation=8), or a plan.')
    else:
        set_bits(model, **bits)


def set_plan(model: nn.Module, plan: PlanSpec | BitPlan | Mapping[str, Any] | str | Path) -> None:
    """Switches each layer, product and stream to the width that a plan gives it.

    Where the plan says nothing, the widest is taken, so that plans do not depend on those before
    them. Settings of a plan that are not widths (modes, searches) change nothing.

    Args:
        model: Quantized, with several widths.
        plan: As ``plan.json`` has it, its path, or a plan.

    Raises:
        ValueError: The plan names what is not in the model, or a width that a layer lacks. Nothing
            has been switched then.
    """
    asked = _widths_asked(read_plan(plan))
    places = list(_places(model))
    known = {place.name: None for place in places}
    for (name, _), num_bits in asked.items():
        if name not in known and num_bits is not None:
            raise ValueError(f"The plan gives '{name}' a width, which is not quantized in this "
                             f'model; {nearest(name, known)}.')
    has = {(place.name, place.side) for place in places}
    for (name, side), num_bits in asked.items():
        if name in known and (name, side) not in has and num_bits is not None:
            raise ValueError(f"The plan gives the {side} of '{name}' {num_bits} bits; it is in "
                             'float in this model.')
    switches = []
    for place in places:
        num_bits = asked.get((place.name, place.side), place.widths[-1])
        if num_bits not in place.widths:
            wanted = 'leaves it in float' if num_bits is None else f'says {num_bits} bits'
            raise ValueError(f"The {place.side} of '{place.name}' has {_said(place.widths)}, and "
                             f'the plan {wanted}. Change the plan, or quantize with these widths.')
        switches.append((place, num_bits))
    _switch(switches)


def _widths_asked(plan: PlanSpec) -> dict[tuple[str, str], int | None]:
    """What a plan says, by name and side; ``None`` for float."""
    asked: dict[tuple[str, str], Any] = {}
    for row in plan.layers:
        for side in ('weight', 'input', 'output'):
            asked[row.name, side] = getattr(row, f'{side}_bits')
        if row.weight_bits is None:  # all of it
            del asked[row.name, 'input'], asked[row.name, 'output']
    asked.update({(stream.name, 'stream'): stream.num_bits for stream in plan.streams})
    asked.update({(product.name, side): getattr(product, f'{side}_bits')
                  for product in plan.products for side in SIDES})
    return {key: value for key, value in asked.items() if value != AS_REQUESTED}


def _switches(places: list[_Place], num_bits: int | None, kind: str) -> list[tuple[_Place, int]]:
    """Who is to be switched to one width.

    Raises:
        ValueError: Somebody with several widths lacks it, or there is nobody.
    """
    if num_bits is None:
        return []
    several = [place for place in places if len(place.widths) > 1]
    lacking = [place for place in several if num_bits not in place.widths]
    if lacking:
        named = ', '.join(f"'{place.name}' ({_said(place.widths)})" for place in lacking[:_NAMED])
        more = f' and {len(lacking) - _NAMED} more' if len(lacking) > _NAMED else ''
        raise ValueError(f'{kind}={num_bits} is none of the {kind} widths of {named}{more}. Use '
                         'one of those, or quantize again with it among the widths.')
    if not several and not any(num_bits in place.widths for place in places):
        found = sorted({width for place in places for width in place.widths})
        raise ValueError(f'{kind}={num_bits} cannot be switched to: '
                         + (f'no {kind} of this model has several widths, they have '
                            f'{_said(found)}' if found else f'no {kind} of this model is quantized')
                         + ". Quantize it with several, such as method=dict(type='NestedBitSplit', "
                           'widths=[3, 4, 6, 8]).')
    return [(place, num_bits) for place in several]


def _switch(switches: list[tuple[_Place, int]]) -> None:
    """Switches all sides of a layer at once, whose weight is made once."""
    owners: dict[Callable[..., None], dict[str, int]] = {}
    for place, num_bits in switches:
        owners.setdefault(place.use, {})[place.side] = num_bits
    for use, sides in owners.items():
        use(**sides)


def _said(widths: tuple[int, ...] | list[int]) -> str:
    return f'{", ".join(map(str, widths))} bits'


def _places(model: nn.Module) -> Iterator[_Place]:
    """Yields all quantizers of a model."""
    inside = getattr(type(model), 'names_inside', None)  # of a wrapper: plans leave its name out
    if inside is not None:
        model = getattr(model, inside)
    modules = dict(model.named_modules())  # once: it takes as long as small layers
    for name, module in modules.items():
        if isinstance(module, QuantizedLayer):
            yield from _of(layer_name(name, modules), module.use, {
                side: module._modules[f'{side}_quantizer'] for side in LAYER_SIDES})
    for name, module in modules.items():
        if isinstance(module, QuantizedEmbedding):
            yield _Place(name, 'weight', (module.num_bits,), module.num_bits, module.use)
    for name, module in modules.items():
        if isinstance(module, Product) and module.quantized:
            yield from _of(name, module.use, module.quantizers())
    for name, module in modules.items():
        if is_rounded(module):
            yield _Place(name, 'stream', *stream_widths(module), partial(use_stream, module))


def _of(name: str, use: Callable[..., None], quantizers: Mapping[str, Any]) -> Iterator[_Place]:
    """Yields those of a layer or a product."""
    return (_Place(name, side, quantizer.widths, quantizer.num_bits, use)
            for side, quantizer in quantizers.items() if quantizer is not None)
