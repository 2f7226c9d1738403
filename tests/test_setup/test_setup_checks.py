"""What is said about a machine that lacks something."""

import importlib.util
import shutil
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import setup_checks as checks

DiskUsage = namedtuple('DiskUsage', 'total used free')


@pytest.fixture
def answer(monkeypatch):
    """Replaces what a check asks: a module's function by one that gives an answer."""
    def replace(owner, name, give):
        monkeypatch.setattr(owner, name, give if callable(give) else lambda *args, **kwargs: give)
    return replace


@pytest.fixture
def system_python(monkeypatch):
    """Pretend that Python came from the distribution."""
    monkeypatch.setattr(sys, 'base_prefix', '/usr')
    return f'python{sys.version_info[0]}.{sys.version_info[1]}'


@pytest.fixture
def own_python(monkeypatch):
    """Pretend that Python was compiled by hand, so that apt-get cannot complete it."""
    monkeypatch.setattr(sys, 'base_prefix', '/opt/mine')


def test_no_compiler_names_the_package(answer, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    answer(shutil, 'which', None)
    problem = checks.check_compiler()
    assert 'no C++ compiler' in problem.text and problem.apt_packages == ('g++',)
    monkeypatch.setenv('CXX', 'ccache clang++')
    asked = []
    answer(shutil, 'which', asked.append)
    assert 'CXX=ccache clang++' in checks.check_compiler().text and asked == ['ccache']


def test_a_compiler_that_cannot_compile_is_shown_with_what_it_said(answer):
    answer(shutil, 'which', '/usr/bin/c++')
    answer(subprocess, 'run', SimpleNamespace(returncode=1, stderr='fatal error: vector: No file'))
    problem = checks.check_compiler()
    assert 'fatal error: vector' in problem.text and problem.apt_packages == ('g++',)


def test_a_working_compiler_is_no_problem(answer):
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '', '')

    answer(shutil, 'which', 'c++')
    answer(subprocess, 'run', run)
    assert checks.check_compiler() is None and '-std=c++17' in commands[0]


def test_missing_headers_name_the_dev_package(system_python, answer, tmp_path):
    answer(checks.sysconfig, 'get_path', str(tmp_path))
    problem = checks.check_python_headers()
    assert 'Python.h' in problem.text and str(tmp_path) in problem.text
    assert problem.apt_packages == (f'{system_python}-dev',)
    (tmp_path / 'Python.h').touch()
    assert checks.check_python_headers() is None


def test_missing_headers_of_an_own_python_name_no_package(own_python, answer, tmp_path):
    answer(checks.sysconfig, 'get_path', str(tmp_path))
    problem = checks.check_python_headers()
    assert problem.apt_packages == ()
    assert '/opt/mine' in problem.text and 'PYTHON=' in problem.text


@pytest.mark.parametrize('ensurepip', [None, SimpleNamespace(origin=None)])
def test_missing_ensurepip_names_the_venv_package(ensurepip, system_python, answer):
    found = SimpleNamespace(origin='/somewhere/venv/__init__.py')
    answer(importlib.util, 'find_spec', lambda name: found if name == 'venv' else ensurepip)
    problem = checks.check_venv_module()
    assert 'no module ensurepip' in problem.text
    assert problem.apt_packages == (f'{system_python}-venv',)


def test_missing_libraries_name_their_packages(answer):
    def load(name):
        raise OSError(name)

    answer(checks.ctypes, 'CDLL', load)
    problems = [checks.check_shared_library(name) for name in checks.SHARED_LIBRARIES]
    assert checks.apt_packages(problems) == ['libgl1', 'libglib2.0-0']
    assert 'libGL.so.1' in problems[0].text
    answer(checks.ctypes, 'CDLL', None)
    assert checks.check_shared_library('libGL.so.1') is None


def test_little_disk_gives_both_numbers_and_a_next_step(answer, tmp_path):
    answer(shutil, 'disk_usage', DiskUsage(0, 0, 2**30))
    problem = checks.check_disk(tmp_path / 'not' / 'there' / 'yet', 3.0, 'the environment needs')
    assert '1.0 GiB free' in problem.text and 'the environment needs 3.0 GiB' in problem.text
    assert 'free some space' in problem.text
    assert checks.check_disk(tmp_path, 1.0, 'it needs') is None


@pytest.mark.parametrize('key', ['version', 'version_info'])
def test_an_environment_of_another_python_is_refused(key, tmp_path):
    assert checks.check_existing_venv(tmp_path) is None
    (tmp_path / 'pyvenv.cfg').write_text(f'home = /usr/bin\n{key} = 3.8.10\n')
    problem = checks.check_existing_venv(tmp_path)
    assert '3.8.10' in problem.text and 'make clean-venv' in problem.text
    assert 'PYTHON=python3.8' in problem.text
    version = '.'.join(map(str, sys.version_info[:3]))
    (tmp_path / 'pyvenv.cfg').write_text(f'{key} = {version}\n')
    assert checks.check_existing_venv(tmp_path) is None


def test_everything_is_told_at_once_with_one_line_to_copy():
    text = checks.describe([
        checks.Problem('no compiler', ('g++',)),
        checks.Problem('no disk'),
        checks.Problem('no headers', ('python3.11-dev', 'g++')),
    ])
    assert 'Nothing was downloaded' in text
    assert 'no compiler' in text and 'no disk' in text and 'no headers' in text
    assert text.endswith('apt-get install g++ python3.11-dev')


def test_no_packages_no_line_to_copy():
    assert 'apt-get' not in checks.describe([checks.Problem('no disk')])


def test_a_finished_build_needs_no_compiler_and_less_room(answer, monkeypatch, tmp_path):
    monkeypatch.delenv('CXX', raising=False)
    answer(shutil, 'which', None)
    answer(checks.ctypes, 'CDLL', None)
    answer(shutil, 'disk_usage', DiskUsage(0, 0, 2 * 2**30))
    assert checks.find_problems(tmp_path, ['import check']) == []
    compiler, disk = checks.find_problems(tmp_path, ['torch', 'onedl-mmcv', 'import check'])
    assert 'compiler' in compiler.text and 'GiB' in disk.text
