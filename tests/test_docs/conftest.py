"""Makes the extensions and the pictures' scripts importable, as Sphinx does."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / 'docs'


@pytest.fixture(autouse=True)
def docs_on_the_path(monkeypatch):
    """``docs/_ext`` and ``docs/pictures``."""
    monkeypatch.setattr(sys, 'path', [str(DOCS / '_ext'), str(DOCS / 'pictures'), *sys.path])
