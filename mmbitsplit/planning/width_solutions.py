"""Solves every layer at every width it may have, on what the float model gives it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmbitsplit.methods import Method
from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.float_inputs import FloatCalls, float_calls
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.width_bank import Banked
from mmbitsplit.planning.width_units import UnitLearner
from mmbitsplit.solving.channel_errors import channel_errors
from mmbitsplit.solving.positions import check_seen
from mmbitsplit.solving.solve_layer import FittedSums, solve_layer
from mmbitsplit.structures import CalibrationSpec, LayerPlan, QParams, Widths

ROW_BYTES = 1 << 30  # of sampled positions of layers that are gathered in one pass over the images
SHARE = 0.25  # of a memory budget that is given, for the same


def row_bytes(calibration: CalibrationSpec) -> int:
    """Bytes for sampled positions: of the request alone, never of the machine."""
    if calibration.memory_budget is None:
        return ROW_BYTES
    return min(ROW_BYTES, int(SHARE * calibration.memory_budget * 1e9))


def plan_at(base: LayerPlan, widths: Widths) -> LayerPlan:
    """The plan of a layer at other widths than those of the base model.

    Where it reads a quantized residual stream, that keeps the width of the base model: at fewer
    bits the layer rounds once more, by a scale of its own.
    """
    activation = base.activation if widths.activation is None else replace(
        base.activation, num_bits=widths.activation)
    shares = activation.num_bits == base.activation.num_bits
    return replace(base, weight=replace(base.weight, num_bits=widths.weight),
                   activation=activation, stream=base.stream if shares else '')


@dataclass
class WidthSolver:
    """Solves layers apart from each other: what comes of one depends on no other's bits.

    Each pass over the images serves as many layers as have room for their sampled positions, all
    widths of each; sums of products are taken once for each way to quantize the input.

    Args:
        prepared: The model, its layers in float and planned as in the base model.
        look: What is known of it.
        method: Chooses codes; what it does with the whole model is not asked for.
        choices: Widths by layer.
        base: Of these, those of the base model.
        sampler: Positions.
        learner: Goes on from what was solved, for a method that solves units.
        channels: Whether errors of each output channel are asked for.

    Attributes:
        passes: Over the images, so far.
    """

    prepared: PreparedModel
    look: Watching
    method: Method
    choices: Mapping[str, Sequence[Widths]]
    base: Mapping[str, Widths]
    sampler: Sampler
    learner: UnitLearner
    channels: bool = False
    passes: int = 0
    _outputs: dict[str, QParams | None] = field(default_factory=dict)

    def solve(self, known: Mapping[str, QParams | None],
              progress: Callable[[int, int], None] = lambda step, steps: None,
              ) -> Iterator[tuple[str, dict[Widths, Banked]]]:
        """Yields layers with their solutions, in execution order.

        Args:
            known: Layers that are solved already, with how their outputs are quantized.
            progress: Told (batches done, batches in all) of each pass.

        Raises:
            ValueError: No image gives a layer a position, or an input is not finite.
        """
        self._outputs = dict(known)
        forwards, plans = self.look.forwards, {
            plan.name: {widths: plan_at(plan, widths) for widths in self.choices[plan.name]}
            for plan in self.prepared.plan.layers}
        for names in self._groups([name for name in plans if name not in known]):
            self.passes += 1
            found = float_calls(self.prepared, forwards, self.sampler, names, progress,
                                self.learner.begin(names))
            for place in range(0, len(names), forwards.team.size):
                some = names[place:place + forwards.team.size]
                for name in some:
                    check_seen(name, found[name].targets, forwards.team)
                rows = self.learner.learn({name: self._solve(name, plans[name], found[name])
                                           for name in some}, plans)
                for name in some:
                    yield name, self._finished(name, rows[name], found.pop(name))

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Layers, in order, that one pass has room for; the same in every process."""
        group: list[str] = []
        held = 0
        for name in names:
            size = max(self.look.forwards.team.gather(
                self._bytes(name) + self.learner.bytes(name)))
            if group and held + size > row_bytes(self.sampler.spec):
                yield group
                group, held = [], 0
            group.append(name)
            held += size
        if group:
            yield group

    def _bytes(self, name: str) -> int:
        """Of a layer's sampled inputs and outputs in this process."""
        geometry = self.prepared.layers[name].geometry
        flow, sizes = self.look.flow, self.look.sizes.values()
        most = self.sampler.share_of_call(name, self.sampler.spec.rows_per_layer)
        rows = sum(min(most, int(size * scale / geometry.out_channels)) for scale in sizes
                   for size in flow.output_sizes[name])
        return 4 * rows * (geometry.groups * geometry.inputs_per_output + geometry.out_channels)

    def _solve(self, name: str, plans: Mapping[Widths, LayerPlan], calls: FloatCalls,
               ) -> dict[Widths, Banked]:
        layer, sums, found = self.prepared.layers[name], FittedSums(), {}
        # Those that quantize the input alike stand together.
        for widths in sorted(plans, key=lambda one: (one.activation or 0, one.weight)):
            solved = solve_layer(layer, plans[widths], self.method, calls.captures, calls.targets,
                                 self.look.forwards.team, shared=self._shared(plans[widths]),
                                 sums=sums)
            found[widths] = Banked(solved.solution, solved.error)
        # Who reads a stream that the layer gives is solved with it, in the same breath perhaps.
        self._outputs[name] = found[self.base[name]].solution.output_qparams
        return found

    def _finished(self, name: str, row: dict[Widths, Banked], calls: FloatCalls,
                  ) -> dict[Widths, Banked]:
        """With errors by channel, and where the layer gives a stream, that of the base model."""
        gives = any(stream.name == name for stream in self.prepared.plan.streams)
        found = {}
        for widths, banked in row.items():
            if gives:  # who reads it has its scale at every width
                banked = banked._replace(solution=replace(
                    banked.solution, output_qparams=self._outputs[name]))
            if self.channels:
                banked = banked._replace(channels=channel_errors(
                    self.prepared.layers[name], banked.solution, calls.captures, calls.targets,
                    self.look.forwards.team))
            found[widths] = banked
        return found

    def _shared(self, plan: LayerPlan) -> Sequence[QParams]:
        """How the residual stream that a layer reads is rounded; none where it reads none."""
        if not plan.stream:
            return ()
        shared = self._outputs.get(plan.stream) or self.prepared.stream_qparams(plan.stream)
        return () if shared is None else (shared,)
