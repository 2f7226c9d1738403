"""torchvision is helped exactly where its compiled part does not load; with stand-ins for both."""

import importlib.machinery
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from setup_steps import install_import_hook

from mmbitsplit.compat import torchvision_ops

SOURCE = Path(torchvision_ops.__file__)
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[-1]
EXTENSION = '_C' + SUFFIX


class FakeTorch(types.ModuleType):
    """A torch that notes what is declared and loads a library only if it is allowed to."""

    def __init__(self, *, loads, known=()):
        super().__init__('torch')
        self.loaded, self.declared = [], []
        self.__spec__ = importlib.machinery.ModuleSpec('torch', None)
        self.ops = types.SimpleNamespace(
            torchvision=types.SimpleNamespace(**dict.fromkeys(known)),
            load_library=self.load_library)
        self.library = types.ModuleType('torch.library')
        self.library.Library = self.make_library
        self.loads = loads

    def load_library(self, path):
        self.loaded.append(path)
        if not self.loads:
            raise OSError('libcudart.so.13: cannot open shared object file')

    def make_library(self, namespace, kind):
        assert (namespace, kind) == ('torchvision', 'FRAGMENT')

        def define(schema):
            name = schema.partition('(')[0]
            self.declared.append(name)
            setattr(self.ops.torchvision, name, schema)

        return types.SimpleNamespace(define=define)


@pytest.fixture
def use_fakes(monkeypatch, tmp_path):
    """Put a stand-in for torch into place, and one for the torchvision package on disk."""
    def use(torch, *, has_compiled_part=True, name=EXTENSION):
        package = tmp_path / 'torchvision'
        package.mkdir()
        (package / '__init__.py').touch()
        if has_compiled_part:
            (package / name).touch()
        monkeypatch.setitem(sys.modules, 'torch', torch)
        monkeypatch.setitem(sys.modules, 'torch.library', torch.library)
        monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
        monkeypatch.setattr(torchvision_ops, '_libraries', [])
        monkeypatch.syspath_prepend(str(tmp_path))
        return torch

    return use


@pytest.mark.parametrize('name', ['_C', '_C_stable'])  # the latter: torchvision 0.29
def test_nothing_is_declared_where_the_compiled_part_loads(use_fakes, tmp_path, name):
    torch = use_fakes(FakeTorch(loads=True), name=name + SUFFIX)
    assert torchvision_ops.declare_missing_torchvision_ops() == ()
    assert torch.loaded == [str(tmp_path / 'torchvision' / (name + SUFFIX))]
    assert torch.declared == []


@pytest.mark.parametrize('has_compiled_part', [True, False])
def test_both_operators_are_declared_where_it_does_not(use_fakes, has_compiled_part):
    torch = use_fakes(FakeTorch(loads=False), has_compiled_part=has_compiled_part)
    assert torchvision_ops.declare_missing_torchvision_ops() == ('nms', 'qnms')
    assert torch.declared == ['nms', 'qnms']


def test_a_second_call_declares_nothing(use_fakes):
    torch = use_fakes(FakeTorch(loads=False))
    torchvision_ops.declare_missing_torchvision_ops()
    assert torchvision_ops.declare_missing_torchvision_ops() == ()
    assert torch.declared == ['nms', 'qnms']


def test_an_operator_that_somebody_declared_is_left_alone(use_fakes):
    use_fakes(FakeTorch(loads=False, known=['nms']))
    assert torchvision_ops.declare_missing_torchvision_ops() == ('qnms',)


def test_without_torchvision_torch_is_not_even_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    monkeypatch.setattr(torchvision_ops, '_torchvision_dirs', lambda: [])
    assert torchvision_ops.declare_missing_torchvision_ops() == ()


FAKE_PACKAGES = {
    'torch/__init__.py': """
        import types
        class ops:
            class torchvision: pass
            @staticmethod
            def load_library(path): raise OSError(path)
        """,
    'torch/library.py': """
        import torch
        class Library:
            def __init__(self, *args): pass
            def define(self, schema): setattr(torch.ops.torchvision, schema.partition('(')[0], 1)
        """,
    'torchvision/__init__.py': """
        import torch
        if not hasattr(torch.ops.torchvision, 'nms'):
            raise RuntimeError('operator torchvision::nms does not exist')
        """,
    'torchvision/transforms.py': '',
}


@pytest.fixture
def site_dir(tmp_path):
    """A site-packages folder with the hook and stand-ins for torch and torchvision."""
    for name, text in FAKE_PACKAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    install_import_hook(SOURCE, tmp_path)
    return tmp_path


def run_python(site_dir, code):
    """Run code in an interpreter that has started with `site_dir` as its site-packages."""
    start = f'import site, sys; site.addsitedir({str(site_dir)!r})\n'
    result = subprocess.run([sys.executable, '-S', '-c', start + textwrap.dedent(code)],
                            capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_hook_costs_an_interpreter_nothing(site_dir):
    assert run_python(site_dir, "print('torch' in sys.modules)") == ['False']


def test_looking_torchvision_up_imports_nothing(site_dir):
    assert run_python(site_dir, """
        import importlib.util
        print(importlib.util.find_spec('torchvision') is not None, 'torch' in sys.modules)
        import torchvision
        print('imported')
        """) == ['True', 'False', 'imported']


@pytest.mark.parametrize('statement', [
    'import torchvision', 'import torchvision.transforms', 'import torch, torchvision',
    'from torchvision import transforms'])
def test_plain_imports_work(site_dir, statement):
    assert run_python(site_dir, f'{statement}; print("imported")') == ['imported']


def test_without_the_hook_they_do_not(site_dir):
    next(site_dir.glob('*.pth')).unlink()
    with pytest.raises(AssertionError, match='nms does not exist'):
        run_python(site_dir, 'import torchvision')


def test_torchvision_is_seen_with_its_own_loader(site_dir):
    assert run_python(site_dir, """
        import torchvision
        print(type(torchvision.__loader__).__name__, type(torchvision.__spec__.loader).__name__)
        """) == ['SourceFileLoader', 'SourceFileLoader']


def test_installing_the_hook_twice_leaves_one(site_dir):
    assert run_python(site_dir, """
        import mmbitsplit_torchvision_ops as hook
        hook.install_import_hook()
        print(sum(hasattr(finder, 'declares_torchvision_ops') for finder in sys.meta_path))
        """) == ['1']


def test_a_missing_torchvision_stays_missing(site_dir):
    (site_dir / 'torchvision' / '__init__.py').rename(site_dir / 'gone.py')
    (site_dir / 'torchvision' / 'transforms.py').unlink()
    (site_dir / 'torchvision').rmdir()
    assert run_python(site_dir, """
        try:
            import torchvision
        except ModuleNotFoundError as error:
            print(error.name)
        """) == ['torchvision']
