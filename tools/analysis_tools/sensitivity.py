"""Quantizes each layer alone and tells what that does to the outputs and to the metric."""

from mmbitsplit.cli.sensitivity import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
