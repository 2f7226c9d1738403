"""The steps of the set-up, in order: what each installs and what makes it stale."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import setup_versions as versions
from setup_mmcv import MmcvStep
from setup_progress import StatusLine, minutes
from setup_runner import SetupError, run_logged
from setup_stamp import SetupState, chain_keys, file_key, installed_version, site_packages

HOOK_MODULE = 'mmbitsplit_torchvision_ops'
HOOK_SOURCE = Path('mmbitsplit/compat/torchvision_ops.py')

STEPS_BEFORE_TORCH = ('venv', 'build tools')

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
            if name not in STEPS_BEFORE_TORCH:
                self.check_torch_unchanged(f'the step "{name}"')
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
        self.state.put('torch', '')
        self._write_constraints()
        seconds = self.pip([self.options.torch], 'torch')
        self.state.put('torch', installed_version(self.options.venv, 'torch') or '')
        self._write_constraints()
        return seconds

    def install_mmcv(self) -> float:
        """Compile onedl-mmcv against the installed torch, or take a wheel kept from before."""
        with_cuda = self.options.mmcv_device != 'cpu' and self._sees_gpu()
        seconds = MmcvStep(self).install(self._mmcv_env(with_cuda), with_cuda=with_cuda)
        self.state.put('onedl-mmcv torch', self.state.get('torch'))
        return seconds

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

    def check_torch_unchanged(self, culprit: str) -> None:
        """Stop if something replaced the torch that onedl-mmcv was compiled against."""
        expected = self.state.get('torch')
        found = installed_version(self.options.venv, 'torch')
        problem = torch_guard(expected, found, culprit)
        if problem:
            raise SetupError(problem)

    def _write_constraints(self) -> None:
        torch = self.state.get('torch')
        lines = [*versions.CONSTRAINTS, *versions.MM_PACKAGES, versions.MMCV]
        if torch:
            lines.insert(0, f'torch=={torch}')
        self.constraints.write_text('\n'.join(lines) + '\n', encoding='utf-8')

    def _mmcv_env(self, with_cuda: bool) -> dict[str, str]:
        env = dict(os.environ)
        env.setdefault('MAX_JOBS', str(compile_jobs()))
        if self.options.mmcv_device == 'cpu':
            env['CUDA_VISIBLE_DEVICES'] = ''
        elif with_cuda and not has_cuda_compiler():
            raise SetupError(
                'this torch sees a GPU, so onedl-mmcv would be compiled with CUDA, but there is no '
                'CUDA compiler (nvcc) on the PATH or under CUDA_HOME.\nInstall the CUDA toolkit '
                'that matches torch, or compile for the CPU alone with\n'
                '  make setup MMCV_DEVICE=cpu\n'
                'and then run with CUDA_VISIBLE_DEVICES= set empty.')
        return env

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

    def log_length(self, log: str) -> int:
        """Bytes in a step's log; 0 before it is there."""
        path = self._log_path(log)
        return path.stat().st_size if path.exists() else 0

    def log_text(self, log: str, start: int) -> str:
        """A step's log from byte `start` on."""
        return self._log_path(log).read_bytes()[start:].decode('utf-8', errors='replace')

    def _log_path(self, log: str) -> Path:
        return self.options.venv / 'setup-logs' / f'{log}.log'

    def _logged(self, command: list[str], log: str, env: dict[str, str] | None = None) -> float:
        return run_logged(command, self._title, self._log_path(log), self.status, env=env)


def torch_guard(expected: str | None, found: str | None, culprit: str) -> str | None:
    """What to tell if torch is not the version it was, else None.

    Args:
        expected: Version recorded when torch was installed; empty or None before that.
        found: Version in the environment now; None when there is none.
        culprit: What may have done it, as the subject of the sentence.
    """
    if not expected or found == expected:
        return None
    return (
        f'{culprit} replaced torch {expected} by {found or "nothing"}, but onedl-mmcv was '
        f'compiled against {expected}.\nRemove the environment with `make clean-venv` and choose '
        'versions that fit together, for example: make setup TORCH=... TORCHVISION=...')


def install_import_hook(source: Path, site_dir: Path) -> None:
    """Copy the repair for torchvision into `site_dir` with a .pth line that starts it.

    The module goes first: a .pth file that names a missing module complains at every start.
    """
    shutil.copyfile(source, site_dir / f'{HOOK_MODULE}.py')
    line = f'import {HOOK_MODULE}; {HOOK_MODULE}.install_import_hook()\n'
    (site_dir / f'{HOOK_MODULE}.pth').write_text(line, encoding='utf-8')


def compile_jobs() -> int:
    """Compilers to run at once: one a core, but each needs up to 2 GiB of memory."""
    affinity = getattr(os, 'sched_getaffinity', None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, int(available_memory_gib() // 2)))


def available_memory_gib() -> float:
    """Memory that can be used without swapping; plenty where it cannot be told."""
    try:
        with open('/proc/meminfo', encoding='ascii') as lines:
            for line in lines:
                if line.startswith('MemAvailable:'):
                    return int(line.split()[1]) / 2**20
    except (OSError, ValueError):
        pass
    return 64.0


def has_cuda_compiler() -> bool:
    """Whether nvcc can be found where torch looks for it."""
    homes = [os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH'), '/usr/local/cuda']
    return bool(shutil.which('nvcc')) or any(
        home and os.path.exists(os.path.join(home, 'bin', 'nvcc')) for home in homes)


def normalize_requirement(package: str, value: str) -> str:
    """`2.13.0` or `torch==2.13.0` or `torch>=2.12` as a requirement of `package`."""
    value = value.strip()
    if not value:
        return ''
    return f'{package}=={value}' if value[0].isdigit() else value
