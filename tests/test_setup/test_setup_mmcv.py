"""The step that compiles onedl-mmcv, with a pip that only pretends."""

import io
import tarfile
from pathlib import Path

import pytest
import setup_mmcv
import setup_versions as versions
from setup_mmcv import MmcvStep, SourceTree, failed_units, wheel_folder, why_file_by_file
from setup_progress import StatusLine
from setup_runner import SetupError
from setup_steps import Options, SetupRun

FILES = {
    'pybind.cpp': '#include "helper.hpp"\n#include "utils.h"\nvoid pybind() {}\n' + '\n' * 500,
    'nms.cpp': 'void nms() {}\n' + '\n' * 100,
    'utils.h': 'int utils();\n',
    'cpu/roi_align.cpp': 'struct PreCalc {};\n' + '\n' * 200,
    'cpu/roi_align_rotated.cpp': 'struct PreCalc {};\nint rotated;\n' + '\n' * 300,
    'cuda/nms_cuda.cu': 'not for the CPU\n',
}
WHEEL = 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl'


def write_source(root):
    for name, text in FILES.items():
        path = root / setup_mmcv.SOURCES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def compiled(root):
    """(including files, plain files) that the package's setup.py would compile."""
    folder = root / setup_mmcv.SOURCES
    names = {path.relative_to(folder).as_posix()
             for pattern in ('*.cpp', 'cpu/*.cpp') for path in folder.glob(pattern)}
    units = {name for name in names if 'mmbitsplit_unit' in name}
    return units, names - units


def included(path, seen=()):
    """Names of all .cpp files that a unit includes, each of which must be there."""
    for line in path.read_text().splitlines():
        if line.startswith('#include "'):
            target = (path.parent / line.split('"')[1]).resolve()
            assert target.is_file(), target
            yield target.relative_to(path.parent.parent.resolve() / 'originals').as_posix()


def test_the_units_hold_every_file_once_and_headers_are_found(tmp_path):
    SourceTree(write_source(tmp_path), 2)
    units, plain = compiled(tmp_path)
    folder = tmp_path / setup_mmcv.SOURCES
    found = [name for unit in units for name in included(folder / unit)]
    assert not plain and len(units) == 2
    assert sorted(found) == sorted(name for name in FILES if name.endswith('.cpp'))
    assert (folder.parent / 'originals' / 'utils.h').exists()
    assert (folder / 'cuda' / 'nms_cuda.cu').exists()


def test_a_split_unit_is_compiled_file_by_file_and_the_others_stay(tmp_path):
    tree = SourceTree(write_source(tmp_path), 2)
    files = {source.path.as_posix() for source in tree.units[0]}
    tree.split(0)
    units, plain = compiled(tmp_path)
    assert plain == files and units == {'mmbitsplit_unit_1.cpp'} and list(tree.units) == [1]


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(SetupError, match=r'has no .*cpp'):
        SourceTree(tmp_path)


class FakePip(SetupRun):
    """Answers pip's commands: a source package, wheels, and failures as ordered."""

    def __post_init__(self):
        super().__post_init__()
        self.commands, self.notes, self.built = [], [], []
        self.failures = {}  # command -> list of texts for the log; each fails once
        self.offers = 'sdist'

    def note(self, text):
        self.notes.append(text)

    def _logged(self, command, log, env=None):
        verb = command[3] if command[1:3] == ['-m', 'pip'] else 'trial'
        if verb == 'install' and '--force-reinstall' in command:
            verb = 'install wheel' if command[-1].endswith('.whl') else 'install fresh'
        self.commands.append(verb)
        path = self._log_path(log)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        text = self.failures.get(verb, []).pop(0) if self.failures.get(verb) else None
        if verb == 'download' and text is None:
            self.offer(Path(command[command.index('--dest') + 1]))
        if verb == 'wheel':
            self.built.append(compiled(Path(command[-1])))
            if text is None:
                target = Path(command[command.index('--wheel-dir') + 1])
                target.mkdir()
                (target / WHEEL).write_bytes(b'made of units')
        if verb == 'install wheel':
            assert Path(command[-1]).is_file()
        if text is not None:
            path.write_text(path.read_text() + text)
            raise SetupError(f'{verb} failed\nmore lines')
        return 1.0

    def offer(self, target):
        target.mkdir()
        if self.offers == 'wheel':
            (target / WHEEL).write_bytes(b'from a registry')
            return
        source = write_source(target.parent / 'onedl_mmcv-2.3.6')
        with tarfile.open(target / 'onedl_mmcv-2.3.6.tar.gz', 'w:gz') as archive:
            archive.add(source, source.name)


@pytest.fixture
def env(tmp_path):
    return {'XDG_CACHE_HOME': str(tmp_path / 'cache')}


@pytest.fixture
def run(tmp_path):
    fake = FakePip(Options(project=tmp_path, venv=tmp_path / '.venv'),
                   StatusLine(io.StringIO(), is_terminal=False))
    fake.state.put('torch', '2.13.0+cpu')
    return fake


def install(run, env):
    return MmcvStep(run).install(env, with_cuda=False)


