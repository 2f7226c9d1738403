"""Learns layers at every width by methods that solve units, each layer a unit of its own."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from mmbitsplit.methods import Method
from mmbitsplit.methods.unit_problem import UnitCall
from mmbitsplit.models import PreparedModel, apply, last_layers
from mmbitsplit.models.layers.streams import streams_through
from mmbitsplit.passes.float_units import taking_units
from mmbitsplit.passes.importance import ImportancePass
from mmbitsplit.passes.unit_decisions import UnitDecisions
from mmbitsplit.passes.unit_evidence import Collection, UnitEvidence
from mmbitsplit.passes.unit_exchange import gather_calls
from mmbitsplit.passes.unit_module import UnitModule
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.units import find_units
from mmbitsplit.planning.width_bank import Banked
from mmbitsplit.solving.model_loss import usual_kind
from mmbitsplit.solving.solve_unit import UnitLayer, solve_unit
from mmbitsplit.structures import LayerPlan, OverrideSpec, Unit, Widths

Rows = dict[str, dict[Widths, Banked]]


@dataclass
class UnitLearner:
    """Goes on from layers that have been solved, on what the float model gives them.

    A unit of several layers would make what comes of a layer depend on the widths of others, so
    that each layer is learned by itself, whatever the method's ``granularity``. Several processes
    learn layers side by side.

    Args:
        prepared: The model, its layers in float.
        look: What is known of it.
        method: One that solves units.
        seed, holdout: Of the calibration.
        budget: Bytes for inputs and outputs of a layer.
        units: By layer.
        importance: Of the channels that units give, where the method asks for it.
    """

    prepared: PreparedModel
    look: Watching
    method: Method
    seed: int
    holdout: float
    budget: int
    units: Mapping[str, Unit]
    importance: Mapping[str, Tensor]
    _evidence: dict[str, UnitEvidence] = field(default_factory=dict)

    @classmethod
    def of(cls, prepared: PreparedModel, look: Watching, method: Method, *, seed: int,
           holdout: float, budget: int, overrides: Iterable[OverrideSpec]) -> 'UnitLearner':
        """Divides the model into layers; runs it with gradients where the method asks for it."""
        units: tuple[Unit, ...] = ()
        if method.solves == 'unit':
            units = find_units(look.flow, prepared.plan, counts=look.counts, max_layers=1,
                               overrides=[one for one in overrides if one.unit != 'module'])
        importance: Mapping[str, Tensor] = {}
        if units and 'importance' in method.needs:
            last = last_layers(look.flow)
            with streams_through():
                importance = ImportancePass(
                    prepared=prepared, forwards=look.forwards, last=last, seed=seed, units=units,
                    kind=usual_kind([prepared.model.get_submodule(name) for name in last]),
                ).run(lambda step, steps: None).channels
        return cls(prepared, look, method, seed, holdout, budget,
                   {unit.layers[0]: unit for unit in units}, importance)

    def bytes(self, name: str) -> int:
        """Of inputs and outputs of a layer, about, of this process's batches."""
        if name not in self.units:
            return 0
        outputs = sum(self.look.flow.output_sizes[name])
        return min(self.budget, int(4 * 3 * outputs * sum(self.look.sizes.values())))

    def begin(self, names: Iterable[str]) -> AbstractContextManager:
        """Decides how calls of layers are kept; what is returned keeps them, around forwards."""
        forwards = self.look.forwards
        what = Collection(
            batches=forwards.total, seed=self.seed, holdout=self.holdout, budget=self.budget,
            sizes={batch: size for part in forwards.team.gather(self.look.sizes)
                   for batch, size in part.items()})
        self._evidence = {name: UnitEvidence(
            UnitModule.of(self.units[name], self.prepared.model),
            {name: self.prepared.layers[name].geometry},
            {batch: self.look.counts[batch].get(name, 0) for batch in range(forwards.total)},
            what) for name in names if name in self.units}
        if not self._evidence:
            return nullcontext()
        UnitDecisions(self.prepared, forwards, {
            one.function.unit.name: one for one in self._evidence.values()}).make()
        return taking_units(forwards, self._evidence)

    def learn(self, rows: Rows, plans: Mapping[str, Mapping[Widths, LayerPlan]]) -> Rows:
        """Learns layers at all widths, at most one for each process.

        Args:
            rows: Solutions that it begins from, by layer and widths.
            plans: Of the layers at these widths.
        """
        if not self.units:
            return rows
        team, names = self.look.forwards.team, list(rows)
        evidence, mine = [self._evidence.pop(name) for name in names], ()
        for rank, name in enumerate(names):
            calls = gather_calls(evidence[rank], None, team, rank,
                                 self.prepared.layers[name].product_weight.device)
            mine = calls if rank == team.rank else mine
        found = team.apart(lambda tell: self._learn(
            evidence[team.rank], mine, rows[names[team.rank]], plans[names[team.rank]])
            if team.rank < len(names) else {})
        return dict(zip(names, found))

    def _learn(self, evidence: UnitEvidence, calls: tuple[UnitCall, ...],
               row: Mapping[Widths, Banked], plans: Mapping[Widths, LayerPlan],
               ) -> dict[Widths, Banked]:
        unit, found = evidence.function.unit, {}
        name, = unit.layers
        layer = self.prepared.layers[name]
        for widths, banked in row.items():
            apply(layer, banked.solution)
            outcome = solve_unit(evidence, calls, {name: UnitLayer(layer, plans[widths])},
                                 self.method, importance=self.importance.get(unit.name))
            layer.to_float()
            found[widths] = banked._replace(
                solution=outcome.solutions[name],
                error=outcome.errors.get(outcome.taken, banked.error))
        return found
