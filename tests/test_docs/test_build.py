"""The documentation builds without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]


def test_the_pages_build_without_warnings(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html',
         '-d', str(tmp_path / 'doctrees'), 'docs', str(tmp_path / 'html')],
        cwd=PROJECT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    keys = (tmp_path / 'html/config_keys.html').read_text(encoding='utf-8')
    assert 'rows_per_layer' in keys and 'RoundToNearest' in keys
    reference = (tmp_path / 'html/api.html').read_text(encoding='utf-8')
    assert 'mmbitsplit.apis.quantize_model' in reference
    assert 'mmbitsplit.functional.solve_bitsplit' in reference
