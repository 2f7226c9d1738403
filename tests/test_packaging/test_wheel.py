"""What a wheel and an editable install hold, and that mim finds the tools in both."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
# Tools of bench/ and demo/, which are of the repository alone.
OF_THE_REPOSITORY = {f'tools/{name}.py' for name in (
    'demo_summary', 'make_demo_data', 'paper_tables', 'store_results', 'update_tables')}
SOURCES = ('bench', 'mmbitsplit', 'tools', 'configs', 'setup.py', 'pyproject.toml', 'MANIFEST.in',
           'README.md', 'LICENSE', 'CHANGELOG.md', 'CITATION.cff', 'model-index.yml')
# Builds one kind of wheel, as pip asks setuptools to do it.
BUILD = ('import sys; from setuptools import build_meta; '
         'print(getattr(build_meta, sys.argv[1])(sys.argv[2]))')


def build(kind: str, folder: Path) -> tuple[Path, Path]:
    """Copies the sources and builds a wheel or an sdist of them; returns copy and archive."""
    source, wheels = folder / 'source', folder / 'wheels'
    wheels.mkdir()
    for name in SOURCES:
        path = PROJECT / name
        if path.is_dir():
            shutil.copytree(path, source / name,
                            ignore=shutil.ignore_patterns('__pycache__', '.mim'))
        elif path.exists():
            shutil.copy2(path, source / name)
    done = subprocess.run([sys.executable, '-c', BUILD, kind, str(wheels)], cwd=source,
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return source, next(wheels.iterdir())


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    return build('build_wheel', tmp_path_factory.mktemp('wheel'))[1]


@pytest.fixture(scope='module')
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(folder: str, *suffixes: str) -> set[str]:
    return {path.relative_to(PROJECT).as_posix() for path in (PROJECT / folder).rglob('*')
            if path.suffix in suffixes and '.mim' not in path.parts}


def test_a_wheel_holds_the_whole_package(names):
    assert tracked('mmbitsplit', '.py') <= names and 'mmbitsplit/py.typed' in names
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'mmbitsplit'}


def test_a_wheel_holds_tools_and_configs_but_nothing_of_the_checkout(names):
    wanted = {f'mmbitsplit/.mim/{name}'
              for name in tracked('tools', '.py', '.sh') | tracked('configs', '.py', '.yml', '.md')
              if not name.startswith(('tools/setup/', 'configs/demo/', 'configs/cifar/'))
              and name not in OF_THE_REPOSITORY}
    found = {name for name in names if '/.mim/' in name and not name.endswith('model-index.yml')}
    assert found == wanted and 'mmbitsplit/.mim/tools/quantize.py' in found
    assert ('mmbitsplit/.mim/model-index.yml' in names) == (PROJECT / 'model-index.yml').exists()
    assert not [name for name in names if name.endswith('.pth') or 'test_' in name
                and not name.startswith(('mmbitsplit/cli/', 'mmbitsplit/.mim/tools/'))]


def test_commands_of_the_repository_say_so_in_a_wheel(wheel, tmp_path):
    """Also where another package named `bench` is installed beside it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (tmp_path / 'bench').mkdir()
    (tmp_path / 'bench/__init__.py').write_text('')
    (tmp_path / 'elsewhere').mkdir()

    def call(*args):
        return subprocess.run([sys.executable, '-m', 'mmbitsplit', *args], text=True,
                              cwd=tmp_path / 'elsewhere', capture_output=True,
                              env={**os.environ, 'PYTHONPATH': str(tmp_path)})

    listed = call('--help').stdout
    assert '  sensitivity ' in listed
    for command in ('paper-tables', 'store-results', 'update-tables'):
        assert command not in listed
        refused = call(command, '--help')
        assert refused.returncode == 2 and refused.stderr.count('\n') == 1
        assert "part of mmbitsplit's repository" in refused.stderr


def test_all_that_the_model_index_names_is_in_the_wheel(wheel, names):
    with zipfile.ZipFile(wheel) as archive:
        index = yaml.safe_load(archive.read('mmbitsplit/.mim/model-index.yml'))
        assert index['Import'] == [f'configs/{folder}metafile.yml'
                                   for folder in ('', 'qdrop/', 'transformers/')]
        for name in index['Import']:
            content = yaml.safe_load(archive.read(f'mmbitsplit/.mim/{name}'))
            for model in content['Models']:
                assert f"mmbitsplit/.mim/{model['Config']}" in names


def test_a_wheel_brings_the_console_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        entry, = (name for name in archive.namelist() if name.endswith('entry_points.txt'))
        assert 'mmbitsplit = mmbitsplit.cli.main:start' in archive.read(entry).decode()


def test_a_wheel_holds_the_licence_and_the_page_s_assets(names):
    assert [name for name in names if name.endswith('.dist-info/licenses/LICENSE')]
    assert tracked('mmbitsplit/report/assets', '.css', '.js') <= names
    assert 'mmbitsplit/report/templates/run.html' in tracked('mmbitsplit/report', '.html') <= names


