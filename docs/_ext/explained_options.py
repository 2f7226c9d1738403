"""What the docstring of an option dataclass says of each of its fields.

The docstrings are the only place where options are explained: ``config_keys.md`` and the tables of
``files.md`` are made of them. A field that its docstring leaves out is an error.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbitsplit.structures import Range

ENTRY = re.compile(r'    (?P<names>\w+(?:, \w+)*): (?P<text>\S.*)')
CONTINUATION = re.compile(r'     +(?P<text>\S.*)')
# References of one docstring to another class say nothing on a page.
SEE = re.compile(r'See ``(?P<name>\w+)``\.?')


@dataclass(frozen=True)
class Option:
    """A field as a page shows it.

    Args:
        name: Of the field.
        type: In words that a config's author uses, with limits and choices, in Markdown.
        default: Its ``repr``, ``'required'``, or empty where a table of its own shows it.
        meaning: What the docstring says, in Markdown.
    """

    name: str
    type: str
    default: str
    meaning: str


def explained_options(cls: type) -> list[Option]:
    """Returns the fields of a dataclass in order.

    Raises:
        ValueError: A field has no explanation, or an explanation has no field.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    texts = explanations(cls)
    missing = [name for name in fields if name not in texts]
    stale = [name for name in texts if name not in fields]
    if missing or stale:
        what = [f'{", ".join(missing)} not explained'] if missing else []
        what += [f'{", ".join(stale)} explained but not there'] if stale else []
        raise ValueError(f'{cls.__module__}.{cls.__qualname__}: {"; ".join(what)}. Each field '
                         "needs a line 'name: meaning' in the Args of the class docstring.")
    return [Option(name, type_words(field.type), default_words(field), texts[name])
            for name, field in fields.items()]


def explanations(cls: type) -> dict[str, str]:
    """Returns what the ``Args`` of a class docstring say, by name; references are followed."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in _args_lines(inspect.cleandoc(cls.__doc__ or '')):
        entry, more = ENTRY.fullmatch(line), CONTINUATION.fullmatch(line)
        if entry:
            names = entry['names'].split(', ')
            found.update({name: entry['text'] for name in names})
        elif more and names:
            found.update({name: f'{found[name]} {more["text"]}' for name in names})
        elif line.strip():
            raise ValueError(f'{cls.__module__}.{cls.__qualname__}: cannot read the line '
                             f"'{line}' of its Args; it must be 'name: meaning' or go on with one.")
    return {name: _follow(cls, name, text) for name, text in found.items()}


def _args_lines(docstring: str) -> list[str]:
    """The lines of the ``Args`` section."""
    lines = docstring.splitlines()
    if 'Args:' not in lines:
        return []
    body = lines[lines.index('Args:') + 1:]
    end = next((number for number, line in enumerate(body) if line and line[0] != ' '), len(body))
    return body[:end]


def _follow(cls: type, name: str, text: str) -> str:
    """Replaces ``See ``Other``.`` by what a class of that module or a base says."""
    reference = SEE.fullmatch(text)
    if not reference:
        return text
    known = {base.__name__: base for base in cls.__mro__[1:]}
    known = {**vars(inspect.getmodule(cls)), **known}
    other = known.get(reference['name'])
    texts = explanations(other) if inspect.isclass(other) else {}
    if name not in texts:
        raise ValueError(f"{cls.__module__}.{cls.__qualname__}: '{name}' refers to "
                         f'{reference["name"]}, which does not explain it.')
    return texts[name]


def type_words(kind: Any) -> str:
    """Returns what an annotation allows, as a config's author would say it, in Markdown."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(type_words(part) for part in typing.get_args(kind))
    if kind in (None, type(None)):
        return 'None'
    if origin is typing.Literal:
        return ', '.join(f'`{choice!r}`' for choice in typing.get_args(kind))
    if origin is typing.Annotated:
        limits = [note for note in kind.__metadata__ if isinstance(note, Range)]
        return ' '.join(map(str, [type_words(kind.__origin__), *limits]))
    if origin is not None and issubclass(origin, Mapping) or dataclasses.is_dataclass(kind):
        return 'dict'
    if origin is not None and issubclass(origin, Sequence):
        parts = [part for part in typing.get_args(kind) if part is not ...]
        words = ', '.join(dict.fromkeys(type_words(part) for part in parts))
        return f'list of {words}' if origin is not tuple or ... in typing.get_args(kind) \
            else f'({", ".join(type_words(part) for part in parts)})'
    return getattr(kind, '__name__', str(kind))


def default_words(field: dataclasses.Field) -> str:
    """Returns a default as a config would write it."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = field.default
    if value is dataclasses.MISSING:
        return 'required'
    if dataclasses.is_dataclass(value):
        return ''
    return repr(list(value) if isinstance(value, tuple) else value)
