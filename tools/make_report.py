"""Makes report.html of a finished run again, from the files in its work directory."""

from mmbitsplit.cli.make_report import main
from mmbitsplit.engine.run.distributed import end_with

if __name__ == '__main__':
    end_with(main)
