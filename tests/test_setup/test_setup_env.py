"""The entry script: the Python version, and that old Pythons can read the sentence."""

import ast
import sys
from pathlib import Path

import pytest
import setup_env
import setup_versions

SETUP_DIR = Path(setup_env.__file__).parent


@pytest.mark.parametrize('found', [(3, 10, 0), (3, 11, 7), (3, 14, 2)])
def test_good_versions_pass(found):
    assert setup_env.python_problem(found, 'python3') is None


@pytest.mark.parametrize('found', [(2, 7, 18), (3, 9, 18), (3, 15, 0), (4, 0, 0)])
def test_other_versions_are_named_with_what_is_allowed(found):
    problem = setup_env.python_problem(found, '/opt/bin/python3')
    assert '.'.join(map(str, found)) in problem
    assert '/opt/bin/python3' in problem
    assert '3.10 to 3.14' in problem
    assert 'PYTHON=' in problem


def test_the_package_allows_no_less_than_the_set_up():
    text = (SETUP_DIR.parents[1] / 'setup.py').read_text(encoding='utf-8')
    first = '.'.join(map(str, setup_versions.PYTHON_RANGE[0]))
    assert f"python_requires='>={first}'" in text


@pytest.mark.parametrize('name', ['setup_env.py', 'setup_versions.py'])
def test_old_pythons_can_parse_what_they_run(name):
    tree = ast.parse((SETUP_DIR / name).read_text(encoding='utf-8'))
    too_new = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.Match)
    assert not [node for node in ast.walk(tree) if isinstance(node, too_new)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [function for function in functions if function.returns is not None]


@pytest.mark.parametrize('path', sorted(SETUP_DIR.glob('*.py')), ids=lambda path: path.stem)
def test_only_the_standard_library_is_imported(path):
    allowed = set(sys.stdlib_module_names) | {other.stem for other in SETUP_DIR.glob('*.py')}
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            assert {alias.name.split('.')[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split('.')[0] in allowed
