"""The step that compiles onedl-mmcv, with a pip that only pretends."""

import io
import re
import tarfile
from pathlib import Path

import pytest
import setup_mmcv
import setup_versions as versions
from setup_mmcv import UNITS, build_env, deal, join_files, raise_cpp_standard, wheel_folder
from setup_runner import SetupError, StatusLine
from setup_steps import Options, SetupRun

FILES = {
    'pybind.cpp': '#include "helper.hpp"\n#include "utils.h"\nvoid pybind() {}\n' + '\n' * 500,
    'nms.cpp': 'void nms() {}\n' + '\n' * 100,
    'contour_expand.cpp': 'using namespace std;\n' + '\n' * 800,
    'utils.h': 'int utils();\n',
    'cpu/psamask.cpp': '#ifndef min\n#  define min(a, b) a\n#define max(a) a\n#endif\n',
    'cpu/bezier_align.cpp': 'struct PreCalc {};\n',
    'cpu/roi_align.cpp': 'struct PreCalc {};\n' + '\n' * 200,
    'cpu/roi_align_rotated.cpp': 'struct PreCalc {};\nint rotated;\n' + '\n' * 300,
    'cpu/rotated_feature_align.cpp': 'int feature;\n' + '\n' * 400,
    'cuda/nms_cuda.cu': 'not for the CPU\n',
}
SOURCES = sorted(name for name in FILES if name.endswith('.cpp'))
WHEEL = 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl'


def write_source(root):
    for name, text in FILES.items():
        path = root / setup_mmcv.SOURCES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def compiled(root):
    """Names of what the package's setup.py would compile."""
    folder = root / setup_mmcv.SOURCES
    return sorted(path.relative_to(folder).as_posix()
                  for pattern in ('*.cpp', 'cpu/*.cpp') for path in folder.glob(pattern))


def included(unit):
    """Names of the files that a unit includes, each of which must be there."""
    for target in re.findall('#include "(.*)"', unit.read_text()):
        path = (unit.parent / target).resolve()
        assert path.is_file(), path
        yield path.relative_to(unit.parent.parent.resolve() / 'originals').as_posix()


def test_the_units_hold_every_file_once_and_headers_are_found(tmp_path):
    join_files(write_source(tmp_path))
    folder = tmp_path / setup_mmcv.SOURCES
    assert compiled(tmp_path) == [f'mmbitsplit_unit_{number}.cpp' for number in range(UNITS)]
    units = [list(included(folder / name)) for name in compiled(tmp_path)]
    assert sorted(name for unit in units for name in unit) == SOURCES
    assert units[0][-1] == 'contour_expand.cpp'  # the largest file's unit; nobody comes after it
    assert (folder.parent / 'originals' / 'utils.h').exists()
    assert (folder / 'cuda' / 'nms_cuda.cu').exists()


def test_a_file_s_macros_are_taken_back_after_it(tmp_path):
    join_files(write_source(tmp_path))
    text = ''.join(path.read_text() for path in (tmp_path / setup_mmcv.SOURCES).glob('*.cpp'))
    assert '#include "../originals/cpu/psamask.cpp"\n#undef min\n#undef max\n' in text
    assert text.count('#undef') == 2


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(SetupError, match=r'has no .*cpp'):
        join_files(tmp_path)


@pytest.mark.parametrize('order', [1, -1])
def test_files_that_clash_are_in_different_units_whatever_their_size(order):
    clashing = sorted(set().union(*setup_mmcv.CLASHING))
    others = {f'{number}.cpp': 5 + number for number in range(30)}
    units = deal({name: 50 * place for place, name in enumerate(clashing[::order], 1)} | others)
    assert sorted(name for unit in units for name in unit) == sorted([*clashing, *others])
    for group in setup_mmcv.CLASHING:
        assert all(len(group & set(unit)) <= 1 for unit in units)


def test_units_are_of_about_equal_size():
    sizes = {f'{number}.cpp': 1000 + 100 * number for number in range(60)}
    totals = [sum(sizes[name] for name in unit) for unit in deal(sizes)]
    assert len(totals) == UNITS and max(totals) - min(totals) <= 7000
    assert deal({'a.cpp': 1}) == [['a.cpp']]


def test_clashes_were_looked_for_in_the_version_that_is_installed():
    """For another one: join its files, compile them, add what clashes."""
    assert versions.MMCV == 'onedl-mmcv==2.3.6'


class FakePip(SetupRun):
    """Answers pip's commands: a source package, wheels, and failures as ordered."""

    def __post_init__(self):
        super().__post_init__()
        self.commands, self.notes, self.built = [], [], []
        self.failures = {}  # command -> how often it fails

    def note(self, text):
        self.notes.append(text)

    def _logged(self, command, log, env=None):
        verb = command[3] if command[1:3] == ['-m', 'pip'] else 'trial'
        if verb == 'install' and '--force-reinstall' in command:
            verb = 'install wheel' if command[-1].endswith('.whl') else 'install fresh'
        self.commands.append(verb)
        if self.failures.get(verb, 0):
            self.failures[verb] -= 1
            raise SetupError(f'{verb} failed\nmore lines')
        if verb == 'download':
            target = Path(command[command.index('--dest') + 1])
            target.mkdir()
            source = write_source(target.parent / 'onedl_mmcv-2.3.6')
            with tarfile.open(target / 'onedl_mmcv-2.3.6.tar.gz', 'w:gz') as archive:
                archive.add(source, source.name)
        if verb == 'wheel':
            self.built.append(compiled(Path(command[-1])))
            target = Path(command[command.index('--wheel-dir') + 1])
            target.mkdir()
            (target / WHEEL).write_bytes(b'made of units')
        if verb == 'install wheel':
            assert Path(command[-1]).is_file()
        return 1.0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in setup_mmcv.ACCELERATOR_SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def run(tmp_path, cache):
    fake = FakePip(Options(project=tmp_path, venv=tmp_path / '.venv'), StatusLine(io.StringIO()))
    fake.state.torch = '2.13.0+cpu'
    return fake


