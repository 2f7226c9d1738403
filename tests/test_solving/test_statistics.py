"""What a method is given: the same from several processes as from one, sums or rows."""

from dataclasses import replace

import pytest
import torch
from thread_team import ThreadTeam, together
from torch import nn

from mmbitsplit.calibration import Team, build_method
from mmbitsplit.functional import center, layer_statistics
from mmbitsplit.functional.kernels.exact_sums import SumGrid, on_grid
from mmbitsplit.methods.bitsplit import BitSplit
from mmbitsplit.models import QuantizedLayer, layer_geometry
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.sampling import is_held_out
from mmbitsplit.solving import candidates, statistics
from mmbitsplit.solving.positions import Rows
from mmbitsplit.solving.solve_layer import solve_layer
from mmbitsplit.solving.statistics import collect_statistics
from mmbitsplit.structures import (
    ActivationSpec,
    LayerPlan,
    LayerStatistics,
    OutputPlan,
    RowStatistics,
    WeightSpec,
)

SUMS = ('gram', 'cross', 'y_sq', 'x_sum', 'y_sum')


def make_data(whole=True, inputs=12, positions=60, seed=0):
    """x (2, N, K) float32, y (2, 5, K)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 253, (2, inputs, positions), generator=generator).float()
    x = x if whole else x / 77
    return x, torch.randn(2, 5, positions, generator=generator) + 0.3


def shares(values, size):
    """Positions of each process; not equally many, and the last has none."""
    bounds = [0, 7, values.shape[-1], values.shape[-1]][:size] + [values.shape[-1]]
    return [values[..., first:last] for first, last in zip(bounds, bounds[1:])]


@pytest.fixture(params=[True, False], ids=['integers', 'real'])
def whole(request):
    return request.param


@pytest.fixture(params=[True, False], ids=['centred', 'raw'])
def centred(request):
    return request.param


@pytest.fixture
def rows_only(monkeypatch):
    """Every layer is too large for its gram."""
    monkeypatch.setattr(statistics, 'MOST_INPUTS_FOR_GRAM', 4)


def test_one_process_gives_its_sums(whole, centred):
    x, y = make_data(whole)
    found = collect_statistics(Rows(x, y), -3 if whole else None, centred, Team())
    grid = SumGrid.of(y.abs().amax(-1, keepdim=True), x.abs().amax().view(1))
    expected = layer_statistics(x.double() if whole else on_grid(x, grid.x), on_grid(y, grid.y))
    expected = center(expected) if centred else expected
    assert isinstance(found, LayerStatistics)
    for name in SUMS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.count == 60


@pytest.mark.parametrize('size', [1, 2])
def test_inputs_that_hardly_vary_about_a_large_mean_leave_true_sums(size):
    """Of 1030 inputs sums are float32; there the means would take all digits along."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(4, 16000, generator=generator)
    x = (200 + (torch.randn(1, 1030, 4, generator=generator) @ common).clamp(-2, 2)).round()
    y = torch.randn(1, 2, 16000, generator=generator)
    expected = center(layer_statistics(x.double(), y.double(), dtype=torch.float64))
    for found in together(size, lambda team: collect_statistics(
            Rows(x[..., team.rank::size], y[..., team.rank::size]), 0, True, team)):
        assert found.gram.dtype == torch.float32
        assert (found.gram - expected.gram).abs().max() < 1e-6 * expected.gram.abs().max()
        ridge = 0.03 * found.gram.diagonal(dim1=1, dim2=2).mean()
        torch.linalg.cholesky(found.gram + ridge * torch.eye(1030))


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('inputs', [12, 70, 1030], ids=['few', 'some', 'many'])
def test_sums_of_several_processes_are_those_of_one_to_the_last_bit(whole, centred, size, inputs):
    x, y = make_data(whole, inputs)
    if inputs > 12:
        x, y = x[:1], y[:1]
    lowest = -3 if whole else None
    alone = collect_statistics(Rows(x, y), lowest, centred, Team())
    parts = list(zip(shares(x, size), shares(y, size)))
    for found in together(size, lambda team: collect_statistics(Rows(*parts[team.rank]), lowest,
                                                              centred, team)):
        for name in SUMS:
            mine, theirs = getattr(found, name), getattr(alone, name)
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        assert found.count == 60


