"""Writes ``plan.json``, before a run's layers are solved, so that it can be looked at early."""

from pathlib import Path

from mmengine.config import Config

from mmbitsplit.export.writing import write_text
from mmbitsplit.structures import BitPlan, plan_text, plan_value
from mmbitsplit.structures.plan_file import PLAN


def write_plan(work_dir: str | Path, plan: BitPlan, cfg: Config) -> None:
    """Writes the plan of a run into its work directory.

    A file there that the config gives as the plan stays as the user wrote it: a resumed run must
    find it unchanged.

    Args:
        work_dir: Of the run.
        plan: Of all layers.
        cfg: The config that is quantized.

    Raises:
        ValueError: The file cannot be written.
    """
    path, given = Path(work_dir) / PLAN, (cfg.get('quantization') or {}).get('plan')
    if isinstance(given, (str, Path)) and path.resolve() == Path(given).resolve():
        return
    write_text(path, plan_text(plan_value(plan)))
