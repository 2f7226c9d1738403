"""Runs one command of the set-up: its output into a log file, how far it is onto the screen."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

NINJA_LINE = re.compile(r'^\s*\[(\d+)/(\d+)\]\s', re.MULTILINE)
LOG_TAIL_LINES = 40
LOG_TAIL_BYTES = 200_000
SECONDS_BETWEEN_REDRAWS = 0.5
SECONDS_BETWEEN_LOG_LINES = 20.0


class SetupError(Exception):
    """Something the user has to know about; the message says what to do next."""


class StatusLine:
    """One line that says what goes on: overwritten on a terminal, repeated rarely in a log."""

    def __init__(self, stream):
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._pause = SECONDS_BETWEEN_REDRAWS if self._is_terminal else SECONDS_BETWEEN_LOG_LINES
        self._last_shown = float('-inf') if self._is_terminal else time.monotonic()

    def update(self, text: str) -> None:
        """Show `text` if the last one was shown long enough ago."""
        if time.monotonic() - self._last_shown >= self._pause:
            columns = shutil.get_terminal_size().columns
            self._show(text[:columns - 1] if self._is_terminal else text + '\n')

    def finish(self, text: str | None = None) -> None:
        """End the line with `text`, or just clear it away."""
        if text is not None or self._is_terminal:
            self._show('' if text is None else text + '\n')

    def _show(self, text: str) -> None:
        self._last_shown = time.monotonic()
        self._stream.write(('\r\x1b[K' if self._is_terminal else '') + text)
        self._stream.flush()


def run_logged(command: list[str], title: str, log_path: Path, status: StatusLine, *,
               env: dict[str, str] | None = None) -> float:
    """Run `command`, append all its output to `log_path`, keep `status` up to date.

    Returns:
        Seconds it took.

    Raises:
        SetupError: It failed; the message holds the end of the log.
        KeyboardInterrupt: The user stopped it; the command and its children were stopped too.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(log_path, 'ab') as log:
        log.write(f'$ {shlex.join(command)}\n'.encode())
        log.flush()
        start = log.tell()
        # A session of its own, so that Ctrl-C comes to us alone and we stop all of it in order.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, env=env, start_new_session=True)
        try:
            while not _has_ended(process):
                status.update(f'{title}: {how_far(_output(log_path, start))}, '
                              f'{minutes(time.monotonic() - started)}')
        except BaseException:
            status.finish()
            _stop(process)
            raise
    seconds = time.monotonic() - started
    status.finish()
    if process.returncode != 0:
        tail = _output(log_path, start).splitlines()[-LOG_TAIL_LINES:]
        raise SetupError(
            f'{title}: failed after {minutes(seconds)} (exit code {process.returncode}). '
            f'The last lines of {log_path}:\n' + ''.join(f'  | {line}\n' for line in tail))
    return seconds


def how_far(output: str) -> str:
    """What a command has said of its progress: ninja's count of files, else its last line."""
    counted = NINJA_LINE.findall(output)
    if counted:
        return f'{counted[-1][0]} of {counted[-1][1]} files'
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:60] if lines else 'working'


def minutes(seconds: float) -> str:
    """Elapsed time, short: seconds below ten, else minutes with one decimal."""
    return f'{seconds:.0f} s' if seconds < 10 else f'{seconds / 60:.1f} min'


def _output(path: Path, start: int) -> str:
    """The end of what was written to a log from byte `start` on."""
    with open(path, 'rb') as file:
        file.seek(max(start, path.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode('utf-8', errors='replace')


def _has_ended(process: subprocess.Popen) -> bool:
    try:
        process.wait(timeout=SECONDS_BETWEEN_REDRAWS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen) -> None:
    """Ask first, so that pip removes its temporary folders; then insist."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=15)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
