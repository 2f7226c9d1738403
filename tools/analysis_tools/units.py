"""Divides a config's model into the parts that are reconstructed together, and prints them."""

from mmbitsplit.cli.units import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
