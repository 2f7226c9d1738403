"""Runs one command of the set-up: output into a log file, progress on the screen."""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

from setup_progress import BuildProgress, StatusLine, minutes

LOG_TAIL_LINES = 40
REDRAW_SECONDS = 0.5


class SetupError(Exception):
    """Something the user has to know about; the message says what to do next."""


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
    progress = BuildProgress()
    tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
    started = time.monotonic()
    with open(log_path, 'a', encoding='utf-8') as log:
        log.write(f'$ {" ".join(command)}\n')
        # A session of its own, so that Ctrl-C comes to us alone and we stop all of it in order.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, errors='replace', env=env, start_new_session=True)
        reader = threading.Thread(
            target=_read_lines, args=(process.stdout, log, progress, tail), daemon=True)
        reader.start()
        try:
            while not _has_ended(process):
                status.update(f'{title}: {progress.describe(time.monotonic() - started)}')
        except BaseException:
            status.finish()
            _stop(process)
            reader.join(timeout=5)
            raise
        reader.join()
    seconds = time.monotonic() - started
    status.finish()
    if process.returncode != 0:
        raise SetupError(
            f'{title}: failed after {minutes(seconds)} (exit code {process.returncode}). '
            f'The last lines of {log_path}:\n' + ''.join(f'  | {line}' for line in tail))
    return seconds


def _read_lines(stream, log, progress: BuildProgress, tail: deque) -> None:
    for line in stream:
        log.write(line)
        log.flush()
        tail.append(line)
        progress.feed(line)


def _has_ended(process: subprocess.Popen) -> bool:
    try:
        process.wait(timeout=REDRAW_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen) -> None:
    """Ask first, so that pip removes its temporary folders; then insist."""
    for number, patience in ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
