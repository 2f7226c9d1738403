"""The order of files, what no test may leave behind, and where files are that tests share."""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / 'helpers'))

# The same examples in every run, so that a test fails for the change that broke it. To look for
# others: `make test PYTEST_ARGS='--hypothesis-profile=default'`.
settings.register_profile('repeatable', derandomize=True, database=None)
settings.load_profile('repeatable')


def pytest_collection_modifyitems(items):
    """Puts files with slow tests first.

    Processes that run files side by side (``make test``) then end together: a long file that comes
    last leaves the others idle.
    """
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope='session')
def tool_server():
    """Runs tools without importing everything anew; one server for all tests of this process."""
    from tool_server import ToolServer

    server = ToolServer()
    yield server
    server.close()


@pytest.fixture(scope='module', autouse=True)
def same_chance_for_a_file():
    """Random numbers of fixtures do not depend on the files that ran before in this process."""
    _start_chance()


@pytest.fixture(autouse=True)
def same_chance_for_a_test():
    """A test draws the same random numbers alone, in its file, and in any process."""
    _start_chance()


def _start_chance():
    random.seed(0)
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed(0)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(0)


@pytest.fixture(autouse=True)
def thread_as_it_was():
    """No test leaves grad mode, autocast, default dtype or modes of torch other than they were.

    Otherwise a test that comes later fails for a reason that it does not show.
    """
    if 'torch' not in sys.modules:  # tests of the set-up alone run without it
        yield
        return
    from mmbitsplit.passes.thread_state import ThreadState

    before = ThreadState.now()
    yield
    after = ThreadState.now()
    if after != before:
        before.restore()
        assert after == before
