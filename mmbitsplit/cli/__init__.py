"""The command line: a module a command, each also a script of ``tools/``.

Importing it has a command's threads wait without spinning. OpenMP reads its settings once, when
torch loads it, so whatever starts a process here (also in ``tools/`` and ``benchmarks/``) imports
this package before torch.
"""

import os
from collections.abc import MutableMapping


def wait_passively(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let idle OpenMP threads sleep, unless the user chose how they wait.

    Spinning ones take the cores from other processes: beside one that is busy, the same work took
    1.7 s instead of 2.7 s.

    Args:
        environ: The process's environment, which the OpenMP runtime reads.
    """
    environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


wait_passively()
