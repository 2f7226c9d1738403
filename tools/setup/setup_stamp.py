"""Remembers which steps are done, so that a second run is quick and an interrupted one goes on.

Every step has a key: a hash of what it installs and of the key of the step before it. A step whose
key is on record is skipped; when an early input changes, everything after it is done again.
"""

import hashlib
import json
import os
from pathlib import Path

STATE_FILE = 'mmbitsplit-setup.json'


def chain_keys(steps: list[tuple[str, list[str]]]) -> dict[str, str]:
    """Key of each step by name, from its inputs and those of all steps before it.

    Args:
        steps: (name, inputs) in the order they are done.
    """
    keys: dict[str, str] = {}
    previous = ''
    for name, inputs in steps:
        previous = hashlib.sha256(json.dumps([previous, name, inputs]).encode()).hexdigest()[:16]
        keys[name] = previous
    return keys


def file_key(*paths: Path) -> str:
    """Hash of the content of some files."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f'{path.name}:{len(content)}:'.encode() + content)
    return digest.hexdigest()[:16]


class SetupState:
    """The record inside the virtual environment; removed with it."""

    def __init__(self, venv: Path):
        self._path = venv / STATE_FILE
        try:
            data = json.loads(self._path.read_text(encoding='utf-8'))
            self._data = {'steps': dict(data['steps']), 'facts': dict(data['facts'])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # A broken record only costs doing the steps again.
            self._data = {'steps': {}, 'facts': {}}

    def is_done(self, name: str, key: str) -> bool:
        """Whether the step was finished with just these inputs."""
        return self._data['steps'].get(name) == key

    def mark_done(self, name: str, key: str) -> None:
        """Record a finished step at once, so that an interruption loses nothing."""
        self._data['steps'][name] = key
        self._write()

    @property
    def torch(self) -> str:
        """The version of torch that was installed; empty before that."""
        return self._data['facts'].get('torch', '')

    @torch.setter
    def torch(self, version: str) -> None:
        self._data['facts']['torch'] = version
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix('.part')
        partial.write_text(json.dumps(self._data, indent=2) + '\n', encoding='utf-8')
        os.replace(partial, self._path)


def installed_version(venv: Path, package: str) -> str:
    """Version of a package by its folder's name: Python is not started. Empty without one."""
    name = package.replace('-', '_')
    found = [path for site in site_packages(venv) for path in site.glob(f'{name}-*.dist-info')]
    return found[0].name.removesuffix('.dist-info').split('-')[1] if found else ''


def site_packages(venv: Path) -> list[Path]:
    """The environment's site-packages folder, in a list that is empty before there is one."""
    return list(venv.glob('lib/python3*/site-packages'))
