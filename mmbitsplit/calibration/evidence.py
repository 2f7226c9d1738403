"""What a method is given to fit a layer's codes to, from the positions of all processes."""

from dataclasses import replace

import torch
from torch import Tensor

from mmbitsplit.calibration.team import Team
from mmbitsplit.functional import center, layer_statistics
from mmbitsplit.structures import LayerStatistics, RowStatistics

# Inputs above which a layer is solved from its rows: the gram of more would be larger than they.
MOST_INPUTS_FOR_GRAM = 8192


def collect_evidence(x: Tensor, y: Tensor, lowest: int | None, centred: bool, team: Team,
                     ) -> LayerStatistics | RowStatistics:
    """Returns sums of products, or for a very large layer the positions themselves.

    Args:
        x: (G, N, K) what enters the product at this process's positions.
        y: (G, M, K) float outputs there.
        lowest: Given when x holds integers from here to 255 more.
        centred: Whether means are taken out.
        team: Who holds the other positions.
    """
    if x.shape[1] <= MOST_INPUTS_FOR_GRAM:
        return sum_products(x, y, lowest, centred, team)
    if team.size > 1:
        # Integers travel as bytes.
        small = x if lowest is None else (x - lowest).to(torch.uint8)
        parts = team.gather((small, y))
        x = torch.cat([part for part, _ in parts], -1).to(x.dtype)
        x = x if lowest is None else x.add_(lowest)
        y = torch.cat([part for _, part in parts], -1)
    return RowStatistics(x=x, y=y, x_sum=x.sum(-1), y_sum=y.sum(-1), count=x.shape[-1],
                         centred=centred, lowest=lowest)


def sum_products(x: Tensor, y: Tensor, lowest: int | None, centred: bool, team: Team,
                 ) -> LayerStatistics:
    """Sums over all processes; arguments as for ``collect_evidence``."""
    statistics = layer_statistics(x, y, lowest=lowest)
    if team.size > 1:
        team.add_(statistics.gram, statistics.cross, statistics.y_sq, statistics.x_sum,
                  statistics.y_sum)
        statistics = replace(statistics, count=team.total(statistics.count))
    return center(statistics) if centred else statistics
