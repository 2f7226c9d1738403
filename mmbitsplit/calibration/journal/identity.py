"""Says by name what differs between what was asked for now and when a journal was begun."""

import functools
import hashlib
import inspect
import json
import math
import os
import re
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AGAIN = 'Run without --resume to start again, or use another work directory.'
_SHA256 = re.compile(r'(?:sha256[:-]?)?([0-9a-f]{64})')
_ADDRESS = re.compile(r' at 0x[0-9a-fA-F]+')
_MOST_DIFFERENCES = 5
_LONGEST_VALUE = 60


class OtherIdentity(ValueError):
    """What is kept is of something else than what is asked for."""


def check_identity(folder: Path, ours: dict[str, Any], stored: dict[str, Any],
                   advice: str = AGAIN) -> None:
    """Raises ``OtherIdentity`` naming what differs between two JSON values.

    Args:
        folder: The journal's, for the message.
        ours: What is asked for now.
        stored: What the journal was begun for.
        advice: What the user can do, for the message.
    """
    differences = list(_differences('', ours, stored))
    if not differences:
        return
    named = differences[:_MOST_DIFFERENCES]
    if len(differences) > len(named):
        named.append(f'and {len(differences) - len(named)} more')
    raise OtherIdentity(f'The calibration kept in {folder} is another one than this and cannot be '
                        f'resumed: {"; ".join(named)}. {advice}')


def describe(value: Any) -> Any:
    """Says in plain values what JSON does not know: the same in every process, unlike ``repr``.

    Functions, classes and objects are told by module and qualified name, those without a name of
    their own (lambdas, functions inside functions) by what they compute too.

    Args:
        value: Anything; what it holds may be described likewise, as ``json.dumps`` asks for it.
    """
    if isinstance(value, functools.partial):
        return {'partial': describe(value.func), 'args': list(value.args),
                'keywords': value.keywords}
    if isinstance(value, types.FunctionType):
        return _name(value) + ('' if '<' not in value.__qualname__ else f' {_body(value)}')
    if isinstance(value, types.MethodType):
        return {'method': value.__func__.__qualname__, 'of': describe(value.__self__)}
    if isinstance(value, types.BuiltinFunctionType):
        return _name(value)
    if isinstance(value, (set, frozenset)):  # their order is another in every process
        return sorted(json.dumps(item, default=describe, sort_keys=True) for item in value)
    if hasattr(value, 'tolist'):  # arrays, tensors and their elements
        return value.tolist()
    text = str(value)
    return _object(value) if _ADDRESS.search(text) else text


def _name(value: Any) -> str:
    return f'{value.__module__}.{value.__qualname__}'


def _object(value: Any) -> dict[str, Any]:
    """An object that only says where it lies: its class, and its attributes where they end."""
    try:
        attributes = json.loads(json.dumps(getattr(value, '__dict__', {}), default=describe))
    except (TypeError, ValueError, RecursionError):  # keys that are no words, or a circle
        attributes = {}
    return {'object': _name(type(value)), **attributes}


def _body(function: types.FunctionType) -> str:
    """Digest of what a function computes: code, defaults and what it encloses."""
    variables = inspect.getclosurevars(function).nonlocals
    enclosed = {name: _name(value) if isinstance(value, types.FunctionType) else value
                for name, value in variables.items()}  # a function may enclose itself
    text = json.dumps([_code(function.__code__), function.__defaults__, function.__kwdefaults__,
                       enclosed], default=describe)
    return hashlib.sha256(text.encode()).hexdigest()


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(item) if isinstance(item, types.CodeType) else [type(item).__name__, item]
                 for item in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _differences(path: str, ours: Any, stored: Any) -> Iterator[str]:
    """Names what differs between two JSON values, a line each."""
    if isinstance(ours, dict) and isinstance(stored, dict):
        for key in [*ours, *(key for key in stored if key not in ours)]:
            inner = f'{path}.{key}' if path else key
            if key not in stored:
                yield f'{inner} is {_shorten(ours[key])}, the journal has no such entry'
            elif key not in ours:
                yield f'{inner} is not given, the journal has {_shorten(stored[key])}'
            else:
                yield from _differences(inner, ours[key], stored[key])
    elif isinstance(ours, list) and isinstance(stored, list):
        yield from _list_differences(path, ours, stored)
    elif not _same(ours, stored):
        yield _value_difference(path, ours, stored)


def _list_differences(path: str, ours: list[Any], stored: list[Any]) -> Iterator[str]:
    nested = any(isinstance(item, (dict, list)) for item in ours + stored)
    if nested and len(ours) == len(stored):
        for index, (our_item, stored_item) in enumerate(zip(ours, stored)):
            yield from _differences(f'{path}[{index}]', our_item, stored_item)
        return
    pairs = list(zip(ours, stored))
    if len(ours) == len(stored) and all(_same(*pair) for pair in pairs):
        return
    # As text: dicts and lists cannot be counted, and True is not 1.
    here, there = (Counter(json.dumps(item) for item in items) for items in (ours, stored))
    added, removed = list((here - there).elements()), list((there - here).elements())
    if len(ours) != len(stored):
        yield (f'{path} has {len(ours)} items, the journal {len(stored)}'
               + (f', only here such as {_shorten(json.loads(added[0]))}' if added else '')
               + (f', only there such as {_shorten(json.loads(removed[0]))}' if removed else ''))
    elif added:
        our_text, stored_text = _shorten_pair(json.loads(added[0]), json.loads(removed[0]))
        yield (f'{len(added)} of {len(ours)} {path} differ, such as {our_text} (the journal has '
               f'{stored_text})')
    else:
        moved = next(index for index, pair in enumerate(pairs) if not _same(*pair))
        yield f'the {len(ours)} {path} are in another order, from number {moved} on'


def _same(ours: Any, stored: Any) -> bool:
    if isinstance(ours, float) and isinstance(stored, float) and math.isnan(ours):
        return math.isnan(stored)
    return ours == stored and isinstance(ours, bool) == isinstance(stored, bool)


def _value_difference(path: str, ours: Any, stored: Any) -> str:
    digests = [_SHA256.fullmatch(value) for value in (ours, stored) if isinstance(value, str)]
    if len(digests) == 2 and all(digests):
        return f'{path} differ (sha256 {digests[0][1][:8]}… / {digests[1][1][:8]}…)'
    our_text, stored_text = _shorten_pair(ours, stored)
    return f'{path} is {our_text}, the journal has {stored_text}'


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '…'


def _shorten_pair(ours: Any, stored: Any) -> tuple[str, str]:
    """Shortens two values such that the first place where they differ stays visible."""
    texts = repr(ours), repr(stored)
    if max(map(len, texts)) <= _LONGEST_VALUE:
        return texts
    start = max(0, len(os.path.commonprefix(texts)) - _LONGEST_VALUE // 3)
    end = start + _LONGEST_VALUE
    return tuple(('…' if start else '') + text[start:end] + ('…' if len(text) > end else '')
                 for text in texts)
