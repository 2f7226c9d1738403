"""Runs the repository's scripts in processes that need not import everything anew.

A run of a tool spends 6 seconds of a processor on imports, and 3 more on what its first calibration
brings in: torch's compiler, loops that Numba has compiled. A server does both once and forks a
process for each run, which is as fresh as one that a shell starts but for those. Tests of what is
imported start a tool themselves.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

SERVER = '''
import json, os, runpy, signal, sys

answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)  # some packages print when they are imported
from mmbitsplit.compat.torchvision_ops import install_import_hook
install_import_hook()  # as the set-up does at every start of an interpreter
import mmdet.apis, mmdet.utils, mmpretrain.utils
import plotly.graph_objects, setuptools, torch, yapf.yapflib.yapf_api
import mmbitsplit.engine, mmbitsplit.report
from mmbitsplit.apis import quantize_model

for package in mmdet, mmpretrain:
    package.utils.register_all_modules(init_default_scope=False)

with torch.random.fork_rng():  # what a first calibration brings in
    quantize_model(torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 1)), list(torch.randn(3, 2, 3, 8, 8)), {'weight': {'num_bits': 4}})

for line in sys.stdin:
    order = json.loads(line)
    if not (child := os.fork()):
        break
    answers.write(f'{child}\\n')
    answers.flush()
    answers.write(f'{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n')
    answers.flush()
else:
    sys.exit()
answers.close()
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
for number, name in enumerate((os.devnull, order['stdout'], order['stderr'])):
    os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
sys.stdin = open(0, closefd=False)
script, *sys.argv = [order['args'][0], *order['args']]
if script == '-c':
    code, sys.argv = sys.argv[1], ['-c', *sys.argv[2:]]
    exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})
elif script == '-m':
    module, sys.argv = sys.argv[1], sys.argv[1:]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')
'''


class RunningTool:
    """A run that goes on.

    Args:
        pid: Of its process, which leads a session of its own.
        log: The file that it writes to.
        answers: Of the server, who says how it ends.
    """

    def __init__(self, pid: int, log: Path, answers):
        self.pid, self.log, self._answers = pid, log, answers
        self.status: int | None = None

    def poll(self) -> int | None:
        """Exit status as ``subprocess`` has it; ``None`` while it runs."""
        if self.status is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.status

    def wait(self) -> int:
        """Waits for its end; returns the status."""
        if self.status is None:
            self.status = int(self._answers.readline())
        return self.status

    def kill(self) -> None:
        """Kills it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding='utf-8')


class ToolServer:
    """Started with the first run, ended by ``close``."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs ``python ARGS`` from the project's folder, one thread a process.

        Args:
            args: A script and its arguments; ``'-c'``, code and its arguments; or ``'-m'``, a
                module and its arguments.

        Returns:
            Exit status and output, as ``subprocess.run`` gives them.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ('stdout', 'stderr')]
            self._order(args, *files)
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(
                list(args), status, *(file.read_text(encoding='utf-8') for file in files))

    @contextlib.contextmanager
    def running(self, args: Sequence[str], log: Path) -> Iterator[RunningTool]:
        """As ``run``, while the caller goes on; what still runs at the end is killed.

        Args:
            args: See ``run``.
            log: Where both outputs go.
        """
        tool = RunningTool(self._order(args, log, log), log, self.process.stdout)
        try:
            yield tool
        finally:
            if tool.poll() is None:
                tool.kill()
                tool.wait()

    def _order(self, args: Sequence[str], stdout: Path, stderr: Path) -> int:
        """Has a process started; returns its id."""
        if self.process is None:
            path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get('PYTHONPATH'))))
            # Without a buffer, where a line would wait unseen by `poll`.
            self.process = subprocess.Popen(
                [sys.executable, '-c', SERVER], cwd=PROJECT, bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'})
        for file in {stdout, stderr}:
            file.write_text('')
        order = {'args': list(args), 'stdout': str(stdout), 'stderr': str(stderr)}
        self.process.stdin.write(json.dumps(order).encode() + b'\n')
        pid = self.process.stdout.readline()
        assert pid, 'the server has ended; does `import mmdet.apis` work?'
        return int(pid)

    def close(self) -> None:
        """Ends the server."""
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait(60)
            self.process.stdout.close()
