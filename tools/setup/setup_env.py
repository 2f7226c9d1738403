#!/usr/bin/env python3
"""Make the virtual environment and install everything this project runs on; ``make setup``.

Finished steps are remembered: a second run takes a second, an interrupted one goes on where it
stopped. Stdlib only. This file must parse on any Python 3, so that a too old one gets a sentence
instead of a syntax error; the modules beside it are written for the Python that is asked for.
"""

import os
import sys

from setup_versions import PYTHON_RANGE


def python_problem(found, executable):
    """Say what is wrong with this interpreter's version, or return None."""
    first, last = PYTHON_RANGE
    if first <= tuple(found[:2]) <= last:
        return None
    return (
        'Python {found} ({exe}) cannot run this project: Python {first} to {last} is needed.\n'
        'Install one of them (on Debian or Ubuntu: sudo apt-get install python3 python3-venv '
        'python3-dev)\nand name it, for example: make setup PYTHON=python3.11').format(
            found=dotted(found[:3]), exe=executable, first=dotted(first), last=dotted(last))


def dotted(version):
    """(3, 11) as "3.11"."""
    return '.'.join(str(part) for part in version)


def main():
    """Check the interpreter, then hand over to the modules that may use its syntax."""
    problem = python_problem(sys.version_info, sys.executable)
    if problem:
        sys.exit(problem)
    import setup_main
    return setup_main.main(sys.argv[1:], os.path.dirname(os.path.abspath(__file__)))


if __name__ == '__main__':
    sys.exit(main())
