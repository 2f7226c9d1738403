"""Evaluates a checkpoint by its config, such as quantized_config.py with quantized.pth."""

from mmbitsplit.cli.test import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
