"""From a config to plans of several budgets: what ``mmbitsplit plan`` does."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmbitsplit.apis.from_config import runner_with_weights, settle_weights
from mmbitsplit.calibration import Journal, Team
from mmbitsplit.calibration.budget import forget_plans
from mmbitsplit.calibration.plan_finder import PlanFinder, Remembered
from mmbitsplit.calibration.width_measuring import measured_widths
from mmbitsplit.engine.data.calibration_data import CalibrationData
from mmbitsplit.engine.files.run_lock import only_run_in
from mmbitsplit.engine.results.resume import FOLDER, identity
from mmbitsplit.engine.run.preflight import check_data
from mmbitsplit.engine.run.progress import progress_bar
from mmbitsplit.engine.run.quantize import (
    bare_model,
    given_of,
    prepare_data,
    read_spec,
)
from mmbitsplit.export.writing import check_work_dir, write_json, write_text
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.planning import front
from mmbitsplit.report.budget import plan_page
from mmbitsplit.report.budget_figures import UNITS, cost_value
from mmbitsplit.report.tables import text_table
from mmbitsplit.structures import QuantSpec, Widths, plan_text
from mmbitsplit.structures.given_plan import PLAN_FORMAT
from mmbitsplit.structures.plan_choice import MIXED, UNIFORM, PlanFound

STEM = 'plans'
Budgets = Mapping[str, Mapping[str, float]]


def plan_config(cfg: Config, budgets: Budgets, *, resume: bool = False, untrained: bool = False,
                tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Chooses widths for several budgets from one measurement; nothing is quantized for good.

    Leaves ``plans.json``, ``.md``, ``.html`` and a ``plan_<budget>.json`` for each budget, as
    ``quantization.plan`` takes it. No label and no metric is looked at.

    Args:
        cfg: Config with a ``quantization`` dict whose ``budget`` says what is measured,
            ``work_dir`` and ``load_from``. Limits of that budget are not looked at.
        budgets: By what each is called, its limits.
        resume: Take over what an earlier run in the work directory has measured. Its budgets may
            have been others.
        untrained: Leave the weights random.
        tell: Told a line a plan.

    Returns:
        The contents of ``plans.json``: as ``budget.json``, ``plans`` being the best of each
        budget (``budget``, ``file``) and all uniform ones.

    Raises:
        ValueError: The user can mend it: a budget that cannot be kept, and see ``quantize_config``.
    """
    spec = read_spec(cfg)
    check_data(cfg, spec.calibration)
    settle_weights(cfg, untrained)
    work_dir = check_work_dir(cfg.work_dir)
    with only_run_in(work_dir, True):
        runner = runner_with_weights(cfg, spec.calibration.seed, untrained)
        data = prepare_data(runner, spec)
        journal = _journal(runner, cfg, spec, data, resume)
        found = _find(runner, spec, data, journal, budgets, tell)
        write_plans(work_dir, found, Path(cfg.filename or 'config').stem)
    return found


def write_plans(work_dir: Path, found: Mapping[str, Any], name: str) -> None:
    """Writes what ``plan_config`` returns: plan files, tables, and a page.

    Args:
        work_dir: Where to.
        found: The contents of ``plans.json``.
        name: Of the config, for the page.
    """
    for plan in found['plans']:
        if 'file' in plan:
            write_text(work_dir / plan['file'], plan_file_text(plan['widths']))
    write_json(work_dir / f'{STEM}.json', dict(found))
    write_text(work_dir / f'{STEM}.md', plans_text(found) + '\n')
    write_text(work_dir / f'{STEM}.html', plan_page(found, f'{name}: plans'))  # needs plotly


def plan_file_text(widths: Mapping[str, str]) -> str:
    """Returns the text of a plan file; inputs that were not chosen are as the request says.

    Args:
        widths: By layer, such as ``'W4A8'`` or ``'W4'``.
    """
    rows: list[dict[str, Any]] = []
    for name, text in widths.items():
        own = Widths.read(text)
        rows.append({'name': name, 'weight_bits': own.weight,
                     **({} if own.activation is None else {'input_bits': own.activation})})
    return plan_text({'format': PLAN_FORMAT, 'layers': rows})


