"""What is slow to import, or not always there, waits until it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LATE = ('numba', 'scipy', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'greenlet', 'triton', 'rich')


def loaded_by(statement: str) -> set[str]:
    """Top-level names that a statement has imported, in a process of its own."""
    code = f'{statement}\nimport sys; print(*{{name.split(".")[0] for name in sys.modules}})'
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                            text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize('statement', [
    'import mmbitsplit',
    'import mmbitsplit.functional, mmbitsplit.calibration, mmbitsplit.apis.quantize_model'])
def test_importing_loads_nothing_slow(statement):
    loaded = loaded_by(statement)
    assert 'mmbitsplit' in loaded
    assert not loaded & set(LATE)
