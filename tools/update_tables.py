"""Writes the marked tables of README.md and configs/, and the metafiles, from results/."""

from mmbitsplit.cli.update_tables import main
from mmbitsplit.engine.distributed import end_with

if __name__ == '__main__':
    end_with(main)
