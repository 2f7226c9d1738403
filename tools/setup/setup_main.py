"""Command line of the set-up, and what it says."""

import argparse
import fcntl
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import setup_checks as checks
import setup_versions as versions
from setup_runner import SetupError, StatusLine
from setup_steps import Options, SetupRun, normalize_requirement


def main(arguments: list[str], script_dir: str) -> int:
    """Run the set-up.

    Returns:
        Exit code: 0 ready, 1 failed or something is missing, 130 interrupted.
    """
    args = parse_arguments(arguments)
    project = Path(script_dir).parents[1]
    options = Options(
        project=project,
        venv=(project / args.venv).resolve(),
        torch=normalize_requirement('torch', args.torch) or versions.TORCH,
        torchvision=normalize_requirement('torchvision', args.torchvision),
        mmcv_device=args.mmcv_device)
    # Both, also where a background job was started with Ctrl-C ignored: a child would inherit that
    # and pip could not be asked to clean up.
    signal.signal(signal.SIGINT, _raise_interrupt)
    signal.signal(signal.SIGTERM, _raise_interrupt)
    status = StatusLine(sys.stdout)
    try:
        if args.missing_apt_packages:
            run = SetupRun(options, status)
            problems = checks.find_problems(options.venv, run.unfinished())
            print(' '.join(checks.apt_packages(problems)))
            return 0
        return set_up(options, status, check_only=args.check)
    except SetupError as error:
        status.finish()
        print(f'\nset-up: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        status.finish()
        print('\nset-up: interrupted. What is finished stays; run the same command to go on.',
              file=sys.stderr)
        return 130


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options; empty strings, as make passes them for unset variables, mean the default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--venv', default='.venv', help='the virtual environment (%(default)s)')
    parser.add_argument('--torch', default='', metavar='VERSION',
                        help=f'torch to install, a version or a requirement ({versions.TORCH})')
    parser.add_argument('--torchvision', default='', metavar='VERSION',
                        help='torchvision to install (the one that fits torch)')
    parser.add_argument('--mmcv-device', default='auto', choices=('auto', 'cpu'),
                        help='cpu: compile onedl-mmcv without CUDA even if a GPU is there')
    parser.add_argument('--check', action='store_true', help='only say what the machine lacks')
    parser.add_argument('--missing-apt-packages', action='store_true',
                        help='only print the Debian packages the machine lacks')
    return parser.parse_args(arguments)


def set_up(options: Options, status: StatusLine, *, check_only: bool = False) -> int:
    """Check the machine, then do what is not done yet."""
    run = SetupRun(options, status)
    todo = run.unfinished()
    if 'torch' not in todo:
        run.check_torch_unchanged()
    if not todo and not check_only:
        print(f'{ready_text(run)} Nothing to do.')
        return 0
    problems = checks.find_problems(options.venv, todo)
    if problems:
        print(checks.describe(problems), file=sys.stderr)
        return 1
    if check_only:
        print('This machine has what the set-up needs.')
        return 0
    with exclusive(options.venv, status):
        run = SetupRun(options, status)  # another set-up may have finished while we waited
        announce(run)
        run.run()
    print(ready_text(run))
    return 0


def announce(run: SetupRun) -> None:
    """Say what is about to happen and how long it may take."""
    todo = run.unfinished()
    print(f'Setting up {shown_path(run)} with {run.options.torch}; '
          f'to do: {", ".join(todo) or "nothing"}.')
    if 'onedl-mmcv' in todo:
        print('onedl-mmcv is compiled here: about 2 minutes on 2 cores (10 or more with CUDA), '
              'unless a wheel was kept from an earlier time.')
    if 'torch' in todo:
        for note in checks.notes(run.options.venv):
            print(note)
    sys.stdout.flush()


def ready_text(run: SetupRun) -> str:
    """One sentence for the end."""
    return f'The environment {shown_path(run)} is ready (torch {run.state.torch}).'


def shown_path(run: SetupRun) -> str:
    """The environment's path as short as it can be said."""
    path = os.path.relpath(run.options.venv)
    return str(run.options.venv) if path.startswith('..') else path


@contextmanager
def exclusive(venv: Path, status: StatusLine):
    """Keep a second set-up of the same environment waiting, for instance under two makes."""
    venv.mkdir(parents=True, exist_ok=True)
    with open(venv / 'mmbitsplit-setup.lock', 'w', encoding='ascii') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            status.finish('another set-up of this environment is running; waiting for it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _raise_interrupt(number, frame):
    raise KeyboardInterrupt
