"""Layers must be called from the thread that runs the model: all that looks at them is there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OneThread:
    """Remembers layers called from other threads, whose errors do not reach the caller."""

    def __init__(self):
        self.thread, self.elsewhere = threading.get_ident(), None

    def check(self, layer: str) -> None:
        """Raises ``RuntimeError`` in the thread that calls a layer, if it is another one."""
        if threading.get_ident() != self.thread:
            self.elsewhere = self.elsewhere or layer
            raise RuntimeError(f"Layer '{layer}' is called from another thread.")

    @contextmanager
    def around(self) -> Iterator[None]:
        """Around a run of the model.

        Raises:
            ValueError: A layer was called from another thread.
        """
        try:
            yield
        except Exception as error:
            if self.elsewhere is None:
                raise
            raise self._refused() from error
        if self.elsewhere is not None:
            raise self._refused()

    def _refused(self) -> ValueError:
        return ValueError(
            f"Layer '{self.elsewhere}' is called from another thread than the one that runs the "
            'model. Calibration follows one thread: have the forward call its layers itself '
            'instead of starting threads or a pool (a switch of the model, or a `run` that calls '
            'its parts one after another).')
