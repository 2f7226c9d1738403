"""Keeps the figures of finished runs in a small file of results/, for the tables of pages."""

from mmbitsplit.cli.store_results import main
from mmbitsplit.engine.distributed import end_with

if __name__ == '__main__':
    end_with(main)
