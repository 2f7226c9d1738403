"""Runs the cells of a paper table one after another; finished ones are taken over."""

import contextlib
import io
import json
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from bench.paper import BenchModel, Cell
from bench.stored_runs import CELL, FAILURE, RESULTS, read_folder
from mmbitsplit.apis.from_config import quantize_config
from mmbitsplit.calibration.journal.identity import check_identity, describe
from mmbitsplit.engine.configs.config_shape import check_shape
from mmbitsplit.engine.configs.data_root import move_data
from mmbitsplit.engine.results.artifacts import CHECKPOINT, file_sha256
from mmbitsplit.engine.run.preflight import check_data, check_weights
from mmbitsplit.engine.run.quantize import read_spec
from mmbitsplit.export import versions
from mmbitsplit.export.writing import check_work_dir, write_json
from mmbitsplit.structures import QuantSpec

LOG = 'output.log'
OWN_FOLDER = ('work_dir', 'launcher')  # settings that say nothing about a result
OF_THE_FLOAT_MODEL = ('model', 'data_preprocessor', 'test_dataloader', 'test_evaluator',
                      'test_cfg')


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell ready to run.

    Args:
        cell: Which one.
        config_name: Path of the model's config.
        cfg: That config with the cell's request in it.
        spec: The request, read.
        command: What runs this cell alone.
        weights: SHA-256 of the float checkpoint.
    """

    cell: Cell
    config_name: str
    cfg: Config
    spec: QuantSpec
    command: str
    weights: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the figures depend on, as JSON gives it back."""
        config = {key: value for key, value in self.cfg.to_dict().items()
                  if key not in OWN_FOLDER}
        config['quantization'] = self.spec.to_dict()  # with every default that was left open
        return _as_json({'config': config, 'weights': self.weights, 'versions': versions()})

    @property
    def float_identity(self) -> dict[str, Any]:
        """Everything the float model's figures depend on."""
        whole = self.identity
        return {**whole, 'config': {key: whole['config'].get(key)
                                    for key in OF_THE_FLOAT_MODEL}}

    @property
    def coordinates(self) -> dict[str, Any]:
        """The cell as it is stored; its figures are found by these."""
        return {'table': self.cell.table, 'model': self.cell.model, 'method': self.cell.method,
                'weight_bits': self.cell.bits.weight,
                'activation_bits': self.cell.bits.activation, 'scope': self.cell.scope,
                'seed': self.cell.seed}


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Args:
        run: See ``stored_runs``; with ``error`` where it failed.
        taken_over: Nothing had to be computed.
        seconds: Wall-clock time.
    """

    run: dict[str, Any]
    taken_over: bool
    seconds: float


def plan_cells(model: BenchModel, cells: Sequence[Cell], data: str | None = None,
               options: Mapping[str, Any] | None = None) -> list[PlannedCell]:
    """Reads a model's config and makes each cell's; checks data, weights and requests.

    Args:
        model: Which model.
        cells: Its cells.
        data: Folder of its data, the config's own when not given.
        options: Settings of the config to replace, in every cell.

    Raises:
        ValueError: The config, the data or the weights are missing, or a request is refused.
    """
    base = read_config(model)
    if data is not None:
        move_data(base, data)
    base.merge_from_dict(dict(options or {}))
    check_shape(base)
    if base.get('quantization') is None:
        read_spec(base)  # says what is missing
    planned = []
    for cell in cells:
        cfg = base.copy()
        cfg.quantization = cell.quantization(base.quantization.to_dict())
        spec = read_spec(cfg)
        if not planned:
            check_data(cfg, spec.calibration)
            base.load_from = cfg.load_from = check_weights(cfg.get('load_from'))
            weights = file_sha256(cfg.load_from)
        planned.append(PlannedCell(
            cell=cell, config_name=model.config, cfg=cfg, spec=spec, weights=weights,
            command=_command(cell, model, data, options or {})))
    return planned


def run_cell(planned: PlannedCell, work_dir: Path, *, redo: bool = False,
             keep: bool = False) -> Outcome:
    """Runs one cell, or takes its figures over from its folder or from another table's.

    What it prints and logs goes to ``output.log`` in its folder. A cell that fails leaves
    ``failure.json`` there and is tried again next time.

    Args:
        planned: The cell.
        work_dir: Of all tables.
        redo: Run it even though its folder holds figures.
        keep: Leave ``quantized.pth`` and ``report.html`` in its folder too.
    """
    started = time.perf_counter()
    folder = work_dir / planned.cell.folder
    try:
        check_work_dir(folder)
        found = None if redo else _finished(planned, work_dir)
        if found is None:
            _compute(planned, work_dir, redo, report=keep)
            if not keep:
                (folder / CHECKPOINT).unlink(missing_ok=True)
        elif found != folder:
            shutil.copyfile(found / RESULTS, folder / RESULTS)
            _sign(planned, folder)
        (folder / FAILURE).unlink(missing_ok=True)
        run = read_folder(folder)
    except Exception as error:  # the other cells go on, whatever happened in this one
        return Outcome(_note_failure(planned, folder, error), False,
                       time.perf_counter() - started)
    return Outcome(run, found is not None, time.perf_counter() - started)


def _note_failure(planned: PlannedCell, folder: Path, error: Exception) -> dict[str, Any]:
    text = ' '.join(str(error).split())
    failure = {'cell': planned.coordinates,
               'error': f'{type(error).__name__}: {text}' if text else type(error).__name__}
    with contextlib.suppress(ValueError, OSError):  # that it cannot be written is the error
        write_json(folder / FAILURE, {**failure, 'traceback': traceback.format_exc()})
    return failure


def _finished(planned: PlannedCell, work_dir: Path) -> Path | None:
    """The folder that holds this cell's figures: its own, or the same cell's of another table.

    Raises:
        ValueError: Its own folder holds those of another config, weights or versions.
    """
    own, ours = work_dir / planned.cell.folder, planned.identity
    if (own / RESULTS).is_file():
        check_identity(own, ours, _signature(own),
                       'Run with --redo, or use another --work-dir.')
        return own
    inner = Path(*planned.cell.folder.parts[1:])
    for table in sorted(work_dir.glob('table*')):
        if (table / inner / RESULTS).is_file() and _signature(table / inner) == ours:
            return table / inner
    return None


def _compute(planned: PlannedCell, work_dir: Path, redo: bool, report: bool) -> None:
    """Quantizes and evaluates; the float model only where no earlier cell has."""
    folder = work_dir / planned.cell.folder
    resume = not redo and _signature(folder) == planned.identity
    _sign(planned, folder)
    floats = work_dir / 'float' / f'{planned.cell.model}.json'
    known = _load(floats)
    if known.get('identity') != planned.float_identity:
        known = {}
    cfg = planned.cfg.copy()
    cfg.work_dir = str(folder)
    with _output_to(folder / LOG):
        results = quantize_config(cfg, config_name=planned.config_name, resume=resume,
                                  float_metrics=known.get('metrics'), report=report,
                                  integer=False)  # tables do not depend on the processor
    if not known:
        check_work_dir(floats.parent)
        write_json(floats, {'identity': planned.float_identity, 'metrics': results['float']})


def _sign(planned: PlannedCell, folder: Path) -> None:
    """Writes what the folder's figures are of."""
    write_json(folder / CELL, {
        'cell': planned.coordinates, 'command': planned.command,
        'quantization': _as_json(planned.spec.to_dict()),
        'identity': planned.identity})


