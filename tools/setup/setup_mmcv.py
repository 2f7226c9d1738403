"""The step that compiles onedl-mmcv: its files joined into a few units, or the plain way.

Each of its 78 files parses torch's headers for 10 to 15 seconds; joined they are parsed a few
times. The wheel made so is kept for later environments in the user's cache folder, one for each
torch, Python, compiler and set of flags. Whatever goes wrong with it ends in the plain way.
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

LOG = 'onedl-mmcv'
SOURCES = Path('mmcv/ops/csrc/pytorch')  # where its setup.py takes *.cpp and cpu/*.cpp from
ORIGINALS = 'originals'  # beside SOURCES
DEFINE = re.compile(r'^[ \t]*#[ \t]*define[ \t]+(\w+)', re.MULTILINE)

# The largest file takes 54 s beyond the headers, all others 65 s, the headers 15 s a unit. Three
# units of equal size keep two cores busy to the end; more of them only parse headers again.
UNITS = 3

# Files of onedl-mmcv 2.3.6 of which no two may share a unit: they define the same function or type.
CLASHING = (
    {'cpu/bezier_align.cpp', 'cpu/roi_align.cpp', 'cpu/roi_align_rotated.cpp'},
    {'cpu/bezier_align.cpp', 'cpu/roi_align.cpp', 'cpu/rotated_feature_align.cpp'})
OPENS_NAMESPACE = 'contour_expand.cpp'  # says `using namespace std`: last in its unit

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


def install(run, *, with_cuda: bool) -> float:
    """Install it in the environment of a `SetupRun`; the seconds it took."""
    env = build_env(with_cuda=with_cuda, device=run.options.mmcv_device)
    asked = [name for name in ACCELERATOR_SWITCHES if env.get(name) == '1']
    if with_cuda or asked:
        reason = f'{asked[0]}=1 is set' if asked else 'it is compiled with CUDA'
    else:
        try:
            return _install_from_units(run, env)
        except (SetupError, OSError, tarfile.TarError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    run.note(f'{reason}; installing it the plain way, file by file: 10 minutes or more')
    # pip's own wheel may have been built with another torch, so none is taken.
    return (run.pip(['-v', '--no-build-isolation', '--no-cache-dir', '--force-reinstall',
                     '--no-deps', versions.MMCV], LOG, env)
            + _fetch_dependencies_and_try(run, env))


def build_env(*, with_cuda: bool, device: str) -> dict[str, str]:
    """What the compilers see.

    Raises:
        SetupError: CUDA files would be compiled and there is no compiler for them.
    """
    env = {'MAX_JOBS': str(compile_jobs()), **os.environ}
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    elif with_cuda and not has_cuda_compiler():
        raise SetupError(
            'this torch sees a GPU, so onedl-mmcv would be compiled with CUDA, but there is no '
            'CUDA compiler (nvcc) on the PATH or under CUDA_HOME.\nInstall the CUDA toolkit '
            'that matches torch, or compile for the CPU alone with\n'
            '  make setup MMCV_DEVICE=cpu\n'
            'and then run with CUDA_VISIBLE_DEVICES= set empty.')
    return env


def _install_from_units(run, env: dict[str, str]) -> float:
    folder = wheel_folder(env, run.state.torch)
    for wheel in folder.glob('*.whl'):
        try:
            run.note(f'taking {wheel}')
            return _install_wheel(run, wheel, env)
        except SetupError:
            run.note('the wheel that was kept does not work here; compiling it again')
            wheel.unlink()
    with tempfile.TemporaryDirectory(prefix='mmbitsplit-mmcv-') as work:
        source, target = Path(work, 'source'), Path(work, 'wheel')
        seconds = run.pip(['--no-deps', '--no-build-isolation', '--no-binary', 'onedl-mmcv',
                           '--dest', str(source), versions.MMCV], LOG, env, command='download')
        root = unpack(*source.iterdir())
        raise_cpp_standard(root, run.state.torch)
        join_files(root)
        seconds += run.pip(['-v', '--no-build-isolation', '--no-deps', '--no-cache-dir',
                            '--wheel-dir', str(target), str(root)], LOG, env, command='wheel')
        (wheel,) = target.glob('*.whl')
        seconds += _install_wheel(run, wheel, env)
        with suppress(OSError):  # a full disk only costs the copy
            keep_wheel(wheel, folder)
    return seconds


def _install_wheel(run, wheel: Path, env: dict[str, str]) -> float:
    """Install a wheel whatever version is there."""
    return (run.pip(['--force-reinstall', '--no-deps', str(wheel)], LOG, env)
            + _fetch_dependencies_and_try(run, env))


def _fetch_dependencies_and_try(run, env: dict[str, str]) -> float:
    return run.pip([versions.MMCV], LOG, env) + run.trial(TRIAL, LOG)


def unpack(package: Path) -> Path:
    """Unpack a source package beside itself; the one folder that it holds."""
    with tarfile.open(package) as archive:
        if hasattr(tarfile, 'data_filter'):  # not in the first releases of Python 3.10 and 3.11
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(package.parent)
    package.unlink()
    (root,) = package.parent.iterdir()
    return root


def join_files(root: Path) -> None:
    """Move the CPU files of an unpacked source aside, with units in their place that include them.

    Raises:
        SetupError: There are none where they are looked for.
    """
    sources, originals = root / SOURCES, root / SOURCES.parent / ORIGINALS
    paths = [*sources.glob('*.cpp'), *sources.glob('cpu/*.cpp')]
    if not paths:
        raise SetupError(f'the source of {versions.MMCV} has no {SOURCES}/*.cpp')
    texts = {path.relative_to(sources).as_posix():
             path.read_text(encoding='utf-8', errors='replace') for path in paths}
    (originals / 'cpu').mkdir(parents=True)
    for header in sources.glob('*.h*'):
        shutil.copy(header, originals)
    for name in texts:
        os.replace(sources / name, originals / name)
    for number, unit in enumerate(deal({name: len(text) for name, text in texts.items()})):
        lines = []
        for name in unit:
            lines.append(f'#include "../{ORIGINALS}/{name}"')
            lines += [f'#undef {macro}' for macro in dict.fromkeys(DEFINE.findall(texts[name]))]
        (sources / f'mmbitsplit_unit_{number}.cpp').write_text('\n'.join(lines) + '\n')


def raise_cpp_standard(root: Path, torch: str) -> None:
    """Have an unpacked source compiled in the C++ that this torch's headers are written in.

    onedl-mmcv asks for C++17 by itself, and what it asks for stands behind all other flags.

    Args:
        root: The unpacked source.
        torch: Version of the installed torch, such as ``'2.13.0+cpu'``.
    """
    if tuple(int(part) for part in re.findall(r'\d+', torch)[:2]) < versions.CPP20_SINCE:
        return
    script = root / 'setup.py'
    script.write_text(re.sub(r'-std=c\+\+1[47]', '-std=c++20', script.read_text()))


def deal(sizes: dict[str, int]) -> list[list[str]]:
    """Spread files over units of about equal size, no two that clash in one.

    Args:
        sizes: Characters by name; how long a file takes to compile, roughly.

    Returns:
        The units, the one with the largest file first: it takes longest.
    """
    units: list[list[str]] = [[] for _ in range(UNITS)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        free = [unit for unit in units
                if not any(name in group and group & set(unit) for group in CLASHING)]
        if not free:
            free = [[]]
            units += free
        min(free, key=lambda unit: sum(sizes[other] for other in unit)).append(name)
    return [sorted(unit, key=lambda name: name == OPENS_NAMESPACE) for unit in units if unit]


def wheel_folder(env: dict[str, str], torch: str) -> Path:
    """Where the wheel for this torch, Python, compiler and flags is kept."""
    caches = Path(env.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    abi = sysconfig.get_config_var('SOABI') or sys.implementation.cache_tag
    decides = [versions.MMCV, torch, abi, platform.machine(), compiler_version(env),
               {name: env.get(name, '') for name in FLAGS}]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]
    return caches / 'mmbitsplit' / 'wheels' / f'{torch}-{abi}-{digest}'


def compiler_version(env: dict[str, str]) -> str:
    """What the C++ compiler says about itself."""
    answer = subprocess.run([*shlex.split(env.get('CXX') or 'c++'), '--version'],
                            capture_output=True, text=True, check=False)
    return answer.stdout.partition('\n')[0]


def keep_wheel(wheel: Path, folder: Path) -> None:
    """Copy the wheel so that it appears whole or not at all."""
    partial = folder / f'{wheel.name}.{os.getpid()}.part'
    folder.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(wheel, partial)
        os.replace(partial, folder / wheel.name)
    finally:
        partial.unlink(missing_ok=True)


def compile_jobs(meminfo: Path = Path('/proc/meminfo')) -> int:
    """Compilers to run at once: one a core, but each needs up to 2 GiB of memory."""
    if not meminfo.is_file():  # no Linux
        return 1
    available = re.search(r'^MemAvailable:\s+(\d+) kB', meminfo.read_text(), re.MULTILINE)[1]
    return max(1, min(len(os.sched_getaffinity(0)), int(available) // 2**21))


def has_cuda_compiler() -> bool:
    """Whether nvcc can be found where torch looks for it."""
    homes = [os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH'), '/usr/local/cuda']
    return bool(shutil.which('nvcc')) or any(
        home and os.path.exists(os.path.join(home, 'bin', 'nvcc')) for home in homes)
