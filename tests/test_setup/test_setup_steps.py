"""The order of the steps, what they skip, and the guard around torch."""

import io
import re
import shutil
from pathlib import Path

import pytest
import setup_steps
import setup_versions as versions
from setup_progress import StatusLine
from setup_runner import SetupError, run_logged
from setup_steps import Options, SetupRun, normalize_requirement, torch_guard

PROJECT = Path(setup_steps.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def project(tmp_path):
    """A folder with the files that the keys of the steps are made from."""
    for name in ('setup.py', 'pyproject.toml', 'mmbitsplit/compat/torchvision_ops.py'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, tmp_path / name)
    return tmp_path


class FakeRun(SetupRun):
    """Installs by making folders, and notes what pip would have been asked for."""

    def __post_init__(self):
        super().__post_init__()
        self.commands = []
        self.torch_brought_by_project = None

    @property
    def site(self):
        return self.options.venv / 'lib' / 'python3.11' / 'site-packages'

    def _logged(self, command, log, env=None):
        self.commands.append((log, command))
        if log == 'venv':
            self.python.parent.mkdir(parents=True, exist_ok=True)
            self.python.touch()
            self.site.mkdir(parents=True, exist_ok=True)
        if log == 'torch':
            (self.site / 'torch-2.13.0+cpu.dist-info').mkdir(exist_ok=True)
        if 'download' in command:
            raise SetupError('no registry here')
        if log == 'mmbitsplit' and self.torch_brought_by_project:
            (self.site / 'torch-2.13.0+cpu.dist-info').rmdir()
            (self.site / f'torch-{self.torch_brought_by_project}.dist-info').mkdir()
        return 0.0

    def _sees_gpu(self):
        return False

    @property
    def logs(self):
        return [log for log, _ in self.commands]


def make_run(project, **chosen):
    options = Options(project=project, venv=project / '.venv', **chosen)
    return FakeRun(options, StatusLine(io.StringIO(), is_terminal=False))


def test_torch_comes_first_and_is_held_from_then_on(project):
    run = make_run(project)
    run.run()
    logs = run.logs
    assert logs.index('torch') < logs.index('onedl-mmcv') < logs.index('torchvision')
    assert logs.index('torchvision') < logs.index('mm-packages') < logs.index('mmbitsplit')
    assert 'torch==2.13.0+cpu' in run.constraints.read_text().splitlines()
    pip_commands = [command for _, command in run.commands if 'pip' in command]
    assert pip_commands
    for command in pip_commands:
        assert command[command.index('--constraint') + 1] == str(run.constraints)


def test_mmcv_is_built_against_the_installed_torch(project):
    run = make_run(project)
    run.run()
    (_, install, *_) = [command for log, command in run.commands if log == 'onedl-mmcv']
    assert '--no-build-isolation' in install and versions.MMCV in install


def test_a_second_run_does_nothing(project):
    make_run(project).run()
    second = make_run(project)
    assert second.unfinished() == []
    second.run()
    assert second.commands == []


def test_a_changed_setup_py_repeats_only_the_end(project):
    make_run(project).run()
    with open(project / 'setup.py', 'a') as file:
        file.write('# one more requirement\n')
    assert make_run(project).unfinished() == ['mmbitsplit', 'import check']


def test_another_torch_repeats_all_that_is_built_on_it(project):
    make_run(project).run()
    other = make_run(project, torch='torch==2.12.0')
    assert other.unfinished()[0] == 'torch'
    other.run()
    (_, install, *_) = [command for log, command in other.commands if log == 'onedl-mmcv']
    assert '--no-cache-dir' in install and '--force-reinstall' in install


def test_a_removed_environment_starts_from_the_beginning(project):
    make_run(project).run()
    shutil.rmtree(project / '.venv')
    assert make_run(project).unfinished()[0] == 'venv'


def test_an_interruption_keeps_the_finished_steps(project, monkeypatch):
    run = make_run(project)
    monkeypatch.setattr(run, 'install_torchvision', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert make_run(project).unfinished()[0] == 'torchvision'


def interrupt():
    raise KeyboardInterrupt


def test_a_step_that_replaces_torch_stops_the_set_up_and_is_not_recorded(project):
    run = make_run(project)
    run.torch_brought_by_project = '2.14.0'
    with pytest.raises(SetupError, match=r'(?s)"mmbitsplit" replaced torch 2\.13\.0\+cpu by 2\.14'):
        run.run()
    assert make_run(project).unfinished()[0] == 'mmbitsplit'


def test_a_kept_wheel_that_does_not_work_is_compiled_again(project, monkeypatch):
    run = make_run(project)
    answers = iter([SetupError('undefined symbol'), None])

    def trial(code, log):
        if log == 'onedl-mmcv' and (error := next(answers)):
            raise error
        return 0.0

    monkeypatch.setattr(run, 'trial', trial)
    run.run()
    installs = [command for log, command in run.commands if log == 'onedl-mmcv']
    assert '--no-cache-dir' not in installs[1]
    assert '--no-cache-dir' in installs[2]


def test_a_gpu_without_a_compiler_for_it_is_told(project, monkeypatch):
    monkeypatch.setattr(FakeRun, '_sees_gpu', lambda self: True)
    monkeypatch.setattr(setup_steps, 'has_cuda_compiler', lambda: False)
    with pytest.raises(SetupError, match='MMCV_DEVICE=cpu'):
        make_run(project).run()
    make_run(project, mmcv_device='cpu').run()


@pytest.mark.parametrize('expected, found, complains', [
    (None, None, False), ('', '2.13.0', False), ('2.13.0', '2.13.0', False),
    ('2.13.0+cpu', '2.13.0', True), ('2.13.0', None, True)])
def test_torch_guard(expected, found, complains):
    problem = torch_guard(expected, found, 'torchvision')
    assert (problem is not None) == complains
    if complains:
        assert expected in problem and 'torchvision' in problem and 'make clean-venv' in problem


@pytest.mark.parametrize('value, requirement', [
    ('', ''), ('2.12.0', 'torch==2.12.0'), (' 2.12.0 ', 'torch==2.12.0'),
    ('torch>=2.10,<2.12', 'torch>=2.10,<2.12')])
def test_versions_become_requirements(value, requirement):
    assert normalize_requirement('torch', value) == requirement


def test_torchvision_fits_the_usual_torch_and_is_left_to_pip_for_others():
    options = Options(project=Path('.'), venv=Path('.venv'))
    assert options.torchvision_requirement == 'torchvision==0.28.0'
    other = Options(project=Path('.'), venv=Path('.venv'), torch='torch==2.12.0')
    assert other.torchvision_requirement == 'torchvision'


def test_what_the_set_up_installs_lies_in_the_ranges_of_setup_py():
    requirements = pytest.importorskip('packaging.requirements')
    text = (PROJECT / 'setup.py').read_text(encoding='utf-8')
    pins = [versions.TORCH, versions.MMCV, *versions.MM_PACKAGES]
    for name, pinned in (pin.split('==') for pin in pins):
        (stated,) = re.findall(rf"'({name}[><=][^']*)'", text)
        assert requirements.Requirement(stated).specifier.contains(pinned)


def test_jobs_are_limited_by_memory(monkeypatch):
    monkeypatch.setattr(
        setup_steps.os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(setup_steps, 'available_memory_gib', lambda: 64.0)
    assert setup_steps.compile_jobs() == 8
    monkeypatch.setattr(setup_steps, 'available_memory_gib', lambda: 5.0)
    assert setup_steps.compile_jobs() == 2
    monkeypatch.setattr(setup_steps, 'available_memory_gib', lambda: 0.5)
    assert setup_steps.compile_jobs() == 1


def test_a_failing_command_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / 'logs' / 'step.log'
    status = StatusLine(io.StringIO(), is_terminal=False)
    script = 'for i in $(seq 100); do echo line $i; done; exit 3'
    with pytest.raises(SetupError) as caught:
        run_logged(['sh', '-c', script], 'a step', log, status)
    message = str(caught.value)
    assert 'exit code 3' in message and str(log) in message
    assert '| line 100\n' in message and '| line 61\n' in message and '| line 60\n' not in message
    assert log.read_text().count('\n') == 101  # the command itself, then everything it said


def test_a_command_that_succeeds_returns_its_seconds(tmp_path):
    status = StatusLine(io.StringIO(), is_terminal=False)
    assert 0.0 <= run_logged(['true'], 'a step', tmp_path / 'step.log', status) < 30.0
