"""Option dataclasses: what a field may hold is said by its annotation, and checked from there.

``Annotated[int, Range(2, 8)]``, ``Literal['mse', 'minmax']``, ``Sequence[float]``, unions of
these: the annotation is the only place that says it. It is checked however the object is made, by
its constructor, ``dataclasses.replace``, a config or an override, and the page of config keys is
made of it.

Own code and neither pydantic nor attrs: this room needs torch alone, both would still need a layer
that turns their errors into ours (parameter, value, what is allowed, nearest name, place in the
config), and that layer is as long as the checks are here.
"""

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mmbitsplit.spelling import did_you_mean, nearest

Made = TypeVar('Made')
WORDS = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'a string',
         type(None): 'None'}


@dataclass(frozen=True)
class Range:
    """Limits of a number, written beside its type.

    Args:
        low: Least value.
        high: Largest; ``None`` for any finite number, ``math.inf`` where infinity is one too.
        above: Whether ``low`` itself is refused.
    """

    low: float
    high: float | None = None
    above: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number lies within the limits; NaN never does."""
        large = value > self.low if self.above else value >= self.low
        return bool(large and (_is_finite(value) if self.high is None else value <= self.high))

    def __str__(self) -> str:
        low = f'{"above" if self.above else "from"} {self.low:g}'
        return low if self.high is None else f'{low} to {self.high:g}'


class Options:
    """Base of option dataclasses: values that their fields do not allow are refused.

    A subclass checks what fields mean together in a ``__post_init__`` of its own, which calls this
    one first. Annotations of other types than ``check_value`` knows are left to the subclass.
    """

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name)
                  for field in dataclasses.fields(self)  # type: ignore[arg-type]
                  if field.init}
        check_values(type(self), values)
        for name, value in values.items():
            if isinstance(value, numbers.Real) and not isinstance(value, (int, float)):
                # NumPy's numbers do not go into JSON: a run would fail when its files are written.
                plain = int(value) if isinstance(value, numbers.Integral) else float(value)
                object.__setattr__(self, name, plain)


def from_mapping(cls: type[Made], mapping: Mapping[str, Any], where: str) -> Made:
    """Builds an option dataclass, and those in its fields, from a mapping.

    Args:
        cls: A frozen dataclass.
        mapping: Keys and values as written in a config; a dict where a field holds ``Options``.
        where: Dotted place of the mapping in the config, for errors.

    Raises:
        ValueError: A key is unknown or a required one is missing, or a value is refused.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f'{where} must be a dict, got {mapping!r} of type '
                         f'{type(mapping).__name__}.')
    fields = {field.name: field
              for field in dataclasses.fields(cls)  # type: ignore[arg-type]
              if field.init}
    for key in mapping:
        if key not in fields:
            raise ValueError(f"Unknown key '{key}' in {where}: {nearest(key, fields)}.")
    missing = [name for name, field in fields.items()
               if name not in mapping and field.default is dataclasses.MISSING
               and field.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f'{where} lacks the key(s) {", ".join(missing)}.')
    hints = field_hints(cls)  # type: ignore[arg-type]
    values = {name: _read(value, hints[name], f'{where}.{name}')
              for name, value in mapping.items()}
    try:
        check_values(cls, values)  # before the class's own checks, which may count on types
        return cls(**values)
    except ValueError as error:
        told = where in str(error)  # by a check of parts that have places of their own
        raise ValueError(str(error) if told else f'{where}: {error}') from error


def _read(value: Any, hint: Any, where: str) -> Any:
    """A value of a config, with dicts made into the ``Options`` that a field holds."""
    options = [kind for kind, _ in _alternatives(hint) if _is_options(kind)]
    if _is_options(hint) or (options and isinstance(value, Mapping)):
        return from_mapping(options[0], value, where)
    if _is_sequence(hint) and _is_options(get_args(hint)[0]):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'{where} must be a list of dicts, got {value!r}.')
        return tuple(from_mapping(get_args(hint)[0], item, f'{where}[{_label(index, item)}]')
                     for index, item in enumerate(value))
    return value


