"""Chooses widths layer by layer for several budgets from one measurement; no metric needed."""

from mmbitsplit.cli.plan import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