def _signature(folder: Path) -> dict[str, Any]:
    return _load(folder / CELL).get('identity', {})


def _load(path: Path) -> dict[str, Any]:
    """Contents of a JSON file of ours, nothing where it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}


def read_config(model: BenchModel) -> Config:
    """The quantization config of a model.

    Raises:
        ValueError: It is not there, or needs a module that is not.
    """
    if not Path(model.config).is_file():
        raise ValueError(f"The config {model.config} of model '{model.name}' does not exist; run "
                         "in the repository's root, or pass the path of a config as --model.")
    try:
        return Config.fromfile(model.config)
    except ImportError as error:
        raise ValueError(f'{model.config} needs a module that cannot be imported ({error}); run '
                         "in the repository's root with PYTHONPATH=.") from error


def _command(cell: Cell, model: BenchModel, data: str | None, options: Mapping[str, Any]) -> str:
    """What runs one cell alone; data and work directory are the reader's own."""
    words = ['python', 'tools/paper_tables.py', '--table', str(cell.table), '--model',
             model.config if model.data is None else model.name, '--methods', cell.method,
             '--bits', str(cell.bits), '--seeds', str(cell.seed)]
    if cell.scope != 'all' or cell.table == 5:
        words += ['--scopes', cell.scope]
    if options:
        words += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    return shlex.join(words) + (' --data DATA' if data is not None else '') \
        + ' --work-dir WORK_DIR'


class _Relay(io.TextIOBase):
    """Writes to whatever file the current cell has.

    Loggers of earlier cells keep the stream they were made with; this one never closes.
    """

    target: Any = None

    def write(self, text: str) -> int:
        return (self.target or sys.__stderr__).write(text)

    def flush(self) -> None:
        (self.target or sys.__stderr__).flush()


_RELAY = _Relay()


@contextlib.contextmanager
def _output_to(path: Path):
    """Sends what is printed and logged to a file, appended to what an interrupted run left."""
    with open(path, 'a', encoding='utf-8') as file, contextlib.redirect_stdout(_RELAY), \
            contextlib.redirect_stderr(_RELAY):
        _RELAY.target = file
        try:
            yield
        finally:
            _RELAY.target = None


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=describe))
