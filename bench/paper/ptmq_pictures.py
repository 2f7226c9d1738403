"""The pictures of PTMQ's paper: Figure 5 from its table, Figures 3 and 4 from a Pareto front."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.paper.ptmq import PTMQTable
from bench.paper.ptmq_run import PTMQRun
from bench.paper.ptmq_subjects import ModuleSubject

FRONT_WIDTHS = (3, 4, 5, 6, 8)
BUDGETS = ('3.5', '4', '5', '6')
JUDGED = 512  # images of calibration that plans are measured on


def mixer_figure(table: PTMQTable, rows: Sequence[Mapping[str, Any]], label: str,
                 path: Path) -> None:
    """Draws Figure 5: mixers as bars, the loss without distillation as a line beside its case.

    Args:
        table: Of Figure 5.
        rows: Of results; see ``ptmq.markdown``. The float model's comes first.
        label: Of the vertical axis.
        path: PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure as Canvas

    widths = [f'W{one.weight}A{one.activation}' for one in table.widths]
    bars = [row for row in rows[1:] if row['name'].startswith('mixer')]
    lines = [row for row in rows[1:] if row not in bars]
    figure = Canvas(figsize=(6.4, 4.4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axis, places = figure.subplots(), np.arange(len(widths))

    def means(row: Mapping[str, Any]) -> list[float]:
        return [float(np.mean(row['figures'][width])) for width in widths]

    thickness = 0.8 / max(1, len(bars))
    for number, row in enumerate(bars):
        axis.bar(places + (number - (len(bars) - 1) / 2) * thickness, means(row), thickness,
                 label=row['name'], color=f'C{number}')
    for number, row in enumerate(lines, len(bars)):
        axis.plot(places, means(row), marker='o', label=row['name'], color=f'C{number}')
    seen = [value for row in (*bars, *lines) for value in means(row)]
    room = 0.1 * (max(seen) - min(seen)) or 1.0
    axis.set_ylim(min(seen) - room, max(seen) + room)
    axis.set_xticks(places, widths)
    axis.set_ylabel(label)
    axis.legend(fontsize='small')
    axis.set_title('PTMQ, Figure 5')
    figure.savefig(path)


def front_figures(run: PTMQRun, widths: Sequence[int], evaluations: int, out: Path,
                  told: Callable[[str], None]) -> None:
    """Draws Figures 3 and 4: sensitivity over size, and accuracy over size, of plans on a front
    beside uniform widths. Leaves ``figure_3.svg``, ``figure_4.svg``, ``pareto.json`` and plans.

    Args:
        run: Settings; of the first seed.
        widths: Of the model.
        evaluations: Most plans that are measured a budget.
        out: Folder.
        told: Called with a line about each plan.

    Raises:
        ValueError: The model is one of a config, which ``mmbitsplit pareto`` is for.
    """
    from benchmarks.pareto import leave
    from mmbitsplit.apis import pareto_front, set_plan

    subject, seed = run.subject, run.seeds[0]
    if not isinstance(subject, ModuleSubject):
        raise ValueError(f'--figure 3 and 4 are of resnet20, resnet56 and fashion_vit, not of '
                         f'{subject.label}; quantize it with method PTMQ and take mmbitsplit '
                         'pareto.')
    out.mkdir(parents=True, exist_ok=True)
    reference = subject.load()
    full = subject.figure(reference)
    told(f'{subject.label}, float: {full:.2f}')
    model, seconds = subject.calibrated(dict(method=run.method('PTMQ', widths=[*widths])), seed,
                                        run.num_images)
    told(f'calibrated in {seconds:.0f} processor seconds')
    judged = [batch for batch in subject.batches(seed, min(JUDGED, run.num_images))]
    front = pareto_front(model, judged, [budget for budget in BUDGETS
                                         if min(widths) <= float(budget) <= max(widths)],
                         seed=seed, evaluations=evaluations, granularity='block',
                         reference=reference)
    figures = []
    for one in front.plans:
        set_plan(model, one.plan)
        figures.append(subject.figure(model))
        told(f'{one.found.name:<20} {one.found.costs["weight_bits"]:5.2f} bits '
             f'{one.found.costs["bytes"] / 1e3:8.1f} kB  loss {one.found.whole:.4g}  '
             f'{figures[-1]:.2f}')
    leave(front, figures, full, out)