def install(run):
    return setup_mmcv.install(run, with_cuda=False)


def test_units_are_built_and_the_wheel_is_kept_for_the_next_environment(run, cache):
    install(run)
    assert run.commands == ['download', 'wheel', 'install wheel', 'install', 'trial']
    assert run.built == [[f'mmbitsplit_unit_{number}.cpp' for number in range(UNITS)]]
    (wheel,) = cache.rglob('*.whl')
    assert wheel.read_bytes() == b'made of units'
    run.commands.clear()
    install(run)
    assert run.commands == ['install wheel', 'install', 'trial']


def test_a_kept_wheel_that_does_not_work_is_made_again(run, cache):
    install(run)
    run.commands.clear()
    run.failures['trial'] = 1
    install(run)
    assert run.commands.count('wheel') == 1 and len(list(cache.rglob('*.whl'))) == 1


@pytest.mark.parametrize(('torch', 'standard'), [
    ('2.8.0+cpu', 'c++17'), ('2.13.0', 'c++17'), ('2.14.1+cu130', 'c++20'), ('3.0.0', 'c++20')])
def test_headers_in_cpp20_have_all_compiled_so(tmp_path, torch, standard):
    (tmp_path / 'setup.py').write_text("cxx = ['-Wall', '-std=c++17']\n")
    raise_cpp_standard(tmp_path, torch)
    assert (tmp_path / 'setup.py').read_text() == f"cxx = ['-Wall', '-std={standard}']\n"


@pytest.mark.parametrize('verb', ['download', 'wheel', 'install wheel', 'trial'])
def test_whatever_fails_ends_in_the_plain_way_with_a_word(run, cache, verb):
    run.failures[verb] = 1
    install(run)
    assert f'{verb} failed; installing it the plain way' in run.notes[-1]
    assert run.commands[-3:] == ['install fresh', 'install', 'trial']
    assert not list(cache.rglob('*.whl'))


def test_what_fails_the_plain_way_too_is_an_error(run):
    run.failures['trial'] = 2
    with pytest.raises(SetupError, match='trial failed'):
        install(run)


def test_a_source_that_cannot_be_unpacked_ends_in_the_plain_way(run, monkeypatch):
    def fail(package):
        raise tarfile.ReadError('not a gzip file')

    monkeypatch.setattr(setup_mmcv, 'unpack', fail)
    install(run)
    assert 'not a gzip file' in run.notes[-1] and run.commands[-3] == 'install fresh'


def test_ctrl_c_is_not_taken_for_a_failure_and_leaves_no_folder(run, monkeypatch, tmp_path):
    def interrupt(root):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_mmcv.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(setup_mmcv, 'join_files', interrupt)
    with pytest.raises(KeyboardInterrupt):
        install(run)
    assert not list(tmp_path.glob('mmbitsplit-mmcv-*'))


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_wheel(run, cache):
    cache.write_text('a file, no folder')
    install(run)
    assert 'install wheel' in run.commands and not run.notes


@pytest.mark.parametrize('switch', [None, 'FORCE_CUDA', 'MMCV_WITH_DIOPI'])
def test_accelerators_are_built_the_plain_way_with_a_word(switch, run, monkeypatch):
    monkeypatch.setattr(setup_mmcv, 'has_cuda_compiler', lambda: True)
    if switch:
        monkeypatch.setenv(switch, '1')
    setup_mmcv.install(run, with_cuda=switch is None)
    assert run.commands == ['install fresh', 'install', 'trial']
    assert (switch or 'CUDA') in run.notes[0]


def test_a_switch_that_is_off_changes_nothing(run, monkeypatch):
    monkeypatch.setenv('FORCE_CUDA', '0')
    install(run)
    assert run.commands[0] == 'download'


def test_another_torch_compiler_or_flag_has_another_wheel(monkeypatch):
    usual = wheel_folder({}, '2.13.0+cpu')
    others = [wheel_folder({}, '2.13.0'), wheel_folder({'CXXFLAGS': '-O0'}, '2.13.0+cpu')]
    monkeypatch.setattr(setup_mmcv, 'compiler_version', lambda env: 'clang 99')
    others.append(wheel_folder({}, '2.13.0+cpu'))
    monkeypatch.undo()
    monkeypatch.setattr(versions, 'MMCV', 'onedl-mmcv==2.3.7')
    others.append(wheel_folder({}, '2.13.0+cpu'))
    assert len({usual, *others}) == 5
    monkeypatch.undo()
    assert wheel_folder({}, '2.13.0+cpu') == usual


def test_jobs_are_limited_by_memory_and_the_user_has_the_last_word(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_mmcv.os, 'sched_getaffinity', lambda pid: set(range(8)),
                        raising=False)
    meminfo = tmp_path / 'meminfo'
    for gib, jobs in ((64, 8), (5, 2), (0.5, 1)):
        meminfo.write_text(f'MemFree: 1 kB\nMemAvailable:   {int(gib * 2**20)} kB\n')
        assert setup_mmcv.compile_jobs(meminfo) == jobs
    assert setup_mmcv.compile_jobs(tmp_path / 'none') == 1
    monkeypatch.setenv('MAX_JOBS', '77')
    assert build_env(with_cuda=False, device='auto')['MAX_JOBS'] == '77'


def test_for_the_cpu_alone_the_gpu_is_hidden():
    assert build_env(with_cuda=False, device='cpu')['CUDA_VISIBLE_DEVICES'] == ''
