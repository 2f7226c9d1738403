"""Runs the grid of one table of a paper and prints the table."""

import sys
from pathlib import Path

# The bench lies in the repository's root; the CIFAR configs import their network from benchmarks/.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.commands.paper_tables import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
