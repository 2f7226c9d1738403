"""Reads frozen option dataclasses from plain mappings; unknown keys fail and name the nearest."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

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


def from_mapping(cls: type[Options], mapping: Mapping[str, Any], where: str) -> Options:
    """Builds the option dataclass ``cls`` from a mapping.

    Args:
        cls: A frozen dataclass whose fields all have defaults or are given.
        mapping: Keys and values as written in a config.
        where: Dotted place of the mapping in the config, for errors.

    Raises:
        ValueError: A key is unknown or a required one is missing, or the class refuses a value.
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
        return cls(**mapping)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ``ValueError`` naming the nearest choice unless ``value`` is one of ``allowed``."""
    if value not in tuple(allowed):
        raise ValueError(f'{name}={value!r} is not known; {nearest(str(value), allowed)}.')
