"""Which units of a pass are solved."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.passes.unit_evidence import UnitEvidence
from mmbitsplit.passes.unit_module import input_of
from mmbitsplit.structures import Unit

STATION = '<unit> '  # before a unit's name, where batches wait for it


@dataclass
class UnitProgress:
    """How far the units are.

    Args:
        evidence: By name, of units that are still to be solved.
        changed: Solved ones whose layers were solved anew together.
        finished: All solved ones.
    """

    evidence: dict[str, UnitEvidence] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)


@dataclass
class UnitsInside:
    """Units whose calls are all inside one owner, while one batch runs it again and again.

    Args:
        units: Those that are not solved yet.
        progress: Of all units.
        inputs: By unit, true inputs of its calls, from the run that found those of its first
            layer.
        noted: By unit and call, the inputs that the last run knew.
    """

    units: tuple[Unit, ...] = ()
    progress: UnitProgress = field(default_factory=UnitProgress)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    noted: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def layers(self) -> set[str]:
        """Layers whose codes may still change."""
        return {name for unit in self.units if unit.name not in self.progress.finished
                for name in unit.layers}

    def note(self, name: str, index: int, args: tuple, kwargs: dict) -> None:
        """Keeps the input of a call, if it is known."""
        x = input_of(args, kwargs)
        if x is not None and not bool(torch.isnan(x.sum())):
            self.noted.setdefault(name, {})[index] = x.clone()

    def freeze(self, first_layers: set[str]) -> None:
        """Takes what was noted for the inputs of units with these first layers."""
        for unit in self.units:
            if unit.layers[0] in first_layers:
                calls = self.noted.get(unit.name, {})
                self.inputs[unit.name] = [calls[index] for index in sorted(calls)]

    def solve(self, solved: Callable[[str], bool], arrive: Callable[[dict[str, Any]], None],
              ) -> list[str]:
        """Waits until units whose layers are solved are solved, too.

        Args:
            solved: Whether a layer is.
            arrive: Hands inputs to the scheduler and sleeps.

        Returns:
            Layers whose codes have changed.
        """
        renewed: list[str] = []
        for unit in self.units:
            if unit.name not in self.progress.finished and all(map(solved, unit.layers)):
                arrive({STATION + unit.name: self.inputs.pop(unit.name, [])})
                if unit.name in self.progress.changed:
                    renewed += unit.layers
        return renewed
