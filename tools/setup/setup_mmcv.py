"""The step that compiles onedl-mmcv: in a few units, or file by file where that does not work.

The wheel made from units is kept for later environments in the user's cache folder, one for each
torch, Python, compiler and set of flags.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import setup_versions as versions
from setup_runner import SetupError
from setup_units import deal, read_source, unit_text

LOG = 'onedl-mmcv'
SOURCES = Path('mmcv/ops/csrc/pytorch')  # where its setup.py takes *.cpp and cpu/*.cpp from
ORIGINALS = 'originals'  # beside SOURCES
UNIT_NAME = 'mmbitsplit_unit_{}.cpp'
FAILED_UNIT = re.compile(r'FAILED: .*mmbitsplit_unit_(\d+)\.o')

# The largest file takes 54 s beyond the headers, all others 65 s, the headers 15 s a unit. Three
# units of equal size keep two cores busy to the end; more of them only parse headers again.
UNITS = 3

# With any of these its setup.py compiles for an accelerator, from other sources or in another way.
ACCELERATOR_SWITCHES = (
    'FORCE_CUDA', 'FORCE_MLU', 'FORCE_MPS', 'FORCE_NPU', 'FORCE_MUSA', 'MMCV_WITH_DIOPI')
FLAGS = ('CPPFLAGS', 'CFLAGS', 'CXXFLAGS', 'LDFLAGS')

# Compiled operators can import and still be wrong for this torch, so one is really called.
TRIAL = (
    'import torch; from mmcv.ops import nms; '
    'boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 20., 29., 29.]]); '
    'kept = nms(boxes, torch.tensor([.9, .8, .7]), .5)[1]; '
    'assert kept.tolist() == [0, 2], kept')


class SourceTree:
    """onedl-mmcv's source with its CPU files joined into units.

    Args:
        root: The unpacked source.
        units: How many units to make.
    """

    def __init__(self, root: Path, units: int = UNITS):
        self.root = root
        self._sources = root / SOURCES
        self._originals = self._sources.parent / ORIGINALS
        paths = [path.relative_to(self._sources)
                 for pattern in ('*.cpp', 'cpu/*.cpp') for path in self._sources.glob(pattern)]
        if not paths:
            raise SetupError(f'the source of {versions.MMCV} has no {SOURCES}/*.cpp')
        for path in paths:
            self._move(path, self._sources, self._originals)
        for header in self._sources.glob('*.h*'):
            shutil.copy(header, self._originals)
        self.units = dict(enumerate(
            deal([read_source(self._originals, path) for path in sorted(paths)], units)))
        for number, unit in self.units.items():
            self._unit_file(number).write_text(unit_text(unit, f'../{ORIGINALS}'), encoding='utf-8')

    def split(self, number: int) -> None:
        """Put a unit's files back where they came from, to be compiled one by one."""
        self._unit_file(number).unlink()
        for source in self.units.pop(number):
            self._move(source.path, self._originals, self._sources)

    def _unit_file(self, number: int) -> Path:
        return self._sources / UNIT_NAME.format(number)

    @staticmethod
    def _move(path: Path, source: Path, target: Path) -> None:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / path, target / path)


