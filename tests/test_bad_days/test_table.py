"""docs/bad_days.md and the tests of this folder name each other."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / 'docs/bad_days.md'


def names_here() -> set[str]:
    return {f'{path.name}::{node.name}' for path in HERE.glob('test_*.py')
            if path != Path(__file__) for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')}


def test_every_row_is_a_test_and_every_test_a_row():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith('| ')
            and not line.startswith('| What is tried')]
    named = [re.findall(r'`(test_\w+\.py::test_\w+)`', row) for row in rows]
    assert len(rows) > 30 and all(named)
    assert {name for names in named for name in names} == names_here()
