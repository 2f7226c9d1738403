"""Reads frozen option dataclasses from plain mappings; unknown keys fail and name the nearest."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Options = TypeVar('Options')


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a half sentence that names the known spelling nearest to ``name``.

    Args:
        name: What the user wrote.
        known: What is allowed.

    Returns:
        ``"did you mean 'x'? Allowed: ..."``, or only the allowed names when nothing is near.
    """
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ''
    return f'{hint}Allowed: {", ".join(known)}'


def from_mapping(cls: type[Options], mapping: Mapping[str, Any], where: str, *,
                 typed: bool = False) -> Options:
    """Builds the option dataclass ``cls`` from a mapping.

    Args:
        cls: A frozen dataclass whose fields all have defaults or are given.
        mapping: Keys and values as written in a config.
        where: Dotted place of the mapping in the config, for errors.
        typed: Hold values to the types of the fields, for a class that does not itself.

    Raises:
        ValueError: A key is unknown or a required one is missing, or a value is refused.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f'{where} must be a dict, got {mapping!r} of type '
                         f'{type(mapping).__name__}.')
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ValueError(f"Unknown key '{key}' in {where}: {nearest(key, fields)}.")
    missing = [name for name, field in fields.items()
               if name not in mapping and field.default is dataclasses.MISSING
               and field.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f'{where} lacks the key(s) {", ".join(missing)}.')
    try:
        if typed:
            check_types(cls, mapping)
        return cls(**mapping)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error


def check_types(cls: type[Any], mapping: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a value that is not of its field's type.

    Fields of types other than numbers, truth values, strings, ``None``, sequences of these and
    unions of them are left to the class.

    Args:
        cls: A dataclass.
        mapping: Values of some of its fields.
    """
    try:
        hints = get_type_hints(cls)
    except NameError:  # a class of the user's whose annotations cannot be looked up from here
        return
    for name, value in mapping.items():
        allowed = _alternatives(hints[name])
        if allowed and not any(_fits(value, kind) for kind in allowed):
            raise ValueError(f'{name}={value!r} is not supported; allowed is '
                             f'{" or ".join(_words(kind) for kind in allowed)}.')


def check_number(name: str, value: Any, low: float, high: float = math.inf, *,
                 whole: bool = False) -> None:
    """Raises ``ValueError`` unless ``value`` is a finite number from ``low`` to ``high``."""
    if _fits(value, int if whole else float) and low <= value <= high:
        return
    limits = f'from {low:g}' if high == math.inf else f'from {low:g} to {high:g}'
    raise ValueError(f'{name}={value!r} is not supported; allowed is '
                     f'{_words(int if whole else float)} {limits}.')


WORDS = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'a string',
         type(None): 'None'}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Types that a field may have; none where one of them is not known here."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    known = all(kind in WORDS or (_is_sequence(kind) and get_args(kind)[0] in WORDS)
                for kind in kinds)
    return kinds if known else ()


def _is_sequence(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Sequence) and bool(get_args(kind))


def _fits(value: Any, kind: Any) -> bool:
    if _is_sequence(kind):
        return isinstance(value, Sequence) and not isinstance(value, str) \
            and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if _is_sequence(kind):
        return f'a list, each item {_words(get_args(kind)[0])}'
    return WORDS[kind]


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ``ValueError`` naming the nearest choice unless ``value`` is one of ``allowed``."""
    if value not in tuple(allowed):
        raise ValueError(f'{name}={value!r} is not known; {nearest(str(value), allowed)}.')
