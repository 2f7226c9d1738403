"""The set-up's modules are plain files beside their script; the tests import them as it does."""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / 'tools' / 'setup'))
