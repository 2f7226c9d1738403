"""From a config to figures: what ``tools/quantize.py`` does."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

import mmbitsplit.engine  # noqa: F401  registers the hook and the wrapper
from mmbitsplit.apis.held_metric import Evaluation, HeldMetric
from mmbitsplit.apis.width_metrics import (
    WIDTHS,
    check_evaluate_widths,
    evaluate_widths,
    put_checkpoint,
)
from mmbitsplit.calibration import Journal, Team, current_team
from mmbitsplit.calibration.budget import forget_plans
from mmbitsplit.calibration.budget_check import check_budget
from mmbitsplit.engine.configs.config_shape import check_shape
from mmbitsplit.engine.files.choice_writer import BUDGET
from mmbitsplit.engine.files.run_lock import only_run_in
from mmbitsplit.engine.quantization_runner import runner_of
from mmbitsplit.engine.results.artifacts import (
    CHECKPOINT,
    CONVERTED,
    RESULTS,
    RUNNER_TYPE,
    numbers,
    results_table,
    save_results,
    save_run,
    without_hook,
)
from mmbitsplit.engine.results.evaluation_record import EvaluationRecord, recording_evaluation
from mmbitsplit.engine.results.report_files import (
    REPORT,
    REPORT_DATA,
    REPORT_ERROR,
    leave_report,
    load_record,
    save_record,
    write_page,
)
from mmbitsplit.engine.results.resume import finished_results, open_journal
from mmbitsplit.engine.results.visualizer_log import show_run
from mmbitsplit.engine.run.distributed import is_first, prepare_config, unite
from mmbitsplit.engine.run.float_weights import forget_pretrained, load_weights
from mmbitsplit.engine.run.integers import IntegerMode, default_mode, evaluated_with_integers
from mmbitsplit.engine.run.preflight import check_data, check_weights
from mmbitsplit.engine.run.quantize import (
    bare_model,
    build_evaluation,
    given_of,
    prepare_data,
    quantize_runner,
    read_spec,
    tensor_bytes,
)
from mmbitsplit.engine.run.weight_averages import leave_out_averages
from mmbitsplit.export.writing import check_work_dir
from mmbitsplit.models.surgery.integers import check_mode
from mmbitsplit.planning.latency_table import read_latencies
from mmbitsplit.structures import QuantSpec

FLOAT_RECORD = 'float_record.json'  # beside the journal, for the report of a resumed run


def quantize_config(cfg: Config, *, config_name: str, untrained: bool = False,
                    resume: bool = False,
                    float_metrics: Mapping[str, float] | None = None,
                    report: bool = True, integer: IntegerMode | None = None) -> dict[str, Any]:
    """Evaluates the float model, quantizes it, evaluates again, writes the work directory.

    Args:
        cfg: Config with a ``quantization`` dict, ``work_dir`` and ``load_from``.
        config_name: What ``results.json`` calls it.
        untrained: Quantize randomly initialised weights, for measuring speed and memory.
        resume: Go on where an interrupted run in the same work directory stopped.
        float_metrics: Figures of the float model where another run of the same weights and
            evaluation has them; it is then not evaluated.
        report: Note what both models say of single images, leave ``report.html``, and show the
            run in the config's visualizer.
        integer: Whether the quantized model is evaluated with layers that multiply bytes
            (``models.to_integer``); ``'auto'``: where torch and processor can. Given nothing,
            ``'auto'``. Figures may differ in the last digits from those that upstream's tools
            find, which compute in float; ``False`` gives the same.

    Returns:
        The contents of ``results.json``.

    Raises:
        ValueError: The user can mend it; nothing was computed when data, weights or options
            are at fault, when the run to resume was of something else, or when another run
            works in the directory.
    """
    integer = default_mode() if integer is None else integer
    check_mode(integer)
    check_shape(cfg)
    spec = read_spec(cfg)
    check_evaluate_widths(spec)
    check_data(cfg, spec.calibration)
    if spec.budget is not None and spec.budget.latency_table is not None:
        read_latencies(spec.budget.latency_table)  # before hours of work that need it
    settle_weights(cfg, untrained)
    work_dir = check_work_dir(cfg.work_dir)
    with only_run_in(work_dir, is_first(cfg)):
        if not resume:
            _forget_results(work_dir)
        runner = ready_runner(cfg, spec.calibration.seed, untrained)
        return _quantize(runner, cfg, spec, config_name, untrained=untrained, resume=resume,
                         float_metrics=float_metrics, report=report, integer=integer)


def ready_runner(cfg: Config, seed: int, untrained: bool) -> Runner:
    """Builds the Runner of a config that ``settle_weights`` was called for, with weights and
    evaluation, the same in all processes."""
    runner = runner_with_weights(cfg, seed, untrained)
    build_evaluation(runner)
    unite(runner)
    return runner


def settle_weights(cfg: Config, untrained: bool) -> None:
    """Says in a config where float weights come from, before a model is built.

    Args:
        cfg: Its ``load_from`` becomes a path, or ``None`` for random weights.
        untrained: Whether weights are to stay random.

    Raises:
        ValueError: There is no such file.
    """
    if untrained:
        cfg.load_from = None
        forget_pretrained(cfg.model)
    else:
        cfg.load_from = check_weights(cfg.get('load_from'))


def runner_with_weights(cfg: Config, seed: int, untrained: bool) -> Runner:
    """Builds the Runner of a config that ``settle_weights`` was called for."""
    runner = build_runner(cfg, seed)
    if untrained:
        initialise(runner)
    else:
        load_weights(runner)
    return runner


def _quantize(runner: Runner, cfg: Config, spec: QuantSpec, config_name: str, *, untrained: bool,
              resume: bool, float_metrics: Mapping[str, float] | None, report: bool,
              integer: IntegerMode) -> dict[str, Any]:
    """Does what ``quantize_config`` says with a Runner that is ready."""
    work_dir = Path(runner.work_dir)
    check_work_dir(work_dir, tensor_bytes(bare_model(runner.model)) // 2)
    data = prepare_data(runner, spec)
    team = current_team()
    journal = open_journal(runner, cfg, spec, data, resume) if team.rank == 0 else None
    earlier = team.from_first(finished_results(journal, work_dir))
    if earlier is not None:
        print_log(f'mmbitsplit: {work_dir} holds the results of this very run', logger='current')
        return _with_widths(earlier, runner, spec, journal, team, integer, report)
    _forget_results(work_dir)
    if not resume and journal is not None:
        (journal.folder / FLOAT_RECORD).unlink(missing_ok=True)
    if float_metrics is not None and journal is not None:
        journal.remember(float={'metrics': dict(float_metrics), 'seconds': 0.0})
    if spec.budget is not None:  # what cannot be kept is said before hours of work
        check_budget(given_of(runner, data), spec)
    float_metrics, float_seconds, float_record = _evaluate_float(runner, journal, team, report)
    metric = HeldMetric(float_metrics, lambda: _evaluate(runner, team, report, integer))
    run = quantize_runner(runner, spec, data, journal, metric.target)
    sizes = {'float': run.float_bytes}
    dataset_meta = getattr(runner.test_loop.dataloader.dataset, 'metainfo', None)
    if runner.rank == 0:
        sizes = save_run(work_dir, cfg, spec, run, dataset_meta)
    known = metric.known(run.report.budget)
    if known is None:
        print_log('mmbitsplit: evaluating the quantized model', logger='current')
        known = _evaluate(runner, team, report, integer)
    quantized_metrics, quantized_seconds, quantized_record, integers = known
    results = results_table(config_name, spec, run, sizes, float_metrics, quantized_metrics,
                            float_seconds + quantized_seconds, untrained)
    if integer:
        results['integer'] = integers.to_dict()
    if spec.evaluate_widths:
        results[WIDTHS] = _evaluate_widths(runner, spec, journal, team, integer, float_metrics,
                                           quantized_metrics)
    if runner.rank == 0:
        save_results(work_dir, results)
        journal.finish()
        forget_plans(journal)
        if report:
            leave_report(work_dir, run, float_record, quantized_record,
                         (dataset_meta or {}).get('classes') or ())
            show_run(runner.visualizer, work_dir)
        if spec.budget is None:  # a run of another budget goes on from here
            (journal.folder / FLOAT_RECORD).unlink(missing_ok=True)
    return results


def _evaluate_widths(runner: Runner, spec: QuantSpec, journal: Journal | None, team: Team,
                     integer: IntegerMode, float_metrics: Mapping[str, float],
                     widest: dict[str, float]) -> list[dict[str, Any]]:
    """Figures of the quantized model at each width, from the journal what an interrupted run had.
    """
    fact = f'{WIDTHS}, integer={integer}'

    def keep(found: dict[str, Any]) -> None:
        if journal is not None:
            journal.remember(**{fact: found})

    return evaluate_widths(
        bare_model(runner.model), spec, float_metrics,
        lambda: _evaluate(runner, team, False, integer)[:2], widest=widest, keep=keep,
        known=team.from_first(journal.facts.get(fact) if journal is not None else None))


def _with_widths(results: dict[str, Any], runner: Runner, spec: QuantSpec,
                 journal: Journal | None, team: Team, integer: IntegerMode, report: bool,
                 ) -> dict[str, Any]:
    """Results of a run that is done, and what it has not evaluated but is asked for now."""
    if not spec.evaluate_widths or WIDTHS in results:
        return results
    work_dir = Path(runner.work_dir)
    put_checkpoint(bare_model(runner.model), work_dir / CHECKPOINT)
    results[WIDTHS] = _evaluate_widths(runner, spec, journal, team, integer, results['float'],
                                       results['quantized'])
    if runner.rank == 0:
        save_results(work_dir, results)
        if report and (work_dir / REPORT_DATA).is_file():
            write_page(work_dir)
    return results


def _forget_results(work_dir: Path) -> None:
    """Removes what an earlier run left, lest it pass for this one's."""
    for name in (RESULTS, CHECKPOINT, *CONVERTED, BUDGET, REPORT, REPORT_DATA, REPORT_ERROR):
        (work_dir / name).unlink(missing_ok=True)


