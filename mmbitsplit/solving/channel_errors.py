"""How far each output channel of a solved layer is from the float layer's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.capture import CallCapture
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.input_scales import Candidate
from mmbitsplit.solving.output_scales import layer_outputs, product_rows
from mmbitsplit.structures import LayerSolution


def channel_errors(layer: QuantizedLayer, solution: LayerSolution,
                   captures: Sequence[CallCapture], targets: Sequence[Tensor], team: Team,
                   ) -> Tensor:
    """Mean squared error of each channel on positions that the layer was not fitted to.

    Args:
        layer: The layer, for its geometry and float bias.
        solution: Codes, scales, bias and input quantization.
        captures: Of this process's calls.
        targets: (G, M, K) float outputs without bias at the same positions.
        team: Who has the other calls.

    Returns:
        (out_channels,) float64, the same in every process; of all positions where none are held
        out.
    """
    geometry, bias = layer.geometry, layer.float_weights().bias
    apart = any(team.gather(any(bool(capture.held_out.any()) for capture in captures)))
    candidate, found = Candidate(solution.qparams), []
    weight = product_rows(solution, geometry, captures[0].patches) if captures else None
    for capture, target in zip(captures, targets):
        chosen = capture.held_out if apart else slice(None)
        y = target[..., chosen].flatten(0, 1)
        if bias is not None:
            y = y + bias.detach().to(y).unsqueeze(1)
        outputs = layer_outputs(weight, solution.bias,
                                candidate.inputs(capture.patches[..., chosen], geometry))
        found.append((capture.batch, (outputs - y).double().square().sum(1).cpu(), y.shape[1]))
    calls = sorted((call for part in team.gather(found) for call in part),
                   key=lambda call: call[0])  # one order of addition, whoever has them
    total = torch.zeros(geometry.out_channels, dtype=torch.float64)
    for _, squares, _ in calls:
        total += squares
    return total / max(1, sum(count for _, _, count in calls))
