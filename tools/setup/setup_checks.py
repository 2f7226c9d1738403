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


def find_problems(venv: Path, *, needs_compiler: bool = True,
                  needed_gib: float = versions.MIN_FREE_VENV) -> list[Problem]:
    """Everything that would stop the set-up later on."""
    problems = [check_venv_module(), check_existing_venv(venv)]
    if needs_compiler:
        problems += [check_python_headers(), check_compiler()]
    problems += check_shared_libraries()
    problems += [
        check_disk(venv, needed_gib, 'the virtual environment'),
        check_disk(Path(tempfile.gettempdir()), versions.MIN_FREE_TMP, 'temporary files',
                   hint='set TMPDIR to a folder on a larger disk'),
    ]
    return [problem for problem in problems if problem is not None]


def check_venv_module(find_spec=importlib.util.find_spec) -> Problem | None:
    """`venv` and `ensurepip`: Debian ships them apart from Python."""
    missing = [name for name in ('venv', 'ensurepip') if not _has_code(find_spec(name))]
    if not missing:
        return None
    return Problem(
        f'{interpreter()} has no module {" and no module ".join(missing)}, so it cannot make a '
        f'virtual environment.{_own_python_hint()}', _apt_for_python('venv'))


def check_existing_venv(venv: Path) -> Problem | None:
    """A virtual environment left by another Python cannot be taken over."""
    made_with = venv_python_version(venv)
    if made_with is None or made_with == sys.version_info[:2]:
        return None
    return Problem(
        f'{venv} was made with Python {_dotted(made_with)}, but {interpreter()} is Python '
        f'{_dotted(sys.version_info[:2])}. Remove it with `make clean-venv`, or name its Python: '
        f'make setup PYTHON=python{_dotted(made_with)}')


def venv_python_version(venv: Path) -> tuple[int, ...] | None:
    """(major, minor) from the environment's pyvenv.cfg; None when there is none."""
    try:
        lines = (venv / 'pyvenv.cfg').read_text(encoding='utf-8').splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        key, _, value = line.partition('=')
        if key.strip() in ('version', 'version_info'):
            return tuple(int(part) for part in value.strip().split('.')[:2])
    return None


def check_python_headers(include_dir: str | None = None) -> Problem | None:
    """Python.h: onedl-mmcv is compiled against it."""
    include_dir = include_dir or sysconfig.get_path('include')
    if os.path.isfile(os.path.join(include_dir, 'Python.h')):
        return None
    return Problem(
        f'the Python headers are missing: no Python.h in {include_dir}, and onedl-mmcv is compiled '
        f'against them.{_own_python_hint()}', _apt_for_python('dev'))


def check_compiler(environ=os.environ, which=shutil.which, run=subprocess.run) -> Problem | None:
    """A C++ compiler that is there and compiles C++17: onedl-mmcv comes as source."""
    command = shlex.split(environ.get('CXX') or 'c++')
    if which(command[0]) is None:
        named = f'CXX={environ["CXX"]}' if environ.get('CXX') else 'c++'
        return Problem(
            f'there is no C++ compiler ({named} is not on the PATH), and onedl-mmcv comes as '
            'source.',
            ('g++',))
    trial = run([*command, '-std=c++17', '-fsyntax-only', '-x', 'c++', '-'], input=TRIAL_SOURCE,
                capture_output=True, text=True, check=False)
    if trial.returncode == 0:
        return None
    return Problem(
        f'the C++ compiler `{" ".join(command)}` cannot compile a two-line C++17 program:\n'
        f'{_indent(trial.stderr.strip()[-600:])}\n'
        '  Install a whole one, or name another with CXX=.',
        ('g++',))


def check_shared_libraries(load=ctypes.CDLL) -> list[Problem]:
    """Shared libraries that opencv-python's wheel expects from the system."""
    problems = []
    for library, package in SHARED_LIBRARIES.items():
        try:
            load(library)
        except OSError:
            problems.append(Problem(
                f'the shared library {library} is missing; `import cv2` (opencv-python, used by '
                'onedl-mmcv) needs it.', (package,)))
    return problems


def check_disk(path: Path, needed: float, purpose: str, *, hint: str = 'free some space',
               disk_usage=shutil.disk_usage) -> Problem | None:
    """At least `needed` GiB free where `path` is or will be."""
    free = free_gib(path, disk_usage)
    if free >= needed:
        return None
    return Problem(
        f'{free:.1f} GiB free at {path}, but {purpose} need {needed:.1f} GiB or more: {hint}.')


def free_gib(path: Path, disk_usage=shutil.disk_usage) -> float:
    """Free space in GiB of the disk that holds `path`, or its nearest existing parent."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return disk_usage(path).free / 2**30


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
        lines.append('On Debian or Ubuntu, install what is missing with:')
        sudo = '' if os.geteuid() == 0 else 'sudo '
        lines.append(f'  {sudo}apt-get install {" ".join(packages)}')
    return '\n'.join(lines)


def apt_packages(problems: list[Problem]) -> list[str]:
    """Names of the Debian packages that solve the problems, each once, in order."""
    return list(dict.fromkeys(name for problem in problems for name in problem.apt_packages))


def interpreter() -> str:
    """The interpreter as the user would name it."""
    return sys.executable or 'this Python'


def is_system_python(base_prefix: str | None = None) -> bool:
    """Whether Python comes from the distribution, so that apt-get can complete it."""
    return (base_prefix or sys.base_prefix) == '/usr'


def _has_code(spec) -> bool:
    """Whether a module is there; an empty folder left behind also has a spec."""
    return spec is not None and spec.origin is not None


def _apt_for_python(part: str) -> tuple[str, ...]:
    return (f'python{_dotted(sys.version_info[:2])}-{part}',) if is_system_python() else ()


def _own_python_hint() -> str:
    if is_system_python():
        return ''
    return (f' It does not come from the distribution (it lives in {sys.base_prefix}), so install '
            'it again in full, or use another one: make setup PYTHON=/usr/bin/python3')


def _dotted(version) -> str:
    return '.'.join(str(part) for part in version)


def _indent(text: str) -> str:
    return '\n'.join(f'    {line}' for line in text.splitlines())
