"""Writes the model card (README.md) of a finished run, and pushes it to the Hub if asked."""

from mmbitsplit.cli.card import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
