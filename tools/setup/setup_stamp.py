"""Remembers which steps are done, so that a second run is quick and an interrupted one goes on.

Every step has a key: a hash of what it installs and of the key of the step before it. A step whose
key is on record is skipped; when an early input changes, everything after it is done again.
"""

import hashlib
import json
import os
import re
from pathlib import Path

STATE_FILE = 'mmbitsplit-setup.json'


def chain_keys(steps: list[tuple[str, list[str]]]) -> dict[str, str]:
    """Key of each step from its inputs and those of all steps before it.

    Args:
        steps: (name, inputs) in the order they are done.

    Returns:
        dict from step name to key, in the same order.
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
        self._data = self._read()

    def is_done(self, name: str, key: str) -> bool:
        """Whether the step was finished with just these inputs."""
        return self._data['steps'].get(name) == key

    def mark_done(self, name: str, key: str) -> None:
        """Record a finished step at once, so that an interruption loses nothing."""
        self._data['steps'][name] = key
        self._write()

    def get(self, fact: str) -> str | None:
        """A recorded fact, such as the torch version."""
        return self._data['facts'].get(fact)

    def put(self, fact: str, value: str) -> None:
        """Record a fact."""
        self._data['facts'][fact] = value
        self._write()

    def _read(self) -> dict:
        try:
            data = json.loads(self._path.read_text(encoding='utf-8'))
            return {'steps': dict(data['steps']), 'facts': dict(data['facts'])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {'steps': {}, 'facts': {}}  # a broken record only costs doing the steps again

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix('.part')
        partial.write_text(json.dumps(self._data, indent=2) + '\n', encoding='utf-8')
        os.replace(partial, self._path)


def installed_version(venv: Path, package: str) -> str | None:
    """Version of a package in the environment, read from a folder's name: Python is not started."""
    name = re.escape(package.replace('-', '_'))
    pattern = re.compile(rf'^{name}-(?P<version>[^-]+)\.dist-info$', re.IGNORECASE)
    for site in site_packages(venv):
        for entry in site.iterdir():
            found = pattern.match(entry.name)
            if found:
                return found['version']
    return None


def site_packages(venv: Path) -> list[Path]:
    """The environment's site-packages folders (`lib` and, on some systems, `lib64`)."""
    folders = sorted(venv.glob('lib*/python3*/site-packages'))
    return list({folder.resolve(): folder for folder in folders}.values())
