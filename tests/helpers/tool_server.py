"""Runs the repository's scripts in processes that need not import everything anew.

A run of a tool spends 6 seconds of a processor on imports. A server imports them once and forks a
process for each run, which is as fresh as one that a shell starts but for those imports. Tests of
what is imported, and those that kill a tool, start it themselves.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

SERVER = '''
import json, os, runpy, sys

answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)  # some packages print when they are imported
from mmbitsplit.compat.torchvision_ops import install_import_hook
install_import_hook()  # as the set-up does at every start of an interpreter
import mmdet.apis, mmdet.models, mmpretrain.models
import mmbitsplit.apis, mmbitsplit.engine

for line in sys.stdin:
    order = json.loads(line)
    if not (child := os.fork()):
        break
    answers.write(f'{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n')
    answers.flush()
else:
    sys.exit()
answers.close()
for number, name in enumerate((os.devnull, order['stdout'], order['stderr'])):
    os.dup2(os.open(name, os.O_RDWR), number)
sys.stdin = open(0, closefd=False)
script, *sys.argv = [order['args'][0], *order['args']]
if script == '-c':
    code, sys.argv = sys.argv[1], ['-c', *sys.argv[2:]]
    exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})
else:
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')
'''


class ToolServer:
    """Started with the first run, ended by ``close``."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs ``python ARGS`` from the project's folder, one thread a process.

        Args:
            args: A script and its arguments, or ``'-c'``, code and its arguments.

        Returns:
            Exit status and output, as ``subprocess.run`` gives them.
        """
        if self.process is None:
            path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get('PYTHONPATH'))))
            self.process = subprocess.Popen(
                [sys.executable, '-c', SERVER], cwd=PROJECT, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'})
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder, name) for name in ('stdout', 'stderr')}
            for file in files.values():
                file.touch()
            order = {'args': list(args), **{name: str(file) for name, file in files.items()}}
            self.process.stdin.write(json.dumps(order) + '\n')
            self.process.stdin.flush()
            status = self.process.stdout.readline()
            assert status, 'the server has ended; does `import mmdet.apis` work?'
            return subprocess.CompletedProcess(list(args), int(status), *(
                file.read_text(encoding='utf-8') for file in files.values()))

    def close(self) -> None:
        """Ends the server."""
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait(60)
            self.process.stdout.close()
