"""Rooms import only lower rooms, the inner ones only torch; only the command line prints."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmbitsplit'
ROOMS = {'structures': 0, 'functional': 1, 'models': 2, 'methods': 2, 'passes': 3, 'solving': 4,
         'planning': 5, 'calibration': 6, 'export': 7, 'report': 7, 'engine': 8, 'apis': 9,
         'cli': 10, '__main__': 11}
TORCH_ALONE = ('structures', 'functional', 'models', 'methods', 'passes', 'solving', 'planning',
               'calibration')
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
# In the repository, not in the wheel: they may import the package, never the other way round.
REPOSITORY = ('bench', 'benchmarks', 'demo', 'tests', 'tools')
# Below all rooms, of the standard library alone, for everybody.
FOR_ALL = ('files', 'spelling', 'version', '__version__')
# Outside the rooms: who may import them.
ALONE = {'compat': ('engine', 'apis'), 'registry': ('engine', 'apis')}


def imported_names(source: str, package: str) -> Iterator[str]:
    """Full dotted names that a module imports anywhere, also inside functions and by string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parents = package.split('.')[:len(package.split('.')) - node.level + 1]
                base = '.'.join([*parents, base] if base else parents)
            yield from (f'{base}.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.Call) and node.args \
                and getattr(node.func, 'attr', getattr(node.func, 'id', '')) \
                in ('import_module', '__import__', 'find_spec') \
                and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


def forbidden(room: str, name: str) -> bool:
    """Whether a module of a room (or of something that stands alone) must not import a name."""
    top, *rest = name.split('.')
    if top in OPENMMLAB:
        return room in (*TORCH_ALONE, *FOR_ALL, 'compat') \
            or (room == 'registry' and top != 'mmengine')
    if top in REPOSITORY:
        return True
    if top != 'mmbitsplit' or not rest or rest[0] in (*FOR_ALL, room):
        return False
    if rest[0] in ALONE:
        return room not in ALONE[rest[0]]
    if room not in ROOMS:  # files, spelling, registry, compat know no room
        return True
    return ROOMS.get(rest[0], -1) >= ROOMS[room] or rest[0] not in ROOMS


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob('*.py'))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def package_of(path: Path) -> str:
    return '.'.join(path.relative_to(ROOT).parts[:-1])


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Which file imports which, by dotted names; imports for type checking alone count.

    The face of a folder (its ``__init__``) is a file of its own, named like the folder.
    """
    names = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
             for path in sources()}
    graph = {}
    for name, path in names.items():
        found = imported_names(path.read_text(), package_of(path))
        graph[name] = {target for full in found
                       for target in (full, full.rpartition('.')[0]) if target in names} - {name}
        graph[name] -= {full.rpartition('.')[0] for full in graph[name]}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files or folders that import each other in a loop, the first one again at the end."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def by_folder(graph: dict[str, set[str]], inside: str) -> dict[str, set[str]]:
    """The graph of what stands directly in a folder: files, and folders as one."""
    def part(name: str) -> str | None:
        if not name.startswith(inside + '.'):
            return None
        return name.removeprefix(inside + '.').split('.')[0]

    parts: dict[str, set[str]] = {part(name): set() for name in graph if part(name)}
    for name, targets in graph.items():
        if part(name):
            parts[part(name)] |= {part(target) for target in targets
                                  if part(target)} - {part(name)}
    return parts


def folders() -> list[str]:
    return sorted({package_of(path) for path in sources()})


def test_no_files_import_each_other_in_a_circle():
    assert circle(import_graph()) == []


@pytest.mark.parametrize('folder', folders())
def test_no_folders_import_each_other_in_a_circle(folder):
    assert circle(by_folder(import_graph(), folder)) == []


def test_a_circle_for_type_checking_alone_is_one():
    graph = {'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a'}, 'e': set()}
    assert set(circle(graph)) == {'b', 'c'}
    source = 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mmbitsplit.x import y'
    assert list(imported_names(source, 'mmbitsplit.a')) == ['typing.TYPE_CHECKING',
                                                            'mmbitsplit.x.y']


@pytest.mark.parametrize('path', sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_its_room_may(path):
    names = imported_names(path.read_text(), package_of(path))
    wrong = [name for name in names if forbidden(room_of(path), name)]
    assert not wrong, f'{path.relative_to(ROOT)} must not import {", ".join(wrong)}'


def test_every_folder_is_a_room_or_stands_alone():
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob('*.py'))}
    assert folders <= {*ROOMS, *ALONE}


@pytest.mark.parametrize('path', sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_library_code_never_prints(path):
    if room_of(path) == 'cli':
        return
    calls = [node.lineno for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print']
    assert not calls, f'{path.relative_to(ROOT)} prints in line {calls}'


@pytest.mark.parametrize(('room', 'source', 'caught'), [
    ('functional', 'from mmbitsplit.structures import QParams', []),
    ('functional', 'from mmbitsplit.functional.quantizers.affine import quantize', []),
    ('functional', 'from mmbitsplit import models', ['mmbitsplit.models']),
    ('functional', 'import mmbitsplit.models.watch', ['mmbitsplit.models.watch']),
    ('functional', 'from ..models import watch', ['mmbitsplit.models.watch']),
    ('methods', 'from mmbitsplit.models import x', ['mmbitsplit.models.x']),
    ('methods', 'from mmbitsplit.solving import x', ['mmbitsplit.solving.x']),
    ('functional', 'from . import affine', []),
    ('models', 'def late():\n    from mmengine import Config', ['mmengine.Config']),
    ('calibration', 'import importlib\nimportlib.import_module("mmdet.apis")', ['mmdet.apis']),
    ('calibration', 'from mmbitsplit.compat import x', ['mmbitsplit.compat.x']),
    ('report', 'from mmbitsplit.export import x', ['mmbitsplit.export.x']),
    ('report', 'import mmengine, mmbitsplit.structures', []),
    ('engine', 'from mmbitsplit.apis import x', ['mmbitsplit.apis.x']),
    ('engine', 'from mmbitsplit.compat import x\nfrom mmbitsplit.registry import HOOKS', []),
    ('apis', 'from mmbitsplit.engine import x\nimport mmdet', []),
    ('apis', 'from mmbitsplit.cli import x', ['mmbitsplit.cli.x']),
    ('cli', 'from mmbitsplit.apis import x\nimport mmengine', []),
    ('__main__', 'from mmbitsplit.cli import x', []),
    ('registry', 'from mmengine.registry import Registry', []),
    ('registry', 'import mmdet', ['mmdet']),
    ('structures', 'from mmbitsplit.spelling import nearest', []),
    ('files', 'from mmbitsplit.structures import x', ['mmbitsplit.structures.x']),
    ('compat', 'from mmbitsplit.structures import x', ['mmbitsplit.structures.x']),
    ('cli', 'from bench.commands import paper_tables', ['bench.commands.paper_tables']),
    ('report', 'def late():\n    import demo.pictures', ['demo.pictures']),
    ('__init__', 'from mmbitsplit.version import __version__', []),
    ('__init__', 'from mmbitsplit import apis', ['mmbitsplit.apis']),
])
def test_the_rule_itself_catches_what_it_should(room, source, caught):
    names = imported_names(source, f'mmbitsplit.{room}')
    assert [name for name in names if forbidden(room, name)] == caught


def test_importing_the_inner_rooms_loads_torch_alone():
    """Numba and greenlet are loaded when first needed, OpenMMLab never."""
    unwanted = ('numba', 'greenlet', 'cv2', *OPENMMLAB)
    code = ('import sys, mmbitsplit, mmbitsplit.calibration; '
            f'print([name for name in {unwanted!r} if name in sys.modules])')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                            text=True, check=True)
    assert result.stdout.strip() == '[]'


def test_the_command_line_alone_knows_the_bench():
    """Its commands are looked up late, by name; see ``cli.main.OF_THE_REPOSITORY``."""
    assert [path.relative_to(PACKAGE).as_posix() for path in sources()
            if 'bench.commands' in path.read_text()] == ['cli/main.py']
