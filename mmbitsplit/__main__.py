"""``python -m mmbitsplit``: the same as the console command ``mmbitsplit``."""

from mmbitsplit.cli.main import start

if __name__ == '__main__':
    start()
