"""Blocks of a model with several widths: each gets one choice of widths for all that is in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from mmbitsplit.models import DataFlow
from mmbitsplit.models.switching import LayerWidths
from mmbitsplit.planning.units import find_units
from mmbitsplit.structures import PlannedProduct, PlannedStream, PlanRow, PlanSpec, Unit, Widths
from mmbitsplit.structures.widths import MAX_BITS

Pairs = Literal['tied', 'all']
Granularity = Literal['block', 'layer']
BlockPlan = Mapping[str, Widths]  # by block
_OF_LAYERS = ('weight', 'input', 'output')


@dataclass(frozen=True)
class WidthBlock:
    """Places that change their widths together.

    Args:
        name: Of its first place's module.
        places: Names as ``widths_of`` has them, layers in execution order first.
        choices: Rising.
    """

    name: str
    places: tuple[str, ...]
    choices: tuple[Widths, ...]


def find_blocks(flow: DataFlow, widths: Mapping[str, LayerWidths], *,
                granularity: Granularity = 'block', pairs: Pairs = 'tied',
                ) -> tuple[WidthBlock, ...]:
    """Divides what can be switched into blocks.

    Args:
        flow: Of the quantized model, see ``watch_quantized``.
        widths: From ``widths_of``.
        granularity: ``'block'``: reconstruction units, as ``find_units`` has them; products and
            streams inside a unit belong to it. ``'layer'``: each layer by itself.
        pairs: ``'tied'``: a block's activations have the width of its weights, or the nearest one
            above it that there is. ``'all'``: every pair of a weight and an activation width.

    Raises:
        ValueError: Nothing has several widths.
    """
    several = {name: own for name, own in widths.items() if own.several}
    if not several:
        raise ValueError(
            'The model has one width everywhere, so that there are no plans to choose from. '
            "Quantize it with several: method=dict(type='NestedBitSplit', widths=[3, 4, 6, 8]).")
    layers = [name for name in flow.order if name in several]
    layers += [name for name, own in several.items() if own.weight and name not in layers]
    units = _units(flow, layers, granularity)
    taken: dict[str, list[str]] = {unit.name: list(unit.layers) for unit in units}
    for name in several.keys() - set(layers):
        owner = next((unit.name for unit in units for module in unit.modules
                      if name == module or name.startswith(f'{module}.')), None)
        taken.setdefault(name if owner is None else owner, []).append(name)
    order = {name: number for number, name in enumerate((*layers, *several))}
    blocks = [WidthBlock(name, tuple(sorted(places, key=order.__getitem__)), _choices(
        [several[place] for place in places], pairs)) for name, places in taken.items()]
    return tuple(sorted(blocks, key=lambda block: order[block.places[0]]))


def fitting(asked: int, widths: Sequence[int]) -> int:
    """Returns the least of some widths that is at least as wide as asked for, or the widest."""
    return min((bits for bits in widths if bits >= asked), default=max(widths))


def place_widths(place: LayerWidths, asked: Widths) -> dict[str, int]:
    """Returns the width of each side of a place whose block has some widths."""
    found = {}
    for item in fields(place):
        own = getattr(place, item.name)
        if own:
            bits = asked.weight if item.name == 'weight' or asked.activation is None \
                else asked.activation
            found[item.name] = fitting(bits, own)
    return found


def plan_of_blocks(plan: BlockPlan, blocks: Iterable[WidthBlock],
                   widths: Mapping[str, LayerWidths]) -> PlanSpec:
    """Returns a plan by places, as ``set_plan`` takes it: every place that has several widths.

    Args:
        plan: Widths by block.
        blocks: All of them.
        widths: From ``widths_of``.
    """
    return plan_of_sides({name: place_widths(widths[name], plan[block.name])
                          for block in blocks for name in block.places})


def plan_of_sides(places: Mapping[str, Mapping[str, int | None]]) -> PlanSpec:
    """Returns a plan that gives places, by name, widths by side: ``{'conv1': {'weight': 4}}``."""
    return PlanSpec(
        tuple(PlanRow(name, **{f'{side}_bits': own[side] for side in _OF_LAYERS if side in own})
              for name, own in places.items() if not {'a', 'b', 'stream'} & own.keys()
              or 'weight' in own),
        streams=tuple(PlannedStream(name, own['stream']) for name, own in places.items()
                      if 'stream' in own),
        products=tuple(PlannedProduct(name, own.get('a'), own.get('b'))
                       for name, own in places.items() if {'a', 'b'} & own.keys()))


def common_choices(blocks: Sequence[WidthBlock]) -> list[Widths]:
    """Returns what uniform plans give: the choices of blocks whose weights have several widths.

    Where none has, those of all blocks.
    """
    weighed = [block for block in blocks if len({own.weight for own in block.choices}) > 1]
    return sorted({widths for block in weighed or blocks for widths in block.choices})


def _units(flow: DataFlow, layers: Sequence[str], granularity: Granularity) -> Sequence[Unit]:
    if granularity == 'layer' or not flow.module_calls:
        return [Unit(name, (name,), (name,)) for name in layers]
    return find_units(flow, layers)


def _choices(places: Sequence[LayerWidths], pairs: Pairs) -> tuple[Widths, ...]:
    weights = sorted({bits for place in places for bits in place.weight})
    inputs = sorted({bits for place in places for item in fields(place) if item.name != 'weight'
                     for bits in getattr(place, item.name)})
    if not inputs:
        return tuple(Widths(bits) for bits in weights)
    if not weights:  # products and streams alone
        return tuple(Widths(MAX_BITS, bits) for bits in inputs)
    if pairs == 'all':
        return tuple(Widths(weight, bits) for weight in weights for bits in inputs)
    return tuple(Widths(bits, fitting(bits, inputs)) for bits in weights)
