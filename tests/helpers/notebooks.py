"""Runs a notebook of the repository as its reader would, on one thread."""

import os
from pathlib import Path

import pytest
from nbclient import NotebookClient

PROJECT = Path(__file__).resolve().parents[2]


def execute(notebook, folder: Path):
    """Runs all cells in a folder and returns the notebook, which now holds their outputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(
            filter(None, (str(PROJECT), os.environ.get('PYTHONPATH')))))
        patch.setenv('OMP_NUM_THREADS', '1')
        NotebookClient(notebook, timeout=300, resources={'metadata': {'path': folder}}).execute()
    return notebook
