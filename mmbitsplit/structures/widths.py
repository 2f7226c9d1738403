"""Widths that are chosen layer by layer: what each costs or loses, and within which limits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from mmbitsplit.spelling import nearest
from mmbitsplit.structures.options import Options, Range

MIN_BITS, MAX_BITS = 2, 8
Bits = Annotated[int, Range(MIN_BITS, MAX_BITS)]
# What a budget can limit, in the order of tables.
LIMITS = ('weight_bits', 'bytes', 'bitops', 'latency')
# Options of a budget that change nothing of what layers are measured to lose and cost.
SEARCHED = (*LIMITS, 'evaluations', 'max_drop')
BYTE_UNITS = {'B': 1, 'kB': 10 ** 3, 'MB': 10 ** 6, 'GB': 10 ** 9,
              'KiB': 2 ** 10, 'MiB': 2 ** 20, 'GiB': 2 ** 30}
_SIZE = re.compile(r'\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*')
_WIDTHS = re.compile(r'W([0-9]+)(?:A([0-9]+))?')


class Widths(NamedTuple):
    """Widths of one layer's codes.

    Args:
        weight: Of its weights.
        activation: Of its input; ``None`` where that is as the request says and not chosen.
    """

    weight: int
    activation: int | None = None

    def __str__(self) -> str:
        return f'W{self.weight}' + ('' if self.activation is None else f'A{self.activation}')

    @classmethod
    def read(cls, text: str) -> 'Widths':
        """Reads ``'W4A8'`` or ``'W4'``.

        Raises:
            ValueError: It is neither, or a width is not from 2 to 8.
        """
        found = _WIDTHS.fullmatch(text)
        widths = [int(part) for part in found.groups() if part] if found else []
        if not widths or not all(MIN_BITS <= bits <= MAX_BITS for bits in widths):
            raise ValueError(f'Widths {text!r} are not known; write them as W4 or W4A8, each from '
                             f'{MIN_BITS} to {MAX_BITS}.')
        return cls(*widths)


@dataclass(frozen=True)
class WidthTable:
    """What each layer costs or loses at each of its widths.

    Args:
        layers: By the layer's dotted name, a number for each of the widths that it may have.
    """

    layers: dict[str, dict[Widths, float]] = field(default_factory=dict)

    def sum(self, plan: Mapping[str, Widths]) -> float:
        """Returns the sum over all layers.

        Args:
            plan: Widths by layer. A layer of the table that it leaves out must have one choice.

        Raises:
            ValueError: It leaves out a layer that has several, or gives widths that a layer of
                the table has not; names both.
        """
        total = 0.0
        for name, row in self.layers.items():
            widths = plan.get(name, next(iter(row)) if len(row) == 1 else None)
            if widths is None or widths not in row:
                raise ValueError(f"Layer '{name}' has no number at {widths}; it has some at "
                                 f'{", ".join(map(str, row))}.')
            total += row[widths]
        return total

    def to_json(self) -> dict[str, dict[str, float]]:
        """Returns plain values: ``{'conv1': {'W4A8': 0.25}}``."""
        return {name: {str(widths): value for widths, value in row.items()}
                for name, row in self.layers.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, float]]) -> 'WidthTable':
        """Reads what ``to_json`` returned.

        Raises:
            ValueError: Widths cannot be read; names the layer.
        """
        layers = {}
        for name, row in value.items():
            try:
                layers[name] = {Widths.read(text): float(number) for text, number in row.items()}
            except ValueError as error:
                raise ValueError(f"Table of widths, layer '{name}': {error}") from error
        return cls(layers)


@dataclass(frozen=True)
class BudgetSpec(Options):
    """Widths chosen layer by layer: the least loss within one or several limits.

    Layers that an override or the rule of first and last layers gives a width keep it.

    Args:
        weight_bits: Most bits of a weight, the mean over the weights of the layers whose width is
            chosen: 4 takes as many bytes as 4 in all of these layers.
        bytes: Most bytes of all that the packed file stores of the model (codes, scales, biases,
            what stays in float), or such as ``'12MB'``, ``'800kB'``, ``'1.5MiB'``.
        bitops: Most bit operations (multiplications times the widths of both factors), in parts
            of those with 8 bits everywhere. A float input counts as 32 bits.
        latency: Most time by ``latency_table``, in parts of that with 8 bits everywhere.
        latency_table: CSV with columns ``layer``, ``weight_bits``, ``activation_bits``,
            ``microseconds``, such as ``benchmarks/layer_latency.py`` writes.
        widths: What a layer's weights may have.
        activation_widths: What a layer's input may have: some widths; ``'tied'`` for as many bits
            as the weights; ``None`` for what the request says. Inputs that stay float do so.
        shared_inputs: Whether layers that read one tensor get one width of it: query, key and
            value of an attention, a downsampling layer beside a block's first. Those that read a
            quantized residual stream do anyway.
        sensitivity: How the loss of a layer at a width is found: ``'measured'``: the model's
            loss, all else at 8 bits; ``'fisher'``: its output error weighted by squared gradients;
            ``'error'``: its output error.
        loss: Of the model against its float self. ``'auto'``: ``'kl'`` of class scores, or
            ``'raw'``, the change of raw outputs in parts of their spread; ``'cross_entropy'``
            needs labels; ``'block_kl'``: divergence over the channels of what all blocks give.
        method: Solves the layers whose loss is found; ``None`` for the request's own.
        evaluations: Most plans that are calibrated and measured before one is chosen; without
            ``max_drop`` two are enough.
        max_drop: Most that the metric may fall, in its points (0.5: from 76.1 % to 75.6 %): the
            smallest model within it is searched. Needs labels.
    """

    weight_bits: Annotated[float, Range(MIN_BITS, MAX_BITS)] | None = None
    bytes: Annotated[float, Range(0, above=True)] | str | None = None
    bitops: Annotated[float, Range(0, above=True)] | None = None
    latency: Annotated[float, Range(0, above=True)] | None = None
    latency_table: str | None = None
    widths: tuple[Bits, ...] = (2, 3, 4, 8)
    activation_widths: Literal['tied'] | tuple[Bits, ...] | None = None
    shared_inputs: bool = False
    sensitivity: Literal['measured', 'fisher', 'error'] = 'measured'
    loss: Literal['auto', 'kl', 'raw', 'cross_entropy', 'block_kl'] = 'auto'
    method: Mapping[str, Any] | None = None
    evaluations: Annotated[int, Range(1)] = 6
    max_drop: Annotated[float, Range(0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bytes, str):
            object.__setattr__(self, 'bytes', read_bytes(self.bytes))
        self._sort('widths')
        if isinstance(self.activation_widths, Sequence) and self.activation_widths != 'tied':
            self._sort('activation_widths')
        if not self.limits and self.max_drop is None:
            raise ValueError('The budget has no limit; give one or several of '
                             f'{", ".join(LIMITS)}, or max_drop.')
        if self.latency is not None and self.latency_table is None:
            raise ValueError(f'latency={self.latency:g} needs latency_table, a CSV with the time '
                             'of each layer at each width; benchmarks/layer_latency.py makes one.')
        if self.method is not None and not isinstance(self.method.get('type'), str):
            raise ValueError(f"method={self.method!r} is not a dict with a 'type', such as "
                             "dict(type='BitSplit').")

    def _sort(self, name: str) -> None:
        widths = tuple(sorted(getattr(self, name)))
        if not widths or len(set(widths)) < len(widths):
            raise ValueError(f'{name}={list(widths)} must hold one or several widths from '
                             f'{MIN_BITS} to {MAX_BITS}, each once.')
        object.__setattr__(self, name, widths)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given, by name, in their own units."""
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}

    def choices(self, input_is_chosen: bool = True) -> tuple[Widths, ...]:
        """Returns all widths that a layer may have, the narrowest first.

        Args:
            input_is_chosen: Whether its input's width may be chosen; not where that is float or
                fixed.
        """
        if self.activation_widths is None or not input_is_chosen:
            return tuple(Widths(bits) for bits in self.widths)
        if self.activation_widths == 'tied':
            return tuple(Widths(bits, bits) for bits in self.widths)
        return tuple(Widths(weight, int(activation)) for weight in self.widths
                     for activation in self.activation_widths)


