"""Figures of a model with several widths at each of them, all its layers together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmbitsplit.calibration.width_solver import pair_widths
from mmbitsplit.engine.results.artifacts import drops
from mmbitsplit.engine.run.model_wrapper import QuantizedModel, encode_plan
from mmbitsplit.export import PLAN_KEY, read_checkpoint
from mmbitsplit.methods import METHODS, build_method
from mmbitsplit.models.switching import set_bits, widths_of
from mmbitsplit.report.layer_figures import bits_text
from mmbitsplit.structures import QuantSpec

WIDTHS = 'widths'  # of results.json, and the journal's fact


@dataclass(frozen=True)
class UniformWidths:
    """What all layers of a model are switched to together.

    Args:
        weight: Of weights; ``None`` where they have one width each.
        activation: Of inputs and other activations, likewise.
    """

    weight: int | None
    activation: int | None

    def use(self, model: nn.Module) -> None:
        """Switches a model."""
        set_bits(model, weight=self.weight, activation=self.activation)

    def row(self, spec: QuantSpec) -> dict[str, Any]:
        """Widths as ``results.json`` has them: the request's where there is one alone."""
        return {name: asked.num_bits if own is None else own for name, own, asked in (
            ('weight_bits', self.weight, spec.weight),
            ('activation_bits', self.activation, spec.activation))}


def uniform_widths(model: nn.Module) -> list[UniformWidths]:
    """Widths of weights and inputs as they were solved together, rising; none of a model of one.

    Args:
        model: Quantized. All its layers of several widths have the same ones.
    """
    several = [own for own in widths_of(model).values() if own.several]
    weights = max((own.weight for own in several), key=len, default=())
    inputs = max((side for own in several for side in (own.input, own.output, own.a, own.b,
                                                       own.stream)), key=len, default=())
    weights, inputs = (one if len(one) > 1 else () for one in (weights, inputs))
    if not weights:
        return [UniformWidths(None, bits) for bits in inputs]
    return [UniformWidths(pair.weight, pair.input) for pair in pair_widths(weights, inputs)]


def check_evaluate_widths(spec: QuantSpec) -> None:
    """Raises ``ValueError`` where a request wants figures of several widths and asks for one."""
    method = build_method(spec.method)
    if spec.evaluate_widths and max(len(method.widths), len(method.input_widths(spec))) < 2:
        able = ' or '.join(name for name, one in METHODS.items()
                           if len(getattr(one, 'widths', ())) > 1)
        raise ValueError(
            f"quantization.evaluate_widths=True needs a model of several widths; method "
            f"{spec.method['type']} gives one of a single width, which is evaluated anyway. "
            f'Leave it out, or take {able} with widths of several.')


def evaluate_widths(model: nn.Module, spec: QuantSpec, float_metrics: Mapping[str, float],
                    evaluate: Callable[[], tuple[dict[str, float], float]], *,
                    widest: dict[str, float] | None = None,
                    known: Mapping[str, Any] | None = None,
                    keep: Callable[[dict[str, Any]], None] = lambda found: None,
                    ) -> list[dict[str, Any]]:
    """Evaluates a model at each of its widths; the widest is in use afterwards.

    Args:
        model: Quantized, at its widest.
        spec: The request.
        float_metrics: Of the float model.
        evaluate: Gives figures and seconds of the model as it is.
        widest: Figures of it as it is given, where they are known.
        known: What ``keep`` was given by a run that was interrupted.
        keep: Told of everything that has been found, after each evaluation.

    Returns:
        Rows of ``results.json``.
    """
    pairs, found, rows = uniform_widths(model), dict(known or {}), []
    if not pairs:
        return []
    top = UniformWidths(*(max((bits for bits in of if bits is not None), default=None)
                          for of in zip(*((pair.weight, pair.activation) for pair in pairs))))
    try:
        for number, pair in enumerate(pairs):
            row = pair.row(spec)
            name = bits_text(row)
            if name not in found:
                if pair == top and widest is not None:
                    found[name] = {'metrics': widest, 'seconds': 0.0}
                else:
                    print_log(f'mmbitsplit: evaluating at {name}, {number + 1} of {len(pairs)} '
                              'widths', logger='current')
                    pair.use(model)
                    metrics, seconds = evaluate()
                    found[name] = {'metrics': metrics, 'seconds': seconds}
                keep(found)
            metrics = found[name]['metrics']
            rows.append({**row, 'quantized': metrics, 'drop': drops(float_metrics, metrics),
                         'seconds': found[name]['seconds']})
    finally:
        top.use(model)
    return rows


def put_checkpoint(model: nn.Module, path: Path) -> None:
    """Makes a float model the quantized one of a checkpoint.

    Args:
        model: Of the same architecture; changed in place.
        path: ``quantized.pth``.

    Raises:
        ValueError: The file is damaged, or of another model.
    """
    packed = read_checkpoint(path)
    QuantizedModel(model).load_state_dict(
        {**packed.state, PLAN_KEY: encode_plan(packed.description)})
