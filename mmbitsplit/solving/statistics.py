"""What a method is given to fit a layer's codes to, from the positions of all processes."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmbitsplit.functional import center, layer_statistics
from mmbitsplit.functional.kernels.exact_sums import SumGrid
from mmbitsplit.functional.statistics import cancels, working_dtype
from mmbitsplit.methods import Method
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.positions import Rows
from mmbitsplit.structures import LayerGeometry, LayerStatistics, RowStatistics

# Inputs above which a layer is solved from its rows: the gram of more would be larger than they.
MOST_INPUTS_FOR_GRAM = 8192
EXACT_DEVICES = ('cpu', 'cuda')  # that have float64


def check_large_layers(method: Method, geometries: Mapping[str, LayerGeometry]) -> None:
    """Raises ``ValueError`` for layers that are too large for a method which needs sums."""
    if type(method).solve_rows is not Method.solve_rows \
            or type(method).candidates is not Method.candidates:
        return
    for name, geometry in geometries.items():
        if geometry.inputs_per_output > MOST_INPUTS_FOR_GRAM:
            raise ValueError(
                f"Layer '{name}' has {geometry.inputs_per_output} inputs of an output, and "
                f'{type(method).__name__} solves from sums of products alone (it has no '
                f'solve_rows), which are taken up to {MOST_INPUTS_FOR_GRAM}. Take another method, '
                f"or leave the layer in float with overrides=[dict(match='{name}', skip=True)].")


def collect_statistics(rows: Rows, lowest: int | Tensor | None, centred: bool, team: Team,
                       as_rows: bool = False) -> LayerStatistics | RowStatistics:
    """Returns sums of products, or for a very large layer the positions themselves.

    Args:
        rows: This process's positions, inputs as they enter the product.
        lowest: Given when the inputs are integers from here to 255 more: one for all, or
            (G, N, 1).
        centred: Whether means are taken out.
        team: Who holds the other positions.
        as_rows: The positions are asked for, however large the layer is.
    """
    if rows.x.shape[1] <= MOST_INPUTS_FOR_GRAM and not as_rows:
        return sum_products(rows, lowest, centred, team)
    if team.size > 1:
        rows = _gather_rows(rows, lowest, team)
    return RowStatistics(x=rows.x, y=rows.y, x_sum=rows.x.sum(-1), y_sum=rows.y.sum(-1),
                         count=rows.x.shape[-1], centred=centred, lowest=lowest)


def _gather_rows(rows: Rows, lowest: int | Tensor | None, team: Team) -> Rows:
    """All processes' positions in the order that one process alone would have them in."""
    # Integers travel as bytes.
    small = rows.x if lowest is None else (rows.x - lowest).to(torch.uint8)
    calls = [call for part in team.gather(Rows(small, rows.y, rows.calls).by_call())
             for call in part]
    calls.sort(key=lambda call: call[0])  # by batch; the calls of a batch stay in their order
    x = torch.cat([call.x for _, call in calls], -1).to(rows.x.dtype)
    return Rows(x if lowest is None else x.add_(lowest),
                torch.cat([call.y for _, call in calls], -1))


def sum_products(rows: Rows, lowest: int | Tensor | None, centred: bool, team: Team,
                 ) -> LayerStatistics:
    """Sums over all processes.

    Args:
        rows, lowest, team: As for ``collect_statistics``.
        centred: Whether means are taken out.

    On CPUs and CUDA devices without a rounding error, so that the sums are the same to the last
    bit however many processes share the work (``functional.exact_sums``).
    """
    dtype = working_dtype(rows.x)
    grid = _grid(rows.x, rows.y, lowest, team) if rows.x.device.type in EXACT_DEVICES else None
    statistics = _sums_in(dtype, rows, lowest, grid, team)
    if not centred:
        return statistics
    if cancels(statistics):  # rare, and twice the memory
        return center(_sums_in(torch.float64, rows, lowest, grid, team)).to(dtype)
    return center(statistics)


def _sums_in(dtype: torch.dtype, rows: Rows, lowest: int | Tensor | None, grid: SumGrid | None,
             team: Team) -> LayerStatistics:
    """Sums over all processes in a dtype."""
    statistics = layer_statistics(rows.x, rows.y, lowest=lowest, grid=grid,
                                  dtype=dtype if team.size == 1 else torch.float64)
    if team.size > 1:
        team.add_(statistics.gram, statistics.cross, statistics.y_sq, statistics.x_sum,
                  statistics.y_sum)
        statistics = replace(statistics, count=team.total(statistics.count)).to(dtype)
    return statistics


def _grid(x: Tensor, y: Tensor, lowest: int | Tensor | None, team: Team) -> SumGrid:
    """The same in every process."""
    largest = y.new_zeros(y.shape[0], y.shape[1], 1), x.new_zeros(1)
    if y.shape[-1]:
        largest = (torch.maximum(-y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)),
                   x.abs().amax().view(1) if lowest is None else largest[1])
    of_y, of_x = (torch.stack(values).amax(0) for values in zip(*team.gather(largest)))
    return SumGrid.of(of_y, of_x if lowest is None else None)
