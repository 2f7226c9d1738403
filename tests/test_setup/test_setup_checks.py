"""What is said about a machine that lacks something."""

import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import setup_checks as checks

DiskUsage = namedtuple('DiskUsage', 'total used free')


def no_run(*args, **kwargs):
    raise AssertionError('nothing may be run here')


@pytest.fixture
def system_python(monkeypatch):
    """Pretend that Python came from the distribution."""
    monkeypatch.setattr(sys, 'base_prefix', '/usr')
    return f'python{sys.version_info[0]}.{sys.version_info[1]}'


@pytest.fixture
def own_python(monkeypatch):
    """Pretend that Python was compiled by hand, so that apt-get cannot complete it."""
    monkeypatch.setattr(sys, 'base_prefix', '/opt/mine')


def test_no_compiler_names_the_package():
    problem = checks.check_compiler(environ={}, which=lambda name: None, run=no_run)
    assert 'no C++ compiler' in problem.text
    assert problem.apt_packages == ('g++',)


def test_the_compiler_named_by_cxx_is_the_one_that_is_looked_for():
    asked = []
    problem = checks.check_compiler(
        environ={'CXX': 'ccache clang++'}, which=asked.append, run=no_run)
    assert asked == ['ccache']
    assert 'CXX=ccache clang++' in problem.text


def test_a_compiler_that_cannot_compile_is_shown_with_what_it_said():
    failed = SimpleNamespace(returncode=1, stderr='fatal error: vector: No such file')
    problem = checks.check_compiler(
        environ={}, which=lambda name: f'/usr/bin/{name}', run=lambda *args, **kwargs: failed)
    assert 'fatal error: vector' in problem.text
    assert problem.apt_packages == ('g++',)


def test_a_working_compiler_is_no_problem():
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '', '')

    assert checks.check_compiler(environ={}, which=lambda name: name, run=run) is None
    assert '-std=c++17' in commands[0]


def test_missing_headers_name_the_dev_package(system_python, tmp_path):
    problem = checks.check_python_headers(str(tmp_path))
    assert 'Python.h' in problem.text and str(tmp_path) in problem.text
    assert problem.apt_packages == (f'{system_python}-dev',)


def test_missing_headers_of_an_own_python_name_no_package(own_python, tmp_path):
    problem = checks.check_python_headers(str(tmp_path))
    assert problem.apt_packages == ()
    assert '/opt/mine' in problem.text and 'PYTHON=' in problem.text


def test_headers_that_are_there_are_no_problem(tmp_path):
    (tmp_path / 'Python.h').touch()
    assert checks.check_python_headers(str(tmp_path)) is None


def test_missing_ensurepip_names_the_venv_package(system_python):
    found = SimpleNamespace(origin='/somewhere/venv/__init__.py')
    problem = checks.check_venv_module(lambda name: found if name == 'venv' else None)
    assert 'ensurepip' in problem.text
    assert problem.apt_packages == (f'{system_python}-venv',)


def test_an_empty_folder_is_no_module(system_python):
    assert checks.check_venv_module(lambda name: SimpleNamespace(origin=None)) is not None


def test_missing_libraries_name_their_packages():
    def load(name):
        raise OSError(name)

    problems = checks.check_shared_libraries(load)
    assert checks.apt_packages(problems) == ['libgl1', 'libglib2.0-0']
    assert 'libGL.so.1' in problems[0].text
    assert checks.check_shared_libraries(lambda name: None) == []


def test_little_disk_gives_both_numbers_and_a_next_step(tmp_path):
    problem = checks.check_disk(
        tmp_path / 'not' / 'there' / 'yet', 3.0, 'the virtual environment',
        disk_usage=lambda path: DiskUsage(0, 0, 2**30))
    assert '1.0 GiB free' in problem.text and '3.0 GiB' in problem.text
    assert 'free some space' in problem.text


def test_enough_disk_is_no_problem(tmp_path):
    assert checks.check_disk(
        tmp_path, 3.0, 'it', disk_usage=lambda path: DiskUsage(0, 0, 3 * 2**30)) is None


def test_an_environment_of_another_python_is_refused(tmp_path):
    (tmp_path / 'pyvenv.cfg').write_text('home = /usr/bin\nversion = 3.8.10\n')
    problem = checks.check_existing_venv(tmp_path)
    assert '3.8' in problem.text and 'make clean-venv' in problem.text


def test_an_environment_of_this_python_or_none_is_accepted(tmp_path):
    assert checks.check_existing_venv(tmp_path) is None
    version = '.'.join(map(str, sys.version_info[:3]))
    (tmp_path / 'pyvenv.cfg').write_text(f'version = {version}\n')
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


def test_a_finished_build_needs_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, 'check_compiler', no_run)
    monkeypatch.setattr(checks, 'check_python_headers', no_run)
    checks.find_problems(tmp_path, needs_compiler=False, needed_gib=0.0)