@pytest.mark.parametrize('inputs', [4, 5])
def test_the_number_of_inputs_decides_between_sums_and_rows(rows_only, inputs):
    found = collect_statistics(Rows(*make_data(inputs=inputs)), -3, True, Team())
    assert isinstance(found, LayerStatistics if inputs == 4 else RowStatistics)


@pytest.mark.parametrize('size', [1, 2, 3])
def test_rows_of_several_processes_are_those_of_one_in_its_order(rows_only, whole, centred, size):
    """Processes take turns with the batches, so that their rows must be sorted."""
    x, y = make_data(whole)
    before = x.clone(), y.clone()
    lowest = -3 if whole else None
    sizes = [7, 1, 20, 0, 2, 30]  # positions of each batch
    calls = [(batch, Rows(*part)) for batch, part in
             enumerate(zip(x.split(sizes, -1), y.split(sizes, -1)))]

    def work(team):
        mine = [calls[batch] for batch in range(team.rank, len(calls), size)]
        rows = Rows(torch.cat([part.x for _, part in mine], -1),
                    torch.cat([part.y for _, part in mine], -1),
                    tuple((batch, part.x.shape[-1]) for batch, part in mine))
        return collect_statistics(rows, lowest, centred, team)

    for found in together(size, work):
        assert isinstance(found, RowStatistics)
        assert torch.equal(found.x, x) and torch.equal(found.y, y)
        assert found.x.dtype == x.dtype
        assert torch.equal(found.x_sum, x.sum(-1)) and torch.equal(found.y_sum, y.sum(-1))
        assert (found.count, found.centred, found.lowest) == (60, centred, lowest)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@pytest.mark.parametrize('lowest', [0, -3, -128, -255])
@pytest.mark.parametrize('apart', [0, 5], ids=['one', 'by_input'])
def test_integers_travel_as_bytes_and_arrive_as_they_were(rows_only, lowest, apart):
    """All 256 of them, from one lowest or from one an input."""
    x = (torch.arange(512.0) % 256 + lowest).view(1, 8, 64)
    if apart:
        lowest = lowest + apart * torch.arange(8).view(1, 8, 1)
        x += apart * torch.arange(8.0).view(1, 8, 1)
    sent = []

    class Spy(ThreadTeam):
        def gather(self, value):
            sent.append(value)
            return [value, value]

    rows = Rows(x, torch.zeros(1, 2, 64), ((0, 64),))
    found = collect_statistics(rows, lowest, False, Spy(0, 2, None))
    (_, call), = sent[0]
    assert call.x.dtype == torch.uint8
    assert torch.equal(found.x, torch.cat([x, x], -1))


def make_layer(activation_bits, mode, strength=0.5):
    torch.manual_seed(0)
    module = nn.Conv2d(6, 8, 3, groups=2)
    layer = QuantizedLayer(layer_geometry(module), module.weight, module.bias)
    activation = ActivationSpec(activation_bits, mode=mode, strength=strength)
    return layer, LayerPlan('layer', WeightSpec(3), activation)


def make_captures(layer, count, silent=()):
    """By batch: what the sampler would have taken of a call of each."""
    captured = {}
    for batch in range(count):
        generator = torch.Generator().manual_seed(batch)
        positions = 0 if batch in silent else 20 + batch
        x = torch.randn(2, 27, positions, generator=generator).relu()
        held_out = is_held_out(batch, count, positions, 0.25)
        capture = CallCapture(
            patches=x, samples=torch.rand(6, 50, generator=generator), low=torch.zeros(6),
            high=torch.full((6,), 3.0), held_out=held_out, shape=(1, 6, 9, 9), batch=batch)
        captured[batch] = capture, layer.float_rows() @ x
    return captured


class TwoWidths(BitSplit):
    """Also solves for two bits."""

    def solve(self, statistics, weight, num_bits):
        return replace(super().solve(statistics, weight, num_bits),
                       narrower={2: super().solve(statistics, weight, 2)})


def solve_together(size, layer, plan, captured, owner=None, method=None):
    """Solves with the batches dealt out to threads."""
    owner = owner or (lambda batch: batch % size)

    def work(team):
        mine = [captured[batch] for batch in captured if owner(batch) == team.rank]
        return solve_layer(layer, plan, method or build_method({'type': 'BitSplit'}),
                           [capture for capture, _ in mine], [target for _, target in mine],
                           team if size > 1 else Team())
    return together(size, work)


