"""What makes an interrupted run resumable: the journal in the work directory."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmbitsplit.calibration import Journal
from mmbitsplit.calibration.journal.identity import describe
from mmbitsplit.engine.data.calibration_data import CalibrationData, calibration_dataset_config
from mmbitsplit.engine.results.artifacts import CHECKPOINT, RESULTS, file_sha256
from mmbitsplit.engine.run.quantize import bare_model
from mmbitsplit.export import versions
from mmbitsplit.methods import build_method
from mmbitsplit.structures import ActivationSpec, CalibrationSpec, QuantSpec
from mmbitsplit.structures.widths import SEARCHED

FOLDER = 'journal'
# Options that journals of before their time do not name: at their default they are left out.
LATER_OPTIONS = {'activation': (ActivationSpec(), ('placement', 'output_bits')),
                 'calibration': (CalibrationSpec(), ('sampling', 'unreached'))}
ASKED = 'asked'  # a fact of the journal: limits of the budget
EVALUATION = ('test_dataloader', 'test_evaluator', 'test_cfg')


def open_journal(runner: Runner, cfg: Config, spec: QuantSpec, data: CalibrationData,
                 resume: bool) -> Journal:
    """Opens the journal of a work directory; logs what of an earlier one could not be read.

    Args:
        runner: With the float weights loaded.
        cfg: The config that is quantized.
        spec: Its request.
        data: The calibration images.
        resume: Takes over what an interrupted run left; otherwise it is removed.

    Raises:
        ValueError: The earlier run was of other options, weights, images or versions; names them.
    """
    work_dir = Path(runner.work_dir)
    key = identity(bare_model(runner.model), cfg, spec, data)
    journal = Journal.open(work_dir / FOLDER, key, resume=resume)
    if journal.finished and not all(
            (work_dir / name).is_file() for name in (RESULTS, CHECKPOINT)):  # taken away
        journal = Journal.open(work_dir / FOLDER, key, resume=False)
    if spec.budget is not None:
        _ask(journal, {name: getattr(spec.budget, name) for name in SEARCHED}, runner)
    for problem in journal.problems:
        runner.logger.warning('mmbitsplit: %s', problem)
    if journal.entries:
        runner.logger.info('mmbitsplit: going on after %d solved layers', len(journal.entries))
    elif resume and not journal.finished:
        runner.logger.info('mmbitsplit: no solved layers to take over in %s', journal.folder)
    return journal


def _ask(journal: Journal, asked: dict[str, Any], runner: Runner) -> None:
    """Notes the limits of a budget; a run of others has measured for these, too."""
    if journal.facts.get(ASKED, asked) != asked:
        journal.reopen()
        runner.logger.info('mmbitsplit: another budget than that of the earlier run in %s; what '
                           'was measured there serves this one, too', journal.folder)
    journal.remember(**{ASKED: asked})


def identity(model: nn.Module, cfg: Config, spec: QuantSpec, data: CalibrationData,
             ) -> dict[str, Any]:
    """Returns everything that codes and figures depend on, as plain values.

    Limits of a budget are left out: what is measured and solved serves all of them.
    """
    quantization = spec.to_dict()
    quantization.pop('evaluate_widths', None)  # figures of other widths change none of these
    calibration = quantization['calibration']
    # It changes codes only where it says how much of a unit is kept.
    if calibration['memory_budget'] is None or build_method(spec.method).solves == 'layer':
        calibration.pop('memory_budget')
    for part, (usual, names) in LATER_OPTIONS.items():
        for name in names:
            if quantization[part][name] == getattr(usual, name):
                quantization[part].pop(name)
    tables = {}
    if spec.budget is not None:
        for name in SEARCHED:
            quantization['budget'].pop(name)
        if spec.budget.latency_table is not None:
            tables['latency table'] = file_sha256(spec.budget.latency_table)
    evaluation = {name: cfg.get(name) for name in EVALUATION}
    return json.loads(json.dumps({
        'quantization': quantization, 'model': cfg.model.to_dict(),
        'data_preprocessor': cfg.get('data_preprocessor'),  # mmengine gives it to the model
        'weights': weights_digest(model),
        'calibration set': calibration_dataset_config(cfg, spec.calibration)
        if spec.calibration.num_images else None,
        'calibration images': data.image_ids, 'calibration files': files_digest(data.paths),
        'evaluation': evaluation, 'versions': versions(), **tables,
    }, default=describe))


def weights_digest(model: nn.Module) -> str:
    """Returns the SHA-256 of all parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def files_digest(paths: Sequence[str]) -> str:
    """Returns the SHA-256 of the contents of files; of one that is not local, nothing is seen."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f'{file_sha256(path)} '.encode())
    return digest.hexdigest()


def finished_results(journal: Journal | None, work_dir: Path) -> dict[str, Any] | None:
    """Returns the results of a run that is done already, ``None`` when there is work to do."""
    if journal is None or not journal.finished:
        return None
    return json.loads((work_dir / RESULTS).read_text(encoding='utf-8'))
