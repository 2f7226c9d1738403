"""Says in the user's words what is wrong with a ``type`` or an argument of a config."""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

from mmbitsplit.spelling import did_you_mean

UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (\S+)::(.+?) registry')
UNKNOWN_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
MISSING_ARGUMENT = re.compile(r'(\w+)\.__init__\(\) missing \d+ required .*arguments?: (.+)')


UNKNOWN_RUNNER = re.compile(r'(\S+) is not in the runner registry')
NO_DICT = re.compile(r'cfg should be a dict, ConfigDict or Config, but got (.+)')
# Functions of mmengine that a setting is handed to whole.
UNKNOWN_KEY = re.compile(r"(set_randomness|set_multi_processing)\(\) got an unexpected keyword "
                         r"argument '(\w+)'")
SETTINGS = {'set_randomness': 'randomness', 'set_multi_processing': 'env_cfg.mp_cfg'}


class ConfigError(ValueError):
    """A ``type`` or an argument that a config names is not there."""


@contextmanager
def naming_config_errors() -> Iterator[None]:
    """Turns errors of building what a config names into ones that say what to write instead.

    Raises:
        ConfigError: A ``type`` is not known, or takes no such argument, or lacks one.
    """
    try:
        yield
    except (KeyError, TypeError) as error:
        message = _explained(str(error.args[0]) if error.args else '')
        if message is None:
            raise
        raise ConfigError(message) from error


def _explained(text: str) -> str | None:
    """Returns what to tell the user, ``None`` for an error that is none of theirs."""
    if found := UNKNOWN_TYPE.match(text):
        return _unknown_type(*found.groups())
    if found := UNKNOWN_ARGUMENT.search(text):
        name, argument = found.groups()
        return (f"The config gives {name} the argument '{argument}', which it does not take"
                f'{_hint(argument, _arguments(name))}; mend the dict of type {name}.')
    if found := UNKNOWN_RUNNER.match(text):
        return (f"runner_type='{found[1]}' is not known; leave it out for mmengine's Runner, or "
                'import a Runner of your own by custom_imports.')
    if found := UNKNOWN_KEY.search(text):
        return (f"{SETTINGS[found[1]]} of the config has the key '{found[2]}', which mmengine does "
                'not take; take it out.')
    if found := NO_DICT.search(text):
        return (f"Where a dict(type='...') belongs the config has {found[1]}; look for a part of "
                'the model, a data set or a hook that is a bare value.')
    if found := MISSING_ARGUMENT.search(text):
        return (f'The config does not give {found[1]} what it needs: {found[2]}; add it to the '
                f'dict of type {found[1]}.')
    return None


def _unknown_type(name: str, scope: str, registry: str) -> str:
    known = _registered(registry)
    scopes = sorted({where for where, mapping in known.items() if name in mapping})
    own = known.get(scope, {})
    bare = name.rsplit('.', 1)[-1]
    hint = _hint(bare, own) or _hint(bare, [key for part in known.values() for key in part])
    if scopes:
        return (f"type='{name}' is known in {' and '.join(scopes)}, not in {scope}: write "
                f"'{scopes[0]}.{name}', or set default_scope='{scopes[0]}' in the config.")
    return (f"type='{name}' is not known among the {registry}s of {scope}{hint}; a class of your "
            'own has to be imported by custom_imports of the config.')


def _hint(name: str, known: Any) -> str:
    near = did_you_mean(name, known)
    return f' ({near})' if near else ''


def _registered(name: str) -> dict[str, Mapping[str, Any]]:
    """Returns what each scope has registered under a registry's name."""
    found: dict[str, Mapping[str, Any]] = {}
    for root in _roots():
        if root.name == name:
            for registry in _family(root):
                found[registry.scope] = registry.module_dict
    return found


def _arguments(name: str) -> list[str]:
    """Returns the arguments of the registered classes of a name, inherited ones too."""
    classes = [registered for root in _roots() for registry in _family(root)
               for registered in registry.module_dict.values()
               if inspect.isclass(registered) and registered.__name__ == name]
    return [argument for registered in classes for base in registered.__mro__
            if '__init__' in vars(base)
            for argument in inspect.signature(base.__init__).parameters if argument != 'self']


def _roots() -> list[Registry]:
    return [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]


def _family(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _family(child)
