"""Splits a checkpoint of several widths into a base file and residual files, or joins them."""

from mmbitsplit.cli.split import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
