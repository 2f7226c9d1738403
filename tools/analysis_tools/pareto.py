"""Finds the plans of a model with several widths that are worth having; nothing is calibrated."""

from mmbitsplit.cli.pareto import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
