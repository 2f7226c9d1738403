"""What the machine must have before anything is downloaded.

Each check looks at one thing and returns a `Problem` or None, so that all of them can be told at
once, with one apt-get line to copy.
"""

import ctypes
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import setup_versions as versions

# What `import cv2` (opencv-python, which onedl-mmcv depends on) loads from outside its wheel.
SHARED_LIBRARIES = {'libGL.so.1': 'libgl1', 'libgthread-2.0.so.0': 'libglib2.0-0'}

TRIAL_SOURCE = '#include <vector>\nint main() { return std::vector<int>(1).at(0); }\n'


@dataclass(frozen=True)
class Problem:
    """One thing that is missing: a sentence for people, and the apt packages that bring it."""

    text: str
    apt_packages: tuple[str, ...] = ()


def find_problems(venv: Path, todo: list[str]) -> list[Problem]:
    """Everything that would stop the steps that are still to be done."""
    problems = [check_venv_module(), check_existing_venv(venv)]
    if 'onedl-mmcv' in todo:
        problems += [check_python_headers(), check_compiler()]
    problems += [check_shared_library(name) for name in SHARED_LIBRARIES]
    needed = versions.FREE_FOR_ALL if 'torch' in todo else versions.FREE_AFTER_TORCH
    problems += [check_disk(venv, needed, 'the virtual environment needs'),
                 check_disk(Path(tempfile.gettempdir()), versions.FREE_FOR_TMP,
                            'temporary files (TMPDIR names another folder) need')]
    return [problem for problem in problems if problem is not None]


def check_venv_module() -> Problem | None:
    """`venv` and `ensurepip`: Debian ships them apart from Python."""
    specs = {name: importlib.util.find_spec(name) for name in ('venv', 'ensurepip')}
    # A folder left behind without files has a spec too, but no origin.
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    if not missing:
        return None
    return Problem(
        f'{sys.executable} has no module {" and no module ".join(missing)}, so it cannot make a '
        f'virtual environment.{_own_python_hint()}', _apt_for_python('venv'))


def check_existing_venv(venv: Path) -> Problem | None:
    """A virtual environment left by another Python cannot be taken over."""
    config = venv / 'pyvenv.cfg'
    lines = config.read_text(encoding='utf-8').splitlines() if config.exists() else []
    settings = {key.strip(): value.strip() for key, _, value in
                (line.partition('=') for line in lines)}
    made_with = settings.get('version') or settings.get('version_info', '')
    ours = _dotted(sys.version_info[:2])
    if not made_with or made_with.split('.')[:2] == ours.split('.'):
        return None
    return Problem(
        f'{venv} was made with Python {made_with}, but {sys.executable} is Python {ours}. Remove '
        'it with `make clean-venv`, or name its Python: make setup '
        f'PYTHON=python{".".join(made_with.split(".")[:2])}')


def check_python_headers() -> Problem | None:
    """Python.h: onedl-mmcv is compiled against it."""
    folder = sysconfig.get_path('include')
    if os.path.isfile(os.path.join(folder, 'Python.h')):
        return None
    return Problem(
        f'the Python headers are missing: no Python.h in {folder}, and onedl-mmcv is compiled '
        f'against them.{_own_python_hint()}', _apt_for_python('dev'))


def check_compiler() -> Problem | None:
    """A C++ compiler that is there and compiles C++17: onedl-mmcv comes as source."""
    named = os.environ.get('CXX')
    command = shlex.split(named or 'c++')
    if shutil.which(command[0]) is None:
        return Problem(
            f'there is no C++ compiler ({f"CXX={named}" if named else "c++"} is not on the PATH), '
            'and onedl-mmcv comes as source.', ('g++',))
    trial = subprocess.run([*command, '-std=c++17', '-fsyntax-only', '-x', 'c++', '-'],
                           input=TRIAL_SOURCE, capture_output=True, text=True, check=False)
    if trial.returncode == 0:
        return None
    return Problem(
        f'the C++ compiler `{" ".join(command)}` cannot compile a two-line C++17 program:\n'
        f'{trial.stderr.strip()[-600:]}\n'
        '  Install a whole one, or name another with CXX=.', ('g++',))


def check_shared_library(name: str) -> Problem | None:
    """A shared library that opencv-python's wheel expects from the system."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return Problem(f'the shared library {name} is missing; `import cv2` (opencv-python, used '
                       'by onedl-mmcv) needs it.', (SHARED_LIBRARIES[name],))
    return None


def check_disk(path: Path, needed: float, who: str) -> Problem | None:
    """At least `needed` GiB free where `path` is or will be."""
    free = free_gib(path)
    if free >= needed:
        return None
    return Problem(f'{free:.1f} GiB free at {path}, but {who} {needed:.1f} GiB or more: free some '
                   'space.')


def free_gib(path: Path) -> float:
    """Free space in GiB of the disk that holds `path`, or its nearest existing parent."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**30


def notes(venv: Path) -> list[str]:
    """Things worth knowing that stop nothing."""
    found = []
    if sys.version_info[:2] not in versions.TRIED_PYTHONS:
        tried = ', '.join(_dotted(version) for version in versions.TRIED_PYTHONS)
        found.append(f'note: Python {_dotted(sys.version_info[:2])} was not tried, only {tried}.')
    free = free_gib(venv)
    if free < versions.FREE_FOR_CUDA_TORCH:
        found.append(
            f'note: {free:.1f} GiB free. A CPU torch fits; the CUDA libraries that come with the '
            f'default torch for Linux need about {versions.FREE_FOR_CUDA_TORCH:.0f} GiB in all.')
    return found


def describe(problems: list[Problem]) -> str:
    """The whole list as text, the packages of all of them in one line to copy."""
    lines = ['The set-up cannot start. Nothing was downloaded.']
    lines += [f'- {problem.text}' for problem in problems]
    packages = apt_packages(problems)
    if packages:
        sudo = '' if os.geteuid() == 0 else 'sudo '
        lines += ['On Debian or Ubuntu, install what is missing with:',
                  f'  {sudo}apt-get install {" ".join(packages)}']
    return '\n'.join(lines)


def apt_packages(problems: list[Problem]) -> list[str]:
    """Names of the Debian packages that solve the problems, each once, in order."""
    return list(dict.fromkeys(name for problem in problems for name in problem.apt_packages))


def _is_system_python() -> bool:
    """Whether Python comes from the distribution, so that apt-get can complete it."""
    return sys.base_prefix == '/usr'


def _apt_for_python(part: str) -> tuple[str, ...]:
    return (f'python{_dotted(sys.version_info[:2])}-{part}',) if _is_system_python() else ()


def _own_python_hint() -> str:
    if _is_system_python():
        return ''
    return (f' It does not come from the distribution (it lives in {sys.base_prefix}), so install '
            'it again in full, or use another one: make setup PYTHON=/usr/bin/python3')


def _dotted(version) -> str:
    return '.'.join(str(part) for part in version)
