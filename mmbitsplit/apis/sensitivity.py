"""From a config to the sensitivity of its layers: what ``sensitivity.py`` of the tools does."""

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmbitsplit.apis.from_config import build_runner
from mmbitsplit.calibration import Sensitivity
from mmbitsplit.calibration.journal.identity import check_identity
from mmbitsplit.engine.data.fewer_images import choose_images, count_only_evaluated
from mmbitsplit.engine.results.artifacts import numbers
from mmbitsplit.engine.results.report_files import read_file
from mmbitsplit.engine.results.resume import identity
from mmbitsplit.engine.run.float_weights import load_weights
from mmbitsplit.engine.run.preflight import check_data, check_weights
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.quantize import bare_model, prepare_data, read_spec
from mmbitsplit.export.writing import check_work_dir, write_json, write_text
from mmbitsplit.planning.request_plan import matches
from mmbitsplit.report.sensitivity import (
    sensitivity_csv,
    sensitivity_markdown,
    sensitivity_page,
)
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import LayerPlan, Options, Range
from mmbitsplit.structures.widths import Bits

STEM = 'sensitivity'


@dataclass(frozen=True)
class SensitivityOptions(Options):
    """What is tried.

    Args:
        weight_bits: Widths of weight codes.
        activation_bits: Widths of input codes.
        metric_images: Evaluation images a trial is judged on; 0 looks at the raw outputs alone.
        layers: Shell pattern of the layers to try.
    """

    weight_bits: Sequence[Bits] = (2, 3, 4, 8)
    activation_bits: Sequence[Bits] = ()
    metric_images: Annotated[int, Range(0)] = 0
    layers: str = '*'

    def __post_init__(self):
        super().__post_init__()
        if not self.weight_bits and not self.activation_bits:
            raise ValueError('weight_bits and activation_bits are both empty; give at least one '
                             'width from 2 to 8.')


@dataclass
class SensitivityState:
    """What is known so far, as ``sensitivity.json`` keeps it.

    Args:
        identity: What was asked for.
        float_metrics: Of the float model on the evaluated images.
        rows: A dict a trial: ``calibration.Trial`` and ``metrics``.
        done: Names of the layers whose trials are all there.
    """

    identity: dict[str, Any]
    float_metrics: dict[str, float]
    rows: list[dict[str, Any]]
    done: list[str]


def measure_sensitivity(cfg: Config, options: SensitivityOptions, *, resume: bool = False,
                        tell: Callable[[str], None] = lambda line: None) -> SensitivityState:
    """Quantizes each layer alone; leaves ``sensitivity.json``, ``.csv``, ``.md`` and ``.html``.

    Args:
        cfg: Config with a ``quantization`` dict, ``work_dir`` and ``load_from``.
        options: What is tried.
        resume: Go on after the layers that an earlier run in the work directory has done.
        tell: Told a line a layer.

    Raises:
        ValueError: The user can mend it; see ``quantize_config`` also.
    """
    spec = read_spec(cfg)
    check_data(cfg, spec.calibration)
    cfg.load_from = check_weights(cfg.get('load_from'))
    work_dir = check_work_dir(cfg.work_dir)
    runner = _runner(cfg, spec.calibration.seed, options.metric_images)
    data = prepare_data(runner, spec)
    model = bare_model(runner.model)
    key = {'options': asdict(options) | {name: list(getattr(options, name)) for name in (
        'weight_bits', 'activation_bits')}, **identity(model, cfg, spec, data)}
    state = _stored(work_dir, key) if resume else None
    with _quiet(runner):
        probe = Sensitivity(model, data.batches, spec,
                            run=lambda model, batch: model.test_step(batch),
                            replay_points=replay_points(model))
        plans = _chosen(probe.layers, options)
        if state is None:
            metrics = _evaluate(runner) if options.metric_images else {}
            state = SensitivityState(key, metrics, [], [])
        started, before = time.perf_counter(), len(state.done)
        for plan in plans:
            if plan.name in state.done:
                continue
            rows = [{**asdict(trial), 'metrics': _evaluate(runner) if options.metric_images
                     else {}} for trial in probe.trials(plan, options.weight_bits,
                                                        options.activation_bits)]
            state.rows += rows
            state.done.append(plan.name)
            write_json(work_dir / f'{STEM}.json', asdict(state))
            tell(_line(rows, len(state.done), len(plans),
                       (time.perf_counter() - started) / (len(state.done) - before)))
    write_tables(work_dir, state, Path(cfg.filename or 'config').stem)
    return state


def write_tables(work_dir: Path, state: SensitivityState, name: str) -> None:
    """Writes what people read of a state."""
    write_text(work_dir / f'{STEM}.csv', sensitivity_csv(state.rows))
    write_text(work_dir / f'{STEM}.md',
               sensitivity_markdown(state.rows, state.float_metrics) + '\n')
    write_text(work_dir / f'{STEM}.html', sensitivity_page(
        state.rows, state.float_metrics, f'{name}: sensitivity'))  # the last: it needs plotly


def _runner(cfg: Config, seed: int, metric_images: int) -> Runner:
    """A Runner with the float weights that evaluates on a few images."""
    if metric_images:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
            choose_images(cfg, metric_images)
    runner = build_runner(cfg, seed)
    load_weights(runner)
    if metric_images:
        count_only_evaluated(runner)
    return runner


def _stored(work_dir: Path, key: dict[str, Any]) -> SensitivityState | None:
    """What an earlier run left; ``None`` where there was none.

    Raises:
        ValueError: It was of something else; says what differs.
    """
    if not (work_dir / f'{STEM}.json').is_file():
        return None
    state = SensitivityState(**read_file(work_dir, f'{STEM}.json'))
    check_identity(work_dir, key, state.identity)
    return state


def _chosen(plans: Sequence[LayerPlan], options: SensitivityOptions) -> list[LayerPlan]:
    pattern = options.layers
    chosen = [plan for plan in plans if matches(plan.name, pattern)]
    if not chosen:
        names = [plan.name for plan in plans]
        raise ValueError(f"layers='{pattern}' matches no layer; "
                         f'{nearest(pattern, names[:12])}, ...')
    if not options.weight_bits and all(plan.activation.num_bits is None for plan in chosen):
        raise ValueError(f"layers='{pattern}': the inputs of {len(chosen)} layer(s) (such as "
                         f'{chosen[0].name}) stay in float, there is nothing to try; give '
                         'weight_bits, or other layers.')
    return chosen


def _evaluate(runner: Runner) -> dict[str, float]:
    return numbers(runner.test())


@contextlib.contextmanager
def _quiet(runner: Runner) -> Iterator[None]:
    """Hundreds of evaluations print nothing; warnings are still said."""
    level = runner.logger.level
    runner.logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        runner.logger.setLevel(level)


def _line(rows: Sequence[dict[str, Any]], done: int, total: int, seconds: float) -> str:
    errors = ', '.join(f"{row['what'][0].upper()}{row['num_bits']} {row['error']:.2g}"
                       for row in rows)
    left = seconds * (total - done)
    return (f"{done}/{total} {rows[0]['layer']}: {errors}; {seconds:.1f} s a layer, "
            f'about {left / 60:.0f} min left') if rows else f'{done}/{total}: nothing to try'
