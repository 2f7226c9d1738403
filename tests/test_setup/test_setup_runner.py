"""How a command is run: its log, what is shown meanwhile, how it ends."""

import io
import sys
import time

import pytest
import setup_runner
from setup_runner import SetupError, StatusLine, how_far, minutes, run_logged

BUILD_OUTPUT = """\
Collecting onedl-mmcv==2.3.6
  Building wheel for onedl-mmcv (pyproject.toml): started
  [1/78] c++ -MMD -MF /tmp/build/assign_score_withk.o.d -c assign_score_withk.cpp
     89 |   bool view_replay_enabled_ : 1 = false;
  [37/78] c++ -MMD -MF /tmp/build/nms.o.d -c nms.cpp
  In file included from /tmp/include/ATen.h:4,
"""


@pytest.mark.parametrize('output, shown', [
    (BUILD_OUTPUT, '37 of 78 files'), ('', 'working'), ('\n \n', 'working'),
    ('Collecting a\n  Downloading torch-2.13.0.whl (888.1 MB)\n',
     'Downloading torch-2.13.0.whl (888.1 MB)'),
    ('something [1/2] in the middle', 'something [1/2] in the middle'), ('x' * 100, 'x' * 60)])
def test_progress_is_ninja_s_count_or_the_last_line(output, shown):
    assert how_far(output) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told to."""
    now = [0.0]
    monkeypatch.setattr(setup_runner.time, 'monotonic', lambda: now[0])
    return now


def test_a_log_gets_a_line_every_twenty_seconds(clock):
    stream = io.StringIO()
    status = StatusLine(stream)
    for second in range(61):
        clock[0] = float(second)
        status.update(f'at {second}')
        if second == 45:
            status.finish('done')  # starts the twenty seconds again
    assert stream.getvalue() == 'at 20\nat 40\ndone\n'


def test_a_terminal_shows_one_line_that_is_replaced_and_never_wraps(clock, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    stream = Terminal()
    status = StatusLine(stream)
    for second in range(3):
        clock[0] = float(second)
        status.update(f'at {second} ' + 'x' * 100)
    status.finish('done')
    text = stream.getvalue()
    assert text.count('\n') == 1 and text.endswith('done\n')
    assert [part[:4] for part in text.split('\r\x1b[K')[1:]] == ['at 0', 'at 1', 'at 2', 'done']
    assert all(len(part) <= 19 for part in text.split('\r\x1b[K'))


@pytest.mark.parametrize('seconds, shown', [(0.4, '0 s'), (9.4, '9 s'), (12, '0.2 min')])
def test_elapsed_time_is_short(seconds, shown):
    assert minutes(seconds) == shown


def test_a_failing_command_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / 'logs' / 'step.log'
    script = 'for i in $(seq 100); do echo line $i; done; exit 3'
    with pytest.raises(SetupError) as caught:
        run_logged(['sh', '-c', script], 'a step', log, StatusLine(io.StringIO()))
    message = str(caught.value)
    assert 'exit code 3' in message and str(log) in message
    assert '| line 100\n' in message and '| line 61\n' in message and '| line 60\n' not in message
    assert log.read_text().count('\n') == 101  # the command itself, then everything it said


def test_what_an_earlier_command_said_is_not_shown_again(tmp_path):
    log = tmp_path / 'step.log'
    assert run_logged(['echo', 'earlier'], 'a step', log, StatusLine(io.StringIO())) < 30
    with pytest.raises(SetupError) as caught:
        run_logged(['sh', '-c', 'echo later; exit 1'], 'a step', log, StatusLine(io.StringIO()))
    assert '| later' in str(caught.value) and '| earlier' not in str(caught.value)
    assert log.read_text() == "$ echo earlier\nearlier\n$ sh -c 'echo later; exit 1'\nlater\n"


def test_an_interrupted_command_is_asked_to_stop_and_its_children_too(tmp_path, monkeypatch):
    child, asked = tmp_path / 'child', tmp_path / 'asked'
    script = f"""
import pathlib, signal, subprocess
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
process = subprocess.Popen(['sleep', '60'])
pathlib.Path({str(child)!r}).write_text(f'{{process.pid}}.')
try:
    process.wait()
except KeyboardInterrupt:
    pathlib.Path({str(asked)!r}).touch()
"""

    def interrupt(self, text):
        if child.exists() and child.read_text().endswith('.'):
            raise KeyboardInterrupt

    monkeypatch.setattr(StatusLine, 'update', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_logged([sys.executable, '-c', script], 'a step', tmp_path / 'log',
                   StatusLine(io.StringIO()))
    assert asked.exists()
    deadline = time.monotonic() + 10
    while _runs(child.read_text()[:-1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child.read_text()[:-1])


def _runs(process):
    try:
        with open(f'/proc/{process}/stat') as file:
            return file.read().rsplit(') ', 1)[1][0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False
