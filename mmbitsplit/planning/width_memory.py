"""What measuring widths will hold in memory, estimated before anything is solved."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmbitsplit.models import DataFlow
from mmbitsplit.passes.free_memory import gb
from mmbitsplit.planning.width_bank import bytes_for
from mmbitsplit.planning.width_losses import shared_bytes
from mmbitsplit.planning.width_solutions import row_bytes
from mmbitsplit.solving.statistics import MOST_INPUTS_FOR_GRAM
from mmbitsplit.structures import CalibrationSpec, LayerGeometry, Widths

WEIGHT_BYTES = 4 + 1 + 4  # of a weight: float, code, what that stands for
GRAMS = 4  # of the largest layer that are alive at once, float64
ROW_COPIES = 3


@dataclass(frozen=True)
class WidthMemory:
    """Bytes that one process will hold beyond what it holds now.

    Args:
        bank: Solutions of all widths.
        weights: Of the layers that are put in, and of the plan that is installed.
        solving: Sampled positions of several layers, and sums of one.
        sharing: Outputs of the base model.
        running: Of the batch whose forward is running.
    """

    bank: int
    weights: int
    solving: int
    sharing: int
    running: int

    @property
    def total(self) -> int:
        """Most that is held at once."""
        return self.bank + self.weights + max(self.solving, self.sharing) + self.running

    def check(self, budget: float) -> None:
        """Raises ``ValueError`` where there is less; says what to do."""
        if self.total > budget:
            raise ValueError(
                f'Measuring widths would hold about {gb(self.total)} '
                f'({gb(self.bank)} of codes of all widths, {gb(self.weights)} of '
                f'weights, {gb(self.solving)} to solve layers, {gb(self.sharing)} of '
                f'outputs that plans share, {gb(self.running)} of the running forward); the '
                f'budget is {gb(budget)}. Set quantization.budget.widths or '
                'activation_widths to fewer, calibration.rows_per_layer or batch_size lower, or '
                'raise quantization.calibration.memory_budget (GB) if you know better.')


def estimate(flow: DataFlow, geometries: Mapping[str, LayerGeometry],
             choices: Mapping[str, Sequence[Widths]], calibration: CalibrationSpec,
             sizes: Sequence[float], judged: Sequence[float]) -> WidthMemory:
    """Estimates from one watched batch.

    Args:
        flow: What was seen of it.
        geometries: Of the planned layers.
        choices: Widths of each.
        calibration: Rows of a layer, and the budget that bounds what is kept.
        sizes: Of this process's batches, in units of the watched one.
        judged: Of those of them that plans are judged on; none where none are.
    """
    solving = 0
    for name, geometry in geometries.items():
        inputs = geometry.inputs_per_output
        rows = min(calibration.rows_per_layer, int(
            sum(flow.output_sizes[name]) * sum(sizes) / geometry.out_channels))
        gram = GRAMS * 8 * inputs if inputs <= MOST_INPUTS_FOR_GRAM else 0
        solving = max(solving, geometry.groups * inputs * (4 * ROW_COPIES * rows + gram))
    outputs = 4 * sum(sum(flow.output_sizes[name]) for name in geometries)
    return WidthMemory(
        bank=bytes_for(geometries, choices),
        weights=WEIGHT_BYTES * sum(math.prod(one.weight_shape) for one in geometries.values()),
        solving=row_bytes(calibration) + solving,
        sharing=min(shared_bytes(calibration), int(outputs * sum(judged))),
        running=int(flow.peak_bytes * max(sizes, default=0)))
