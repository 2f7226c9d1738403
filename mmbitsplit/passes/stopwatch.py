"""Adds up where the time of a calibration goes."""

import time
from collections import defaultdict
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name. On a GPU work is queued, and a name has only what it waited for."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str):
        """Times what is inside; not nested in itself under the same name."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