def build_runner(cfg: Config, seed: int) -> Runner:
    """Builds the Runner of a config, without our hook: the float model is evaluated first."""
    cfg = cfg.copy()
    cfg.custom_hooks = without_hook(cfg.get('custom_hooks') or [])
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    if cfg.get('runner_type') == RUNNER_TYPE:
        cfg.pop('runner_type')
    prepare_config(cfg)
    runner = runner_of(cfg)
    leave_out_averages(runner)
    return runner


def _evaluate_float(runner: Runner, journal: Journal | None, team: Team, report: bool,
                    ) -> tuple[dict[str, float], float, EvaluationRecord | None]:
    """Figures of the float model, from the journal where an interrupted run had them."""
    known = team.from_first(journal.facts.get('float') if journal is not None else None)
    if known is not None:
        record = load_record(journal.folder / FLOAT_RECORD) if journal is not None else None
        return known['metrics'], known['seconds'], record
    print_log('mmbitsplit: evaluating the float model', logger='current')
    metrics, seconds, record, _ = _evaluate(runner, team, report, False)
    if journal is not None and record is not None:
        with record.unharmed('The float model\'s predictions could not be kept'):
            save_record(journal.folder / FLOAT_RECORD, record)
    if journal is not None:
        journal.remember(float={'metrics': metrics, 'seconds': seconds})
    return metrics, seconds, record


def _evaluate(runner: Runner, team: Team, report: bool, integer: IntegerMode) -> Evaluation:
    """Figures, seconds, what was said of single images where a report is made of it, and what was
    computed with integers."""
    started = time.perf_counter()
    with evaluated_with_integers(bare_model(runner.model), integer) as use, \
            recording_evaluation(runner, team) if report else nullcontext() as record:
        metrics = numbers(runner.test())
    return metrics, time.perf_counter() - started, record, use


def initialise(runner: Runner) -> None:
    """Gives the model random weights, in place of those of a file."""
    bare_model(runner.model).init_weights()
    runner._has_loaded = True  # nothing to load, and nothing may be loaded over it
