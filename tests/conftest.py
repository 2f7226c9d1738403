"""The order of files, and where the plain files are that tests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / 'helpers'))


def pytest_collection_modifyitems(items):
    """Puts files with slow tests first.

    Processes that run files side by side (``make test``) then end together: a long file that comes
    last leaves the others idle.
    """
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)
