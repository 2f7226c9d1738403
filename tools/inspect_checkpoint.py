"""Prints the plan and the sizes of a packed checkpoint, without building its model."""

import sys

from mmbitsplit.cli import inspect_checkpoint

if __name__ == '__main__':
    sys.exit(inspect_checkpoint.main())