def plans_text(found: Mapping[str, Any]) -> str:
    """Returns a row a plan: its costs, its loss added up and with all layers at once.

    Args:
        found: The contents of ``plans.json``.
    """
    plans = found['plans']
    costs = [name for name in UNITS if name in found['costs']]
    header = ['budget', 'plan', *(UNITS[name] for name in costs), 'loss, added up',
              'loss, all at once', 'file']
    return text_table(header, [[
        plan.get('budget', ''), MIXED if plan['name'] == plan.get('budget') else plan['name'],
        *(f"{cost_value(name, plan['costs'][name]):.4g}" for name in costs),
        f"{plan['predicted']:.3g}", f"{plan['whole']:.3g}", plan.get('file', '')]
        for plan in plans])


def file_name(budget: str) -> str:
    """Returns the name of a budget's plan file."""
    return f"plan_{re.sub(r'[^A-Za-z0-9.]+', '_', budget)}.json"


def _journal(runner: Runner, cfg: Config, spec: QuantSpec, data: CalibrationData, resume: bool,
             ) -> Journal:
    journal = Journal.open(Path(runner.work_dir) / FOLDER,
                           identity(bare_model(runner.model), cfg, spec, data), resume=resume)
    if not resume:
        forget_plans(journal, measured=True)
    for problem in journal.problems:
        runner.logger.warning('mmbitsplit: %s', problem)
    return journal


def _find(runner: Runner, spec: QuantSpec, data: CalibrationData, journal: Journal,
          budgets: Budgets, tell: Callable[[str], None]) -> dict[str, Any]:
    assert spec.budget is not None
    given = given_of(runner, data)
    with progress_bar(runner.logger) as show:
        finder = PlanFinder(given, spec, lambda: measured_widths(
            given, spec, journal, show, list(budgets.values())),
                            Remembered(journal, Team()), ModelState(given.model), tell)
        try:
            return {**_found(finder, budgets, tell), 'sensitivity': spec.budget.sensitivity}
        finally:
            finder.close()


def _found(finder: PlanFinder, budgets: Budgets, tell: Callable[[str], None]) -> dict[str, Any]:
    """Plans of all budgets, and the uniform ones, as plain values."""
    problem = finder.problem
    # All of them before one is searched: what cannot be kept is told at once.
    front(problem.losses, problem.costs, list(budgets.values()), problem.together)
    plans = []
    for budget, limits in budgets.items():
        best = finder.plans(limits)[0]
        uniform = best.name.startswith(UNIFORM)
        plans.append({**best.to_json(), 'name': best.name if uniform else budget,
                      'budget': budget, 'file': file_name(budget)})
        tell(f"{budget}: {best.name} with {best.costs['weight_bits']:.2f} bits a weight, "
             f"{best.costs['bytes'] / 1e3:.1f} kB, loss {best.whole:.3g}")
    plans += [plan.to_json() for plan in _beside(finder.uniform_plans(), plans)]
    limited = next(iter(next(iter(budgets.values()))))
    return {'limits': dict(next(iter(budgets.values()))), 'budgets': {
        budget: dict(limits) for budget, limits in budgets.items()},
        'loss': finder.kind, 'base': problem.base, 'table': problem.losses.to_json(),
        'costs': {name: table.to_json() for name, table in problem.costs.items()},
        'front': finder.front(limited), 'plans': plans, 'exchanges': dict(finder.exchanges)}


def _beside(uniform: Sequence[PlanFound], plans: Sequence[Mapping[str, Any]]) -> list[PlanFound]:
    """The uniform plans that are none of those found."""
    known = {plan['name'] for plan in plans}
    return [plan for plan in uniform if plan.name not in known]
