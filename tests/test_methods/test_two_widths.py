"""A method of two widths: its layers switch between them, each with its own scale and bias."""

from dataclasses import dataclass, replace

import pytest
import torch

from mmbitsplit.calibration import METHODS, calibrate, register_method
from mmbitsplit.functional import leading_planes
from mmbitsplit.methods.bitsplit import BitSplit
from mmbitsplit.structures import WeightSolution


@dataclass(frozen=True)
class TwoWidths(BitSplit):
    """Bit-split, and of its planes the leading ones with the scale of least error.

    Args:
        fewer: Width of those.
    """

    fewer: int = 3

    def solve(self, statistics, weight, num_bits):
        """See ``Method.solve``."""
        solved = super().solve(statistics, weight, num_bits)
        codes = leading_planes(solved.codes, num_bits, self.fewer)
        real = codes.to(statistics.gram)
        along = (statistics.cross * real).sum(-1)
        scale = along / ((real @ statistics.gram) * real).sum(-1).clamp(min=1e-30)
        return replace(solved, narrower={
            self.fewer: WeightSolution(codes, scale, statistics.y_sq - scale * along)})


@dataclass(frozen=True)
class Spoilt(TwoWidths):
    """Of useless scales at the narrower width."""

    def solve(self, statistics, weight, num_bits):
        """See ``Method.solve``."""
        solved = super().solve(statistics, weight, num_bits)
        narrow = solved.narrower[self.fewer]
        return replace(solved, narrower={self.fewer: replace(narrow, scale=narrow.scale * 50)})


@pytest.fixture(autouse=True)
def registered():
    register_method(TwoWidths)
    register_method(Spoilt)
    yield
    del METHODS['TwoWidths'], METHODS['Spoilt']


def test_a_model_switches_between_the_widths_of_its_layers(residual_net, images, make_spec,
                                                           run_model):
    wide, plain, batches = residual_net(), residual_net(), images(8)
    request = dict(weight=dict(num_bits=6), scope='blocks', activation=dict(num_bits=8))
    prepared, report = calibrate(wide, batches, make_spec(
        method=dict(type='TwoWidths', guard=False), **request), run=run_model)
    calibrate(plain, batches, make_spec(method=dict(type='BitSplit', guard=False), **request),
              run=run_model)

    def outputs(model):
        with torch.no_grad():
            return [torch.cat([y.flatten() for y in model(batch)]) for batch in batches]

    wanted, errors = outputs(residual_net()), {}
    for num_bits in (6, 3, 6, 3):
        for layer in prepared.layers.values():
            layer.use(num_bits)
        found = outputs(wide)
        errors.setdefault(num_bits, []).append(sum(
            float((a - b).square().sum()) for a, b in zip(found, wanted)))
        if num_bits == 6:  # as if there were no other width
            assert all(torch.equal(a, b) for a, b in zip(found, outputs(plain), strict=True))
    assert errors[6][0] == errors[6][1] < errors[3][0] == errors[3][1]
    energy = sum(float(y.var() * y.numel()) for y in wanted)
    assert errors[3][0] < 0.5 * energy
    for layer in prepared.layers.values():
        biases = [(layer.use(num_bits), layer.product_bias.clone())[1] for num_bits in (6, 3)]
        assert not torch.equal(*biases) and layer.weight_quantizer.nested == {3}
    assert all('can be switched to 3 bits: error' in row.notes[-1] for row in report.layers)


def test_the_guard_looks_at_every_width(residual_net, images, make_spec, run_model):
    """Rubbish at 3 bits becomes plain rounding to 3 bits, which looks at the weight alone."""
    spoilt, rounded = (calibrate(residual_net(), images(), make_spec(
        weight=dict(num_bits=bits), activation=dict(num_bits=None), scope='blocks',
        method=dict(type=method)), run=run_model)[0].layers
        for bits, method in ((6, 'Spoilt'), (3, 'MSE')))
    for name, layer in spoilt.items():
        layer.use(3)
        assert torch.equal(layer.codes, rounded[name].codes)