def assert_same_solution(found, expected):
    for name in ('strength', 'guard_taken', 'rows', 'calls'):
        assert getattr(found, name) == getattr(expected, name)
    assert found.error == pytest.approx(expected.error, rel=1e-5)
    assert torch.equal(found.solution.codes, expected.solution.codes)
    assert torch.equal(found.solution.weight_scale, expected.solution.weight_scale)
    assert torch.equal(found.solution.bias, expected.solution.bias)


@pytest.mark.parametrize('mode', ['ecaq', 'per_tensor', 'per_channel'])
@pytest.mark.parametrize('size', [2, 3, 4])
def test_several_processes_solve_a_layer_as_one_would(size, mode):
    """Batches 3 and 7 are held out: of four processes one has nothing else, the others none."""
    layer, plan = make_layer(4, mode)
    captured = make_captures(layer, 8)
    alone, = solve_together(1, layer, plan, captured)
    for found in solve_together(size, layer, plan, captured):
        assert_same_solution(found, alone)


def test_several_processes_solve_every_width_as_one_would(monkeypatch):
    monkeypatch.setattr(candidates, 'CHANNELS', 2)  # so that the channels are shared out
    layer, plan = make_layer(4, 'ecaq')
    captured = make_captures(layer, 8)
    alone, = solve_together(1, layer, plan, captured, method=TwoWidths())
    for found in solve_together(2, layer, plan, captured, method=TwoWidths()):
        for one, other in zip((found.solution, *found.solution.narrower),
                              (alone.solution, *alone.solution.narrower), strict=True):
            assert torch.equal(one.codes, other.codes) and torch.equal(one.bias, other.bias)


@pytest.mark.parametrize('size', [2, 3])
def test_several_processes_choose_the_strength_that_one_would(size):
    layer, plan = make_layer(4, 'ecaq', 'auto')
    captured = make_captures(layer, 8)
    alone, = solve_together(1, layer, plan, captured)
    for found in solve_together(size, layer, plan, captured):
        assert_same_solution(found, alone)


@pytest.mark.parametrize('mode', ['ecaq', 'per_channel'])
def test_several_processes_solve_a_very_large_layer_as_one_would(rows_only, mode):
    layer, plan = make_layer(4, mode)
    captured = make_captures(layer, 8)
    alone, = solve_together(1, layer, plan, captured)
    for found in solve_together(2, layer, plan, captured):
        assert_same_solution(found, alone)


@pytest.mark.parametrize('bits', [4, None])
def test_a_process_whose_calls_saw_no_position(bits):
    """No box on any of its images."""
    layer, plan = make_layer(bits, 'ecaq')
    captured = make_captures(layer, 8, silent=(1, 3, 5, 7))
    alone, = solve_together(1, layer, plan, captured)
    for found in solve_together(2, layer, plan, captured):
        assert_same_solution(found, alone)


@pytest.mark.parametrize('bits', [4, None])
def test_a_process_none_of_whose_images_reaches_the_layer(bits):
    layer, plan = make_layer(bits, 'ecaq')
    captured = make_captures(layer, 8)
    alone, = solve_together(1, layer, plan, captured)
    for found in solve_together(2, layer, plan, captured, owner=lambda batch: 0):
        assert_same_solution(found, alone)


@pytest.mark.parametrize('rectified', [True, False])
@pytest.mark.parametrize('size', [2, 3])
def test_processes_agree_on_the_output_scale(size, rectified):
    """Silent batches leave the last of three processes without a position."""
    layer, plan = make_layer(4, 'per_tensor')
    plan = replace(plan, output=OutputPlan(8, rectified))
    captured = make_captures(layer, 8, silent=(2, 5))
    alone, = solve_together(1, layer, plan, captured)
    wanted = alone.solution.output_qparams
    first, *others = solve_together(size, layer, plan, captured)
    for found in (first, *others):
        assert_same_solution(found, alone)
        qparams = found.solution.output_qparams
        assert torch.equal(qparams.scale, first.solution.output_qparams.scale)
        assert (qparams.quant_min, qparams.quant_max) == (wanted.quant_min, wanted.quant_max)
        torch.testing.assert_close(qparams.scale, wanted.scale, rtol=0.02, atol=0)
        torch.testing.assert_close(qparams.zero_point, wanted.zero_point, rtol=0, atol=1)
        assert bool(qparams.zero_point.any()) <= (not rectified)
