"""Quantizes each layer of a float model alone and sees what that does to the raw outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.methods import build_method
from mmbitsplit.models import apply, layer_input, quantized_layers
from mmbitsplit.models.surgery.undo import as_it_was_on_error
from mmbitsplit.passes.call_counts import reached_by, totals
from mmbitsplit.passes.capture import CallCapture, Sampler, merge_samples
from mmbitsplit.passes.float_inputs import float_calls
from mmbitsplit.passes.forwards import Forwards, check_not_empty
from mmbitsplit.passes.replay import ReplayPoint, Tape
from mmbitsplit.passes.row_masks import row_masks
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.preparation import open_as_requested, prepare_as_requested
from mmbitsplit.planning.request_plan import check_request, layers_to_find
from mmbitsplit.solving.input_scales import input_candidates
from mmbitsplit.solving.output_error import output_scale
from mmbitsplit.solving.positions import check_seen
from mmbitsplit.solving.solve_layer import solve_layer
from mmbitsplit.structures import LayerPlan, QuantSpec


@dataclass(frozen=True)
class Trial:
    """One layer quantized alone.

    Args:
        layer: Its name.
        what: ``'weight'`` or ``'activation'``: which of the two was quantized.
        num_bits: How wide its codes were.
        error: Squared error of the raw outputs in parts of their spread, the mean over the
            layers that make them.
    """

    layer: str
    what: str
    num_bits: int
    error: float


class Sensitivity:
    """A float model whose layers are quantized one at a time; it is float again after each.

    Raw outputs are those of the last layers, at sampled positions. Steps whose result depends on
    the data in jumps are replayed, so that they are the outputs at the same places.

    Args:
        model: Float model; batch norms are folded in place.
        batches: Calibration batches.
        spec: Which layers, which method, how inputs are quantized; its widths are not used.
        run: Runs the model on a batch, as ``run(model, batch)``.
        replay_points: See ``calibrate``.

    Raises:
        ValueError: See ``calibrate``.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], spec: QuantSpec, *,
                 run: Callable[[nn.Module, Any], Any],
                 replay_points: Sequence[ReplayPoint] = ()):
        check_not_empty(len(batches))
        check_request(model, spec)
        self.tape, self.method = Tape(), build_method(spec.method)
        with as_it_was_on_error(model):
            self.forwards = open_as_requested(Forwards.of(
                model.eval(), batches, run, seed=spec.calibration.seed,
                replay_points=replay_points), spec)
            self._look(spec)
        self.prepared.stay()

    def _look(self, spec: QuantSpec) -> None:
        """Prepares the model and keeps its float outputs."""
        look = Watching(self.forwards, layers_to_find(self.forwards.model, spec))
        self.prepared, flow = prepare_as_requested(look, spec), look.flow
        self.sampler = Sampler(spec.calibration, self.forwards.total,
                               {name: flow.calls[name] for name in self.prepared.layers},
                               totals(look.counts, self.prepared.layers),
                               reached_by(look.counts, self.prepared.layers),
                               masks=row_masks(self.forwards.batches, spec.calibration.row_mask))
        planned = set(self.prepared.layers)
        self.outputs = [name for name in self.prepared.layers
                        if not (flow.feeds.get(name, set()) - {name}) & planned]
        with self.forwards.recording(self.tape):
            self.reference = self._raw_outputs()

    @property
    def model(self) -> nn.Module:
        """The prepared model, in float but while a trial is out."""
        return self.forwards.model

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """Plans of the layers that can be tried, in execution order."""
        return self.prepared.plan.layers

    def trials(self, plan: LayerPlan, weight_bits: Sequence[int],
               activation_bits: Sequence[int] = ()) -> Iterator[Trial]:
        """Yields a trial a width; while the caller has it, the model is quantized that way.

        Args:
            plan: Of the layer; one whose input stays float has no activation trials.
            weight_bits: Widths of its weight codes, its input in float.
            activation_bits: Widths of its input's codes, its weights in float.
        """
        captures, targets = self._captured(plan.name)
        layer = self.prepared.layers[plan.name]
        for num_bits in weight_bits:
            alone = replace(plan, weight=replace(plan.weight, num_bits=num_bits),
                            activation=replace(plan.activation, num_bits=None), output=None)
            apply(layer, solve_layer(layer, alone, self.method, captures, targets).solution)
            try:
                yield self._tried(plan.name, 'weight', num_bits)
            finally:
                layer.to_float()
        for num_bits in activation_bits if plan.activation.num_bits is not None else ():
            # Of ECAQ's strengths the last: with float weights a scale a channel costs nothing.
            candidate = input_candidates(merge_samples(captures, self.forwards.team), replace(
                plan.activation, num_bits=num_bits))[-1]
            layer.quantize_input(replace(candidate.qparams, unit=False))
            try:
                yield self._tried(plan.name, 'activation', num_bits)
            finally:
                layer.quantize_input(None)

    def _tried(self, name: str, what: str, num_bits: int) -> Trial:
        with self.forwards.replaying(self.tape):
            outputs = self._raw_outputs()
        return Trial(name, what, num_bits, relative_error(self.reference, outputs))

    def _captured(self, name: str) -> tuple[list[CallCapture], list[Tensor]]:
        """Inputs and float outputs of a layer at its sampled positions."""
        calls = float_calls(self.prepared, self.forwards, self.sampler, [name])[name]
        check_seen(name, calls.targets, self.forwards.team)
        return calls.captures, calls.targets

    def _raw_outputs(self) -> dict[str, Tensor]:
        """Of each last layer, the outputs at its sampled positions of all batches: (G, M, K)."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.outputs}

        def taker(name: str) -> Callable[[int, Tensor, Tensor], None]:
            def take(call: int, x: Tensor, output: Tensor) -> None:
                found[name].append(self.sampler.target(
                    name, self.prepared.layers[name], call, self.forwards.state.current_batch(),
                    x.shape, output))
            return take

        self._run_all({name: taker(name) for name in self.outputs})
        return {name: torch.cat(parts, -1) for name, parts in found.items() if parts}

    def _run_all(self, takers: Mapping[str, Callable[[int, Tensor, Tensor], None]]) -> None:
        """Runs all batches and hands (call, input, output) of some layers to their takers."""
        self.tape.positions.clear()
        for number in self.forwards.batches:
            with self._watching(takers):
                self.forwards.alone(number)

    @contextmanager
    def _watching(self, takers: Mapping[str, Callable[[int, Tensor, Tensor], None]]):
        def hook_for(take: Callable[[int, Tensor, Tensor], None]):
            calls = iter(range(1 << 30))

            def hook(module, args, kwargs, output):
                with self.forwards.state.ours.apart():
                    take(next(calls), layer_input(args, kwargs), output)
            return hook

        layers = dict(quantized_layers(self.forwards.model))
        with ExitStack() as stack:
            for name, take in takers.items():
                handle = layers[name].register_forward_hook(hook_for(take), with_kwargs=True)
                stack.callback(handle.remove)
            yield


def relative_error(reference: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> float:
    """Squared error in parts of the spread around each channel's mean, the mean over layers.

    Args:
        reference: (G, M, K) float outputs by layer.
        outputs: The same of the quantized model.
    """
    errors = []
    for name, expected in reference.items():
        expected = expected.double()
        spread = (expected - expected.mean(-1, keepdim=True)).square().sum()
        error = (outputs[name].double() - expected).square().sum()
        errors.append(float(error / output_scale(spread, expected.square().sum())))
    return sum(errors) / len(errors)
