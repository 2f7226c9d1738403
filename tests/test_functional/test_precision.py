"""Switches that let float32 be computed in less are off inside and back afterwards."""

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import calibrate
from mmbitsplit.functional.kernels.precision import full_float32
from mmbitsplit.models import watch
from mmbitsplit.structures import QuantSpec

backends = torch.backends
NEW = ([backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv,
        backends.mkldnn.matmul] if hasattr(backends.cuda.matmul, 'fp32_precision') else [])
needs_new = pytest.mark.skipif(not NEW, reason='this torch has no fp32_precision')


def reduced() -> list[bool]:
    """Of each switch, whether float32 is computed in less."""
    seen = [torch.get_float32_matmul_precision() != 'highest', backends.cudnn.allow_tf32]
    return seen + [switch.fp32_precision in ('tf32', 'bf16') for switch in NEW]


@pytest.fixture(autouse=True)
def as_before():
    """Leaves the process as a fresh one has it."""
    yield
    torch.set_float32_matmul_precision('highest')
    backends.cudnn.allow_tf32 = True
    for switch in NEW[3:]:
        switch.fp32_precision = 'none'


@pytest.mark.parametrize('matmul', ['highest', 'high', 'medium'])
@pytest.mark.parametrize('convolutions', [True, False])
def test_everything_is_full_inside_and_as_before_afterwards(matmul, convolutions):
    torch.set_float32_matmul_precision(matmul)
    backends.cudnn.allow_tf32 = convolutions
    before = reduced()
    with full_float32():
        assert not any(reduced())
    assert reduced() == before
    assert torch.get_float32_matmul_precision() == matmul


@needs_new
def test_switches_that_the_older_ones_cannot_say():
    backends.mkldnn.conv.fp32_precision = 'bf16'
    backends.cudnn.conv.fp32_precision = 'ieee'  # rnn is left in TF32
    with full_float32():
        assert not any(switch.fp32_precision in ('tf32', 'bf16') for switch in NEW)
    assert backends.mkldnn.conv.fp32_precision == 'bf16'
    assert backends.cudnn.conv.fp32_precision == 'ieee'
    assert backends.cudnn.rnn.fp32_precision == 'tf32'


def test_an_error_inside_leaves_them_as_before():
    torch.set_float32_matmul_precision('medium')
    before = reduced()
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert reduced() == before


class Recorder(nn.Module):
    """Notes the switches in every forward."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.seen = []

    def forward(self, x):
        self.seen.append(reduced())
        return self.layers(x)


def test_models_are_watched_and_calibrated_in_full():
    torch.set_float32_matmul_precision('medium')
    model, batches = Recorder().eval(), [torch.randn(32, 8) for _ in range(2)]
    watch(model, lambda: model(batches[0]))
    calibrate(model, batches, QuantSpec(), run=lambda model, batch: model(batch))
    assert len(model.seen) >= 5 and not any(map(any, model.seen))
    assert torch.get_float32_matmul_precision() == 'medium'
