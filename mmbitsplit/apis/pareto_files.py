"""From a quantized checkpoint to the front of its plans: what ``mmbitsplit pareto`` does."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from mmbitsplit.apis.loading import load_quantized
from mmbitsplit.calibration.known_losses import KnownLosses
from mmbitsplit.calibration.pareto import FrontOptions, find_front
from mmbitsplit.calibration.plan_loss import Given
from mmbitsplit.engine.data.calibration_data import CalibrationData, load_calibration_data
from mmbitsplit.engine.files.run_lock import only_run_in
from mmbitsplit.engine.results.artifacts import file_sha256
from mmbitsplit.engine.run.preflight import check_data
from mmbitsplit.engine.run.presets import replay_points
from mmbitsplit.engine.run.progress import progress_bar
from mmbitsplit.export.writing import check_work_dir, write_json, write_text
from mmbitsplit.report.front import front_page, front_text
from mmbitsplit.structures import CalibrationSpec, from_mapping, plan_text
from mmbitsplit.structures.plan_file import widths_value
from mmbitsplit.structures.plan_front import PlanFront

STEM, LOSSES = 'pareto', 'pareto_losses.json'


def pareto_of_files(cfg: Config, checkpoint: str, options: FrontOptions, *, images: int,
                    resume: bool = False) -> dict[str, Any]:
    """Finds the front of a quantized checkpoint, and writes it.

    Leaves ``pareto.json``, ``.md``, ``.html``, and a ``plan_<budget>.json`` for each budget and
    uniform width, as ``set_plan`` takes them.

    Args:
        cfg: ``quantized_config.py``, with ``work_dir``.
        checkpoint: ``quantized.pth``.
        options: What is searched.
        images: Calibration images that plans are measured on.
        resume: Take over losses that an earlier run measured in the work directory.

    Returns:
        The contents of ``pareto.json``.

    Raises:
        ValueError: The user can mend it: one width only, a budget that cannot be kept, data.
    """
    spec = _calibration(cfg, images)
    check_data(cfg, spec)
    work_dir = check_work_dir(cfg.work_dir)
    with only_run_in(work_dir):
        model = load_quantized(cfg.filename, checkpoint)
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
            data = load_calibration_data(cfg, spec, [])
            known = KnownLosses(work_dir / LOSSES, _identity(checkpoint, data, options), resume)
            with progress_bar(MMLogger.get_current_instance()) as show:
                front = find_front(
                    Given(model=model.model, batches=data.batches, labels=data.labels,
                          run=lambda inner, batch: inner.test_step(batch),
                          replay_points=replay_points(model.model)),
                    options, known=known, progress=show)
        found = front_value(front)
        _write(work_dir, front, found, Path(cfg.filename).parent.name or STEM)
    return found


def front_value(front: PlanFront) -> dict[str, Any]:
    """Returns the contents of ``pareto.json``: plain values, with the names of plan files."""
    found = front.to_json()
    for one, row in zip(front.plans, found['plans']):
        if one.best or not one.budget:
            row['file'] = file_name(one.budget or one.found.name)
    return found


def file_name(name: str) -> str:
    """Returns the name of a plan's file."""
    return f"plan_{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"


def _write(work_dir: Path, front: PlanFront, found: Mapping[str, Any], name: str) -> None:
    for one, row in zip(front.plans, found['plans']):
        if 'file' in row:
            write_text(work_dir / row['file'], plan_text(widths_value(one.plan)))
    write_json(work_dir / f'{STEM}.json', dict(found))
    write_text(work_dir / f'{STEM}.md', front_text(found) + '\n')
    write_text(work_dir / f'{STEM}.html', front_page(found, f'{name}: plans'))  # needs plotly


def _calibration(cfg: Config, images: int) -> CalibrationSpec:
    asked = dict((cfg.get('quantization') or {}).get('calibration') or {})
    return from_mapping(CalibrationSpec, {**asked, 'num_images': images},
                        'quantization.calibration')


def _identity(checkpoint: str, data: CalibrationData, options: FrontOptions) -> str:
    """What losses of plans depend on."""
    return repr((file_sha256(checkpoint), data.paths, options.granularity, options.pairs,
                 options.loss, options.seed))
