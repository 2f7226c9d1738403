"""What is shown while a long step runs."""

import io

import pytest
from setup_progress import BuildProgress, StatusLine, minutes

BUILD_OUTPUT = """\
Collecting onedl-mmcv==2.3.6
  Downloading onedl_mmcv-2.3.6.tar.gz (515 kB)
  Preparing metadata (pyproject.toml): started
Building wheels for collected packages: onedl-mmcv
  Building wheel for onedl-mmcv (pyproject.toml): started
  building 'mmcv._ext' extension
  [1/78] c++ -MMD -MF /tmp/build/assign_score_withk.o.d -c assign_score_withk.cpp
  In file included from /tmp/include/ATen.h:4,
     89 |   bool view_replay_enabled_ : 1 = false;
  [37/78] c++ -MMD -MF /tmp/build/nms.o.d -c nms.cpp
"""


def feed(text):
    progress = BuildProgress()
    for line in text.splitlines(keepends=True):
        progress.feed(line)
    return progress


def test_files_of_the_build_are_counted():
    assert feed(BUILD_OUTPUT).describe(186.0) == '37 of 78 files, 3.1 min'


def test_units_of_several_files_are_counted_as_such():
    line = '  [1/3] c++ -MMD -MF /tmp/mmbitsplit_unit_1.o.d -c /tmp/mmbitsplit_unit_1.cpp -o x.o\n'
    assert feed(line).describe(40.0) == '1 of 3 units, 0.7 min'


def test_after_the_build_the_count_is_gone():
    done = feed(BUILD_OUTPUT + '  Building wheel for onedl-mmcv (pyproject.toml): finished with '
                "status 'done'\n")
    assert done.describe(600.0) == 'installing, 10.0 min'


@pytest.mark.parametrize('line, shown', [
    ('  Downloading torch-2.13.0.whl (888.1 MB)', 'downloading torch-2.13.0.whl (888.1 MB), 3 s'),
    ('  Downloading six-1.17.0-none-any.whl', 'downloading six-1.17.0-none-any.whl, 3 s'),
    ('Collecting numpy>=1.21', 'looking up numpy>=1.21'),
    ('Processing /some/where/numpy-2.2.6.whl (from onedl-mmcv)', 'looking up numpy-2.2.6.whl'),
    ('  Building wheel for onedl-mmcv (pyproject.toml): started', 'compiling onedl-mmcv'),
    ('Installing collected packages: a, b', 'installing'),
    ('something else [1/2] in the middle', 'working'),
])
def test_pip_lines_become_short_phrases(line, shown):
    assert feed(line).describe(3.0).startswith(shown)


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_log_gets_a_line_every_twenty_seconds():
    clock, stream = Clock(), io.StringIO()
    status = StatusLine(stream, is_terminal=False, clock=clock)
    for second in range(61):
        clock.now = float(second)
        status.update(f'at {second}')
    assert stream.getvalue() == 'at 20\nat 40\nat 60\n'


def test_a_finished_step_starts_the_twenty_seconds_again():
    clock, stream = Clock(), io.StringIO()
    status = StatusLine(stream, is_terminal=False, clock=clock)
    clock.now = 15.0
    status.finish('done')
    clock.now = 30.0
    status.update('too early')
    assert stream.getvalue() == 'done\n'


def test_a_terminal_shows_one_line_that_is_replaced():
    clock, stream = Clock(), io.StringIO()
    status = StatusLine(stream, is_terminal=True, clock=clock)
    for second in range(3):
        clock.now = float(second)
        status.update(f'at {second}')
    status.finish('done')
    text = stream.getvalue()
    assert text.count('\n') == 1 and text.endswith('done\n')
    assert text.split('\r\x1b[K')[1:] == ['at 0', 'at 1', 'at 2', 'done\n']


def test_a_line_never_wraps(monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    stream = io.StringIO()
    StatusLine(stream, is_terminal=True).update('x' * 100)
    assert stream.getvalue() == '\r\x1b[K' + 'x' * 19


@pytest.mark.parametrize('seconds, shown', [(0.4, '0 s'), (9.4, '9 s'), (12, '0.2 min')])
def test_elapsed_time_is_short(seconds, shown):
    assert minutes(seconds) == shown
