"""The order of the steps, what they skip, and the guard around torch."""

import io
import re
import shutil
from pathlib import Path

import pytest
import setup_main
import setup_mmcv
import setup_steps
import setup_versions as versions
from setup_runner import SetupError, StatusLine
from setup_steps import Options, SetupRun, normalize_requirement

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
        return 0.0

    def _sees_gpu(self):
        return False

    @property
    def logs(self):
        return [log for log, _ in self.commands]


def make_run(project, **chosen):
    options = Options(project=project, venv=project / '.venv', **chosen)
    return FakeRun(options, StatusLine(io.StringIO()))


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


def test_torch_that_somebody_replaced_stops_the_set_up(project, monkeypatch):
    run = make_run(project)
    run.run()
    monkeypatch.setattr(setup_main, 'SetupRun', FakeRun)
    assert setup_main.set_up(run.options, run.status) == 0
    (run.site / 'torch-2.13.0+cpu.dist-info').rename(run.site / 'torch-2.14.0.dist-info')
    with pytest.raises(SetupError, match=r'(?s)replaced torch 2\.13\.0\+cpu by 2\.14.*clean-venv'):
        setup_main.set_up(run.options, run.status)
    other = make_run(project, torch='torch==2.14.0')
    assert other.unfinished()[0] == 'torch'  # asked for: then it is installed and all after it
    monkeypatch.setattr(setup_main.checks, 'find_problems', lambda venv, todo: [])
    assert setup_main.set_up(other.options, other.status) == 0


def test_a_gpu_without_a_compiler_for_it_is_told(project, monkeypatch):
    monkeypatch.setattr(FakeRun, '_sees_gpu', lambda self: True)
    monkeypatch.setattr(setup_mmcv, 'has_cuda_compiler', lambda: False)
    with pytest.raises(SetupError, match='MMCV_DEVICE=cpu'):
        make_run(project).run()
    make_run(project, mmcv_device='cpu').run()


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