def kept(env):
    return list(Path(env['XDG_CACHE_HOME']).rglob('*.whl'))


def test_units_are_built_and_the_wheel_is_kept_for_the_next_environment(run, env):
    install(run, env)
    assert run.commands == ['download', 'wheel', 'install wheel', 'install', 'trial']
    ((units, plain),) = run.built
    assert len(units) == 3 and not plain
    (wheel,) = kept(env)
    assert wheel.read_bytes() == b'made of units'
    run.commands.clear()
    install(run, env)
    assert run.commands == ['install wheel', 'install', 'trial']


def test_a_kept_wheel_that_does_not_work_is_made_again(run, env):
    install(run, env)
    run.commands.clear()
    run.failures['trial'] = ['undefined symbol\n']
    install(run, env)
    assert run.commands.count('wheel') == 1 and len(kept(env)) == 1


def test_files_of_a_unit_that_does_not_compile_are_built_one_by_one(run, env):
    run.failures['wheel'] = ['FAILED: [code=1] /tmp/x/mmbitsplit_unit_1.o \nerror: redefinition\n']
    install(run, env)
    _, (units, plain) = run.built
    assert len(units) == 2 and 'mmbitsplit_unit_1.cpp' not in units and plain
    assert 'install fresh' not in run.commands and len(kept(env)) == 1


def test_a_failure_told_before_does_not_count_again(run, env):
    line = 'FAILED: /tmp/x/mmbitsplit_unit_1.o \n'
    run.failures['wheel'] = [line, 'the disk is full\n']
    install(run, env)
    assert run.commands.count('wheel') == 2  # then the plain way
    assert 'wheel failed' in run.notes[-1] and 'plain way' in run.notes[-1]


@pytest.mark.parametrize('verb', ['download', 'wheel', 'install wheel', 'trial'])
def test_whatever_else_fails_ends_in_the_plain_way_with_a_word(run, env, verb):
    run.failures[verb] = ['something\n']
    install(run, env)
    assert f'{verb} failed; installing it the plain way' in run.notes[-1]
    assert run.commands[-2:] == ['install', 'trial'] and not kept(env)


def test_a_source_that_cannot_be_unpacked_ends_in_the_plain_way(run, env, monkeypatch):
    monkeypatch.setattr(setup_mmcv, 'unpack', lambda *_: (_ for _ in ()).throw(
        tarfile.ReadError('not a gzip file')))
    install(run, env)
    assert 'not a gzip file' in run.notes[-1]


def test_ctrl_c_is_not_taken_for_a_failure_and_leaves_no_folder(run, env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_mmcv.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(MmcvStep, '_build', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        install(run, env)
    assert not list(tmp_path.glob('mmbitsplit-mmcv-*'))


def test_a_finished_wheel_of_the_registry_is_taken_and_not_kept(run, env):
    run.offers = 'wheel'
    install(run, env)
    assert run.commands == ['download', 'install wheel', 'install', 'trial'] and not kept(env)


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_wheel(run, env, tmp_path):
    (tmp_path / 'cache').write_text('a file, no folder')
    install(run, env)
    assert 'install wheel' in run.commands and not run.notes


def test_accelerators_are_built_the_plain_way_with_a_word(run, env):
    MmcvStep(run).install(env, with_cuda=True)
    assert 'download' not in run.commands and 'CUDA' in run.notes[0]


@pytest.mark.parametrize('env, with_cuda, system, word', [
    ({}, False, 'linux', None), ({'FORCE_CUDA': '0'}, False, 'linux', None),
    ({}, True, 'linux', 'CUDA'), ({'FORCE_CUDA': '1'}, False, 'linux', 'FORCE_CUDA=1'),
    ({'MMCV_WITH_DIOPI': '1'}, False, 'linux', 'DIOPI'), ({}, False, 'darwin', 'macOS')])
def test_when_files_are_not_joined(env, with_cuda, system, word):
    reason = why_file_by_file(env, with_cuda=with_cuda, system=system)
    assert reason is None if word is None else word in reason


def test_another_torch_compiler_or_flag_has_another_wheel(env, monkeypatch):
    usual = wheel_folder(env, '2.13.0+cpu')
    others = [wheel_folder(env, '2.13.0'), wheel_folder({**env, 'CXXFLAGS': '-O0'}, '2.13.0+cpu')]
    monkeypatch.setattr(setup_mmcv, 'compiler_version', lambda env: 'clang 99')
    others.append(wheel_folder(env, '2.13.0+cpu'))
    monkeypatch.undo()
    monkeypatch.setattr(versions, 'MMCV', 'onedl-mmcv==2.3.7')
    others.append(wheel_folder(env, '2.13.0+cpu'))
    assert len({usual, *others}) == 5
    monkeypatch.undo()
    assert wheel_folder(env, '2.13.0+cpu') == usual


def test_failed_units_are_read_from_ninja_of_all_ages():
    assert failed_units('FAILED: /a/mmbitsplit_unit_2.o \nFAILED: [code=1] /a/mmbitsplit_unit_0.o '
                        '/a/x\n[1/3] c++ /a/mmbitsplit_unit_1.cpp\n') == [2, 0]
