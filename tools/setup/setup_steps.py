"""The steps of the set-up, in order: what each installs and what makes it stale."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import setup_mmcv
import setup_versions as versions
from setup_runner import SetupError, StatusLine, minutes, run_logged
from setup_stamp import SetupState, chain_keys, file_key, installed_version, site_packages

HOOK_MODULE = 'mmbitsplit_torchvision_ops'
HOOK_SOURCE = Path('mmbitsplit/compat/torchvision_ops.py')

IMPORT_TRIAL = (
    'import cv2, torch, torchvision, mmengine, mmcv, mmdet.apis, mmpretrain.datasets, '
    'mmpretrain.models, mmbitsplit')


@dataclass(frozen=True)
class Options:
    """What the user chose, on the command line of make."""

    project: Path
    venv: Path
    torch: str = versions.TORCH
    torchvision: str = ''
    mmcv_device: str = 'auto'

    @property
    def torchvision_requirement(self) -> str:
        """The torchvision to ask for; without a version pip picks the one that fits torch."""
        return self.torchvision or versions.TORCHVISION.get(self.torch, 'torchvision')


@dataclass
class SetupRun:
    """One run of the set-up: the options and what all steps share."""

    options: Options
    status: StatusLine
    state: SetupState = field(init=False)
    _title: str = field(init=False, default='')

    def __post_init__(self):
        self.state = SetupState(self.options.venv)

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.options.venv / 'bin' / 'python'

    @property
    def constraints(self) -> Path:
        """pip's constraint file: what no later step may replace."""
        return self.options.venv / 'mmbitsplit-constraints.txt'

    def steps(self):
        """(name, inputs, function) of every step, in order.

        torch comes before all that is compiled against it or built for it.
        """
        options, project = self.options, self.options.project
        return [
            ('venv', [str(options.venv), sys.base_prefix, sys.version], self.make_venv),
            ('build tools', [*versions.BUILD_TOOLS, *versions.CONSTRAINTS],
             self.install_build_tools),
            ('torch', [options.torch], self.install_torch),
            ('onedl-mmcv', [versions.MMCV, options.mmcv_device], self.install_mmcv),
            ('torchvision', [options.torchvision_requirement], self.install_torchvision),
            ('torchvision hook', [file_key(project / HOOK_SOURCE)], self.install_hook),
            ('OpenMMLab packages', list(versions.MM_PACKAGES), self.install_mm_packages),
            ('mmbitsplit', [str(project), versions.PROJECT_EXTRAS,
                            file_key(project / 'setup.py', project / 'pyproject.toml')],
             self.install_project),
            ('import check', [IMPORT_TRIAL], self.check_imports),
        ]

    def keys(self) -> dict[str, str]:
        """The key of every step, see `setup_stamp`."""
        return chain_keys([(name, inputs) for name, inputs, _ in self.steps()])

    def unfinished(self) -> list[str]:
        """Names of the steps that have to be done, in order."""
        if not self.python.exists():
            return list(self.keys())
        keys = self.keys()
        names = list(keys)
        first = next((i for i, name in enumerate(names)
                      if not self.state.is_done(name, keys[name])), len(names))
        return names[first:]

    def run(self) -> None:
        """Do the unfinished steps, each recorded as soon as it is done."""
        todo, keys, steps = self.unfinished(), self.keys(), self.steps()
        for number, (name, _, function) in enumerate(steps, start=1):
            if name not in todo:
                continue
            self._title = f'[{number}/{len(steps)}] {name}'
            seconds = function()
            self.state.mark_done(name, keys[name])
            self.status.finish(f'{self._title}: done in {minutes(seconds)}')

    # -- the steps; each returns the seconds it took ------------------------------------------

    def make_venv(self) -> float:
        """Create the environment, or mend a half-made one."""
        return self._logged([sys.executable, '-m', 'venv', str(self.options.venv)], 'venv')

    def install_build_tools(self) -> float:
        """What onedl-mmcv is built with, and the constraints that hold from here on."""
        self._write_constraints()
        return self.pip(['--upgrade', *versions.BUILD_TOOLS], 'build-tools')

    def install_torch(self) -> float:
        """torch, then hold it at the very version that came."""
        self.state.torch = ''
        self._write_constraints()
        seconds = self.pip([self.options.torch], 'torch')
        self.state.torch = installed_version(self.options.venv, 'torch')
        self._write_constraints()
        return seconds

    def install_mmcv(self) -> float:
        """Compile onedl-mmcv against the installed torch, or take a wheel kept from before."""
        with_cuda = self.options.mmcv_device != 'cpu' and self._sees_gpu()
        return setup_mmcv.install(self, with_cuda=with_cuda)

    def install_torchvision(self) -> float:
        """torchvision, built for the installed torch."""
        return self.pip([self.options.torchvision_requirement], 'torchvision')

    def install_hook(self) -> float:
        """Let `import torchvision` work in this environment, whoever imports it."""
        install_import_hook(self.options.project / HOOK_SOURCE, site_packages(self.options.venv)[0])
        return 0.0

    def install_mm_packages(self) -> float:
        """mmengine, mmdet, mmpretrain, each built as it asks for itself."""
        return self.pip(list(versions.MM_PACKAGES), 'mm-packages')

    def install_project(self) -> float:
        """This project, editable."""
        target = f'{self.options.project}[{versions.PROJECT_EXTRAS}]'
        return self.pip(['--no-build-isolation', '-e', target], 'mmbitsplit')

    def check_imports(self) -> float:
        """Import everything once: whatever is wrong shall show here, not in the first run."""
        return self.trial(IMPORT_TRIAL, 'import-check')

    # -- what they share ----------------------------------------------------------------------

    def check_torch_unchanged(self) -> None:
        """Stop if something replaced the torch that onedl-mmcv was compiled against.

        The steps cannot, pip is held to the constraints; people can.
        """
        expected, found = self.state.torch, installed_version(self.options.venv, 'torch')
        if expected and found != expected:
            raise SetupError(
                f'something outside the set-up replaced torch {expected} by {found or "nothing"}, '
                f'but onedl-mmcv was compiled against {expected}.\nRemove the environment with '
                '`make clean-venv` and choose versions that fit together, for example: make setup '
                'TORCH=... TORCHVISION=...')

    def _write_constraints(self) -> None:
        torch = [f'torch=={self.state.torch}'] if self.state.torch else []
        lines = [*torch, *versions.CONSTRAINTS, *versions.MM_PACKAGES, versions.MMCV]
        self.constraints.write_text('\n'.join(lines) + '\n', encoding='utf-8')

    def _sees_gpu(self) -> bool:
        code = 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)'
        return subprocess.run([str(self.python), '-c', code], capture_output=True,
                              check=False).returncode == 0

    def pip(self, arguments: list[str], log: str, env: dict[str, str] | None = None,
            command: str = 'install') -> float:
        """Run pip in the environment under the constraints; the seconds it took."""
        full = [str(self.python), '-m', 'pip', command, '--no-input',
                '--disable-pip-version-check', '--constraint', str(self.constraints), *arguments]
        env = dict(os.environ if env is None else env)
        for name in ('PIP_USER', 'PIP_TARGET', 'PIP_PREFIX', 'PYTHONHOME'):
            env.pop(name, None)  # they would send packages past the environment
        return self._logged(full, log, env)

    def trial(self, code: str, log: str) -> float:
        """Run a piece of Python in the environment; the seconds it took."""
        return self._logged([str(self.python), '-c', code], log)

    def note(self, text: str) -> None:
        """Say something in the middle of a step."""
        self.status.finish(f'{self._title}: {text}')

    def _logged(self, command: list[str], log: str, env: dict[str, str] | None = None) -> float:
        return run_logged(command, self._title, self.options.venv / 'setup-logs' / f'{log}.log',
                          self.status, env=env)


def install_import_hook(source: Path, site_dir: Path) -> None:
    """Copy the repair for torchvision into `site_dir` with a .pth line that starts it.

    The module goes first: a .pth file that names a missing module complains at every start.
    """
    shutil.copyfile(source, site_dir / f'{HOOK_MODULE}.py')
    line = f'import {HOOK_MODULE}; {HOOK_MODULE}.install_import_hook()\n'
    (site_dir / f'{HOOK_MODULE}.pth').write_text(line, encoding='utf-8')


def normalize_requirement(package: str, value: str) -> str:
    """`2.13.0` or `torch==2.13.0` or `torch>=2.12` as a requirement of `package`."""
    value = value.strip()
    if not value:
        return ''
    return f'{package}=={value}' if value[0].isdigit() else value