def read_bytes(text: str) -> int:
    """Returns the bytes that a size such as ``'12MB'`` stands for, whatever its case.

    Raises:
        ValueError: It is no number above 0 with a unit; names the nearest.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"bytes={text!r} is no size; write it as '12MB' or '800kB'.")
    units = {name.lower(): size for name, size in BYTE_UNITS.items()}
    number, unit = found.groups()
    if unit.lower() not in units:
        raise ValueError(f'bytes={text!r}: the unit {unit!r} is not known; '
                         f'{nearest(unit, BYTE_UNITS)}.' if unit else
                         f'bytes={text!r} has no unit; allowed are {", ".join(BYTE_UNITS)}.')
    size = int(float(number) * units[unit.lower()])
    if size < 1:
        raise ValueError(f'bytes={text!r} is no size above 0.')
    return size


def read_limits(texts: Iterable[str]) -> dict[str, float]:
    """Reads limits as a command line has them: ``'4.5'``, ``'12MB'``, ``'bitops=0.2'``.

    Args:
        texts: A bare number, or one of bits, is ``weight_bits``, a size ``bytes``.

    Returns:
        Keys of ``BudgetSpec``.

    Raises:
        ValueError: A limit is not known, no number or given twice.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition('=')
        if not equals:
            bits = text.removesuffix('bits').removesuffix('bit').rstrip()  # '4.5 bits', too
            value, name = (bits, 'weight_bits') if _number(bits) is not None else (text, 'bytes')
        if name not in LIMITS:
            raise ValueError(f"budget '{text}': {name!r} is not known; {nearest(name, LIMITS)}.")
        if name in limits:
            raise ValueError(f"budget '{text}': {name} is given twice; leave one.")
        number = _number(value)
        if name == 'bytes' and number is None:
            number = read_bytes(value)
        if number is None:
            raise ValueError(f"budget '{text}': {value!r} is no number; write {name}=4.5, say.")
        limits[name] = number
    return limits


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