class MmcvStep:
    """Compiles and installs onedl-mmcv in the environment of a `SetupRun`."""

    def __init__(self, run):
        self._run = run
        self._torch = run.state.get('torch')

    def install(self, env: dict[str, str], *, with_cuda: bool) -> float:
        """Install it in the quickest way that works; the seconds it took."""
        reason = why_file_by_file(env, with_cuda=with_cuda)
        if reason is None:
            try:
                return self._install_from_units(env)
            except (SetupError, OSError, tarfile.TarError, UnicodeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._run.note(f'{reason}; installing it the plain way, file by file: 10 minutes or more')
        return self._install_plainly(env)

    # -- joined into units --------------------------------------------------------------------

    def _install_from_units(self, env: dict[str, str]) -> float:
        folder = wheel_folder(env, self._torch)
        for wheel in sorted(folder.glob('*.whl')) if folder else ():
            try:
                self._run.note(f'taking {wheel}')
                return self._install_wheel(wheel, env)
            except SetupError:
                self._run.note('the wheel that was kept does not work here; compiling it again')
                wheel.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix='mmbitsplit-mmcv-') as work:
            package, seconds = self._fetch(Path(work) / 'download', env)
            if package.suffix == '.whl':  # from a registry of the user's own
                return seconds + self._install_wheel(package, env)
            tree = SourceTree(unpack(package, Path(work) / 'source'))
            wheel, built = self._build(tree, Path(work) / 'wheels', env)
            seconds += built + self._install_wheel(wheel, env)
            if folder:
                keep_wheel(wheel, folder)
        return seconds

    def _fetch(self, target: Path, env: dict[str, str]) -> tuple[Path, float]:
        """What the registry has of onedl-mmcv, and the seconds it took."""
        seconds = self._run.pip(
            ['--no-deps', '--no-build-isolation', '--dest', str(target), versions.MMCV],
            LOG, env, command='download')
        (package,) = target.iterdir()
        return package, seconds

    def _build(self, tree: SourceTree, target: Path, env: dict[str, str]) -> tuple[Path, float]:
        """The wheel, and the seconds it took. Objects of units that compiled are not made again."""
        seconds = 0.0
        while True:
            start = self._run.log_length(LOG)
            try:
                seconds += self._run.pip(
                    ['-v', '--no-build-isolation', '--no-deps', '--no-cache-dir',
                     '--wheel-dir', str(target), str(tree.root)], LOG, env, command='wheel')
                (wheel,) = target.glob('*.whl')
                return wheel, seconds
            except SetupError:
                failed = set(failed_units(self._run.log_text(LOG, start))) & set(tree.units)
                if not failed:
                    raise
                self._run.note(f'{len(failed)} of {len(tree.units)} units did not compile; '
                               'compiling their files one by one')
                for number in failed:
                    tree.split(number)

    def _install_wheel(self, wheel: Path, env: dict[str, str]) -> float:
        return (self._run.pip(['--no-deps', '--force-reinstall', str(wheel)], LOG, env)
                + self._run.pip([versions.MMCV], LOG, env)  # what it depends on
                + self._run.trial(TRIAL, LOG))

    # -- the plain way ------------------------------------------------------------------------

    def _install_plainly(self, env: dict[str, str]) -> float:
        """Let pip compile it, or take pip's own wheel.

        pip keeps the wheel it built, but does not know which torch it was built with. So one that
        fails the trial is built again, and with another torch than the usual one none is taken.
        """
        other_torch = self._run.state.get('onedl-mmcv torch') not in (None, self._torch)
        if other_torch or self._run.options.torch != versions.TORCH:
            return self._compile_plainly(env)
        seconds = self._run.pip(['-v', '--no-build-isolation', versions.MMCV], LOG, env)
        try:
            return seconds + self._run.trial(TRIAL, LOG)
        except SetupError:
            self._run.note('the one that was there does not fit this torch; compiling it again')
            return seconds + self._compile_plainly(env)

    def _compile_plainly(self, env: dict[str, str]) -> float:
        """Compile it whatever pip has kept, fetch what it depends on, and try it."""
        fresh = ['-v', '--no-build-isolation', '--no-cache-dir', '--force-reinstall', '--no-deps']
        return (self._run.pip([*fresh, versions.MMCV], LOG, env)
                + self._run.pip([versions.MMCV], LOG, env)
                + self._run.trial(TRIAL, LOG))


def why_file_by_file(env: dict[str, str], *, with_cuda: bool,
                     system: str = sys.platform) -> str | None:
    """Why the files cannot be joined here; None where they can.

    Args:
        env: The environment of the build.
        with_cuda: Whether torch sees a GPU, so that CUDA files are compiled too.
        system: `sys.platform`.
    """
    if with_cuda:
        return 'with CUDA files the build of onedl-mmcv is left as it is'
    asked = [name for name in ACCELERATOR_SWITCHES if env.get(name) == '1']
    if asked:
        return f'{asked[0]}=1 asks for more than operators for the CPU'
    if system == 'darwin':
        return 'on macOS the build of onedl-mmcv is left as it is'
    return None


def unpack(package: Path, target: Path) -> Path:
    """Unpack a source package; the one folder that it holds."""
    with tarfile.open(package) as archive:
        if hasattr(tarfile, 'data_filter'):  # not in the first releases of Python 3.10 and 3.11
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(target)
    (root,) = target.iterdir()
    return root


def failed_units(log: str) -> list[int]:
    """Numbers of the units that ninja says it could not compile."""
    return [int(number) for number in FAILED_UNIT.findall(log)]


def wheel_folder(env: dict[str, str], torch: str | None) -> Path | None:
    """Where the wheel for this torch, Python, compiler and flags is kept; None without a cache."""
    try:
        caches = Path(env.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    except RuntimeError:  # no home folder
        return None
    abi = sysconfig.get_config_var('SOABI') or sys.implementation.cache_tag
    decides = [versions.MMCV, torch, abi, platform.machine(), compiler_version(env),
               {name: env.get(name, '') for name in FLAGS}]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]
    return caches / 'mmbitsplit' / 'wheels' / f'{torch}-{abi}-{digest}'


def compiler_version(env: dict[str, str], run=subprocess.run) -> str:
    """What the C++ compiler says about itself."""
    answer = run([*shlex.split(env.get('CXX') or 'c++'), '--version'], capture_output=True,
                 text=True, check=False)
    return answer.stdout.partition('\n')[0]


def keep_wheel(wheel: Path, folder: Path) -> None:
    """Copy the wheel so that it appears whole or not at all; a full disk only costs the copy."""
    partial = folder / f'{wheel.name}.{os.getpid()}.part'
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(wheel, partial)
            os.replace(partial, folder / wheel.name)
        finally:
            partial.unlink(missing_ok=True)