def _label(index: int, item: Any) -> str:
    """What an item of a list is called in errors: its name where it has one."""
    name = item.get('name') if isinstance(item, Mapping) else None
    return repr(name) if isinstance(name, str) else str(index)


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a value that its field's annotation does not allow.

    Args:
        cls: A dataclass.
        values: Of some of its fields. A field's own default is allowed whatever the annotation.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if value is not defaults[name]:
            check_value(name, value, field_hints(cls)[name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises ``ValueError`` unless an annotation allows a value.

    Args:
        name: Of the parameter, for the error.
        value: What it was given.
        hint: Known are truth values, finite numbers with or without ``Range``, strings, ``None``,
            ``Literal``, dicts, ``Options``, sequences of these and unions of all. Another type
            allows everything.
    """
    parts = _alternatives(hint)
    kinds = [kind for kind, _ in parts]
    if not all(map(_is_known, kinds)) or any(_fits(value, *part) for part in parts):
        return
    choices = [choice for kind in kinds if _is_literal(kind) for choice in get_args(kind)]
    if all(map(_is_literal, kinds)):
        raise ValueError(f'{name}={value!r} is not known; {nearest(str(value), choices)}.')
    near = did_you_mean(value, choices, alike=0.5) if isinstance(value, str) else ''
    raise ValueError(f'{name}={value!r} is not supported; {near}{" A" if near else "a"}llowed is '
                     f'{_words(hint)}.')


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ``ValueError`` naming the nearest choice unless ``value`` is one of ``allowed``."""
    if value not in tuple(allowed):
        raise ValueError(f'{name}={value!r} is not known; {nearest(str(value), allowed)}.')


@functools.lru_cache(maxsize=256)
def field_hints(cls: type) -> Mapping[str, Any]:
    """Returns the annotations of a dataclass's fields; ``Any`` where one cannot be looked up."""
    written = {name: (hint, base) for base in reversed(cls.__mro__)
               for name, hint in inspect.get_annotations(base).items()}
    return {field.name: _looked_up(*written.get(field.name, (Any, cls)))
            for field in dataclasses.fields(cls)}


def _looked_up(hint: Any, base: type) -> Any:
    """An annotation of a class, evaluated where it is a string."""
    # Each alone: one name of a user's class that exists for its type checker only
    # (TYPE_CHECKING) leaves the checks of the other fields as they are.
    alone = type(base.__name__, (), {'__module__': base.__module__,
                                     '__annotations__': {'hint': hint}})
    try:
        return get_type_hints(alone, localns=dict(vars(base)), include_extras=True)['hint']
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _alternatives(hint: Any, limits: tuple[Range, ...] = ()) -> list[tuple[Any, tuple[Range, ...]]]:
    """The parts of a union, each with the ranges that are annotated to it."""
    if get_origin(hint) in (Union, UnionType):
        return [part for kind in get_args(hint) for part in _alternatives(kind, limits)]
    if get_origin(hint) is Annotated:
        ranges = (note for note in hint.__metadata__ if isinstance(note, Range))
        return _alternatives(hint.__origin__, (*limits, *ranges))
    return [(hint, limits)]


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_options(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Options)


def _is_mapping(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_sequence(kind: Any) -> bool:
    """Whether all items are of one type: of ``tuple[int, str]`` nothing is known here."""
    origin, items = get_origin(kind), get_args(kind)
    if origin is tuple:
        return items[1:] == (...,)
    return isinstance(origin, type) and issubclass(origin, Sequence) and len(items) == 1


def _is_known(kind: Any) -> bool:
    if _is_sequence(kind):
        return all(_is_known(item) for item, _ in _alternatives(get_args(kind)[0]))
    return _is_literal(kind) or _is_options(kind) or _is_mapping(kind) \
        or (isinstance(kind, type) and kind in WORDS)


def _fits(value: Any, kind: Any, limits: tuple[Range, ...]) -> bool:
    if _is_literal(kind):
        return any(value == choice and isinstance(value, type(choice))
                   and isinstance(value, bool) == isinstance(choice, bool)
                   for choice in get_args(kind))
    if _is_sequence(kind):
        parts = _alternatives(get_args(kind)[0])
        return isinstance(value, Sequence) and not isinstance(value, str) \
            and all(any(_fits(item, *part) for part in parts) for item in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and (
            all(limit.holds(value) for limit in limits) if limits else _is_finite(value))
    return isinstance(value, Mapping if _is_mapping(kind) else kind)


def _is_finite(value: Any) -> bool:
    return bool(-math.inf < value < math.inf)  # integers may be too large for math.isfinite


def _words(hint: Any) -> str:
    """What a known annotation allows, in words of an error."""
    words: list[str] = []
    for kind, limits in _alternatives(hint):
        if _is_literal(kind):
            words += map(repr, get_args(kind))
        elif _is_sequence(kind):
            words.append(f'a list, each item {_words(get_args(kind)[0])}')
        elif _is_options(kind):
            words.append(f'{kind.__name__}(...)')
        elif _is_mapping(kind):
            words.append('a dict')
        else:
            words.append(' '.join([WORDS[kind], *map(str, limits)]))
    return ' or '.join(words)
