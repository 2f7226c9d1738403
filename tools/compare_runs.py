"""Puts several runs into one table and one plot: Markdown, CSV and a page."""

from mmbitsplit.cli.compare_runs import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
