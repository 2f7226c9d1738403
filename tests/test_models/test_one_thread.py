"""A forward that calls its layers from other threads is refused in words."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model


class Threaded(nn.Module):
    """Calls one of its layers in a thread, on all inputs or on wide ones alone."""

    def __init__(self, pool: bool, always: bool):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.pool, self.always = pool, always

    def forward(self, x):
        x = torch.relu(self.a(x))
        if not self.always and len(x) < 20:
            return self.c(self.b(x))
        if self.pool:
            with ThreadPoolExecutor(1) as pool:
                return self.c(pool.submit(self.b, x).result())
        found = []
        thread = threading.Thread(target=lambda: found.append(self.b(x)))
        thread.start()
        thread.join()
        return self.c(found[0])


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('always', [True, False])  # while watching, or in a later batch
@pytest.mark.parametrize('pool', [True, False])
def test_layers_called_from_another_thread_are_named(pool, always):
    model = Threaded(pool, always)
    batches = [torch.randn(10, 8), torch.randn(10, 8), torch.randn(30, 8)]
    with pytest.raises(ValueError, match=r"'b' is called from another thread.*instead of starting"):
        quantize_model(model, batches)
    assert isinstance(model.b, nn.Linear)