def test_an_sdist_holds_what_a_wheel_is_built_of_and_no_part_of_the_tests(tmp_path):
    (tmp_path / 'source/tests').mkdir(parents=True)
    (tmp_path / 'source/tests/test_x.py').write_text('')  # setuptools takes such a file along
    _, archive = build('build_sdist', tmp_path)
    with tarfile.open(archive) as file:
        names = {name.partition('/')[2] for name in file.getnames() if name.count('/')}
    wanted = tracked('mmbitsplit', '.py', '.html', '.css', '.js', '.typed') \
        | tracked('tools', '.py', '.sh') - OF_THE_REPOSITORY \
        | tracked('configs', '.py', '.yml', '.md')
    assert wanted | set(SOURCES) - {'bench', 'mmbitsplit', 'tools', 'configs'} <= names
    assert not [name for name in names if name in OF_THE_REPOSITORY
                or name.startswith(('tests', 'bench', 'demo', 'data'))]


def find_script(package: Path, command: str) -> Path:
    """The script that ``mim run mmbitsplit COMMAND`` runs: the one in the shallowest folder."""
    folder = next(root for root in (package / '.mim/tools', package / 'tools') if root.exists())
    found = [Path(root) / f'{command}.py' for root, _, files in os.walk(folder)
             if f'{command}.py' in files]
    return min(found, key=lambda path: len(path.parts))


def test_mim_s_script_runs_from_an_unpacked_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = find_script(tmp_path / 'mmbitsplit', 'quantize')
    config = tmp_path / 'mmbitsplit/.mim/configs/retinanet_r50_w4a9.py'
    done = subprocess.run([sys.executable, str(script), str(config)], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert done.returncode == 2, done.stderr[-3000:]
    assert "did you mean 'retinanet_r50_w4a8.py'?" in done.stderr


def test_an_editable_install_has_links_that_survive_moving(tmp_path):
    source, _ = build('build_editable', tmp_path)
    moved = source.rename(tmp_path / 'moved')
    for package in (moved / 'mmbitsplit', moved):  # openmim looks at the first, onedl-mim at both
        assert find_script(package, 'quantize').read_text() \
            == (PROJECT / 'tools/quantize.py').read_text()
    elsewhere = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path.append({str(moved)!r}); '
         'from mmbitsplit.cli.main import COMMANDS, available; sys.path.pop(); '
         'print(available() == COMMANDS, COMMANDS["update-tables"].load().__file__)'],
        cwd=tmp_path, text=True, capture_output=True, env={**os.environ, 'PYTHONPATH': ''})
    assert elsewhere.stdout.split() == ['True', str(moved / 'bench/commands/update_tables.py')]
    link = moved / 'mmbitsplit/.mim/configs'
    assert link.is_symlink() and link.resolve() == moved / 'configs'
    assert not list((moved / 'mmbitsplit').rglob('*.pyc'))


def test_a_second_build_leaves_no_stale_tool_behind(tmp_path):
    source, wheel = build('build_wheel', tmp_path)
    (source / 'tools/train.py').unlink()
    wheel.unlink()
    subprocess.run([sys.executable, '-c', BUILD, 'build_wheel', str(wheel.parent)], cwd=source,
                   capture_output=True, check=True)
    with zipfile.ZipFile(wheel) as archive:
        assert 'mmbitsplit/.mim/tools/train.py' not in archive.namelist()
        assert 'mmbitsplit/.mim/tools/test.py' in archive.namelist()


BARE = '''
import sys
from importlib.machinery import PathFinder
from importlib.metadata import distribution, packages_distributions
from packaging.requirements import Requirement

allowed, waiting = {'mmbitsplit'}, REQUIRED
while waiting:
    name = waiting.pop().lower().replace('_', '-')
    if name in allowed:
        continue
    allowed.add(name)
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
            waiting.append(requirement.name)
tops = {top for top, names in packages_distributions().items()
        if not {name.lower().replace('_', '-') for name in names} & allowed}


class Bare:
    """Finds what a bare environment has, and nothing else."""

    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in tops else PathFinder.find_spec(name, path, target)


for name in [name for name in sys.modules if name.split('.')[0] in tops]:
    del sys.modules[name]
sys.meta_path[:] = [Bare() if finder is PathFinder else finder for finder in sys.meta_path
                    if not hasattr(finder, 'MAPPING')]  # of editable installs
for name in ('mmengine', 'mmdet', 'mmpretrain', 'cv2', 'onnx'):
    assert name in tops, name

import torch
from torch import nn
from mmbitsplit.apis import load_quantized, quantize_model, save_quantized

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                         nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()


torch.manual_seed(0)
model = build()
batches = [torch.rand(8, 3, 10, 10) for _ in range(3)]
report = quantize_model(model, batches, dict(weight=dict(num_bits=4)))
assert len(report.layers) == 3 and all(0 < row.error < 0.1 for row in report.layers)
save_quantized(model, 'model.pth')
assert torch.equal(load_quantized(build(), 'model.pth')(batches[0]), model(batches[0]))
print('quantized by', sys.modules['mmbitsplit'].__file__)
'''


def test_a_wheel_quantizes_with_torch_alone(wheel, tmp_path):
    """Beside the wheel a process sees what its requirements name, and what those need."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        name, = (name for name in archive.namelist() if name.endswith('/METADATA'))
        required = [line.split(':')[1].split('>=')[0].strip()
                    for line in archive.read(name).decode().splitlines()
                    if line.startswith('Requires-Dist:') and 'extra ==' not in line]
    assert sorted(required) == ['greenlet', 'numba', 'numpy', 'torch']
    done = subprocess.run([sys.executable, '-c', BARE.replace('REQUIRED', repr(required))],
                          text=True, capture_output=True, cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'quantized by {tmp_path}' in done.stdout
