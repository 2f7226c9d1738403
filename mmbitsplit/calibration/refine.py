"""Lets a method that needs the model's loss improve the whole model, and reports it."""

from collections.abc import Mapping
from typing import Any

from mmbitsplit.calibration.float_run import FloatRun
from mmbitsplit.calibration.solved_layers import Progress, SolvedLayers
from mmbitsplit.methods import Method
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.stopwatch import Stopwatch
from mmbitsplit.solving.final_errors import FinalErrors
from mmbitsplit.solving.solved_model import KeptLayer, KeptModel
from mmbitsplit.structures import summary

LOSSES = 'losses'  # the journal's fact of those measured so far


def refine(method: Method, forwards: Forwards, run: FloatRun, solved: SolvedLayers,
           stopwatch: Stopwatch) -> dict[str, Any]:
    """Changes codes and scales of layers that have been solved, in place.

    A calibration that was interrupted here has its losses in the journal: they are returned
    again instead of measured, and the method comes to where it was without running the model.

    Args:
        method: One that refines.
        forwards: Of the model.
        run: What the float pass has left: the loss, and targets of all layers.
        solved: All layers, with samples of their inputs. Their reports are brought up to date.
        stopwatch: Told what it takes.

    Returns:
        What the method says of it.
    """
    journal, layers = solved.journal, solved.prepared.layers
    losses = forwards.team.from_first([] if journal is None else journal.facts.get(LOSSES, []))
    model = KeptModel(run.loss, losses, layers=kept_layers(solved),
                      told=lambda asked: solved.progress(Progress('refine', asked, 0)))
    if journal is not None:
        model.keep = lambda measured: journal.remember(**{LOSSES: measured})
    with stopwatch('refine'):
        outcome = method.refine(model)
        errors = FinalErrors(forwards, layers, run.record, run.sampler, run.tape).measure()
    _update_reports(solved, errors)
    return outcome


def kept_layers(solved: SolvedLayers) -> dict[str, KeptLayer]:
    """All layers in the order they were solved, as a method is given them."""
    plans = {plan.name: plan for plan in solved.prepared.plan.layers}
    return {report.name: KeptLayer(
        layer=solved.prepared.layers[report.name], plan=plans[report.name],
        samples=solved.samples[report.name], strength=report.strength,
        output_qparams=solved.prepared.layers[report.name].output_qparams)
        for report in solved.reports}


def _update_reports(solved: SolvedLayers, errors: Mapping[str, float]) -> None:
    for report in solved.reports:
        layer = solved.prepared.layers[report.name]
        report.weight_scale = summary(layer.weight_scale)
        if layer.qparams is not None:
            report.activation_scale = summary(layer.qparams.scale)
        note = 'scales were changed with those of other layers afterwards; the error is '
        if report.name in errors:
            report.error = errors[report.name]
            note += 'that of the finished model, the error of rounding that before'
        else:
            note += ('that before: in the finished model the layer is called otherwise than in '
                     'the float one')
        report.notes.append(note)
