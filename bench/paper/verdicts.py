"""Does the order that the paper reports appear, and is the default at least as good as all?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.paper.grids import TABLES, Bits
from bench.paper.methods import DEFAULT, method_row
from bench.paper.summary import HEADINGS, Figure, SummaryRow, headlines_of

LOW_BITS = 4  # from here down the paper's differences are large


@dataclass(frozen=True)
class Verdict:
    """One comparison.

    Args:
        holds: ``None`` where it would not hold, but there is no second seed to know the noise.
        text: What was compared, with both figures.
    """

    holds: bool | None
    text: str

    def __str__(self) -> str:
        return {True: 'holds', False: 'DOES NOT HOLD', None: 'open'}[self.holds] \
            + f': {self.text}'


def verdicts(rows: Sequence[SummaryRow]) -> list[Verdict]:
    """Compares the rows of one table of the paper.

    At least as good means: not below by more than the two standard deviations together.
    """
    groups: dict[tuple, dict[str, SummaryRow]] = {}
    for row in rows:
        groups.setdefault((row.table, row.model, row.scope, row.bits), {})[row.method] = row
    return [verdict for group in groups.values() for verdict in _group(group)]


def _group(rows: dict[str, SummaryRow]) -> Iterator[Verdict]:
    """Comparisons among the methods of one model at one width."""
    first = next(iter(rows.values()))
    for metric in headlines_of([*rows.values()]):
        figures = {name: row.figures[metric] for name, row in rows.items()
                   if metric in row.figures}
        where = f'{first.model_label} {TABLES[first.table].bits_label(first.bits)}' \
            f'{"" if first.scope == "all" else " " + first.scope} {HEADINGS.get(metric, metric)}'
        yield from _orders(figures, where, first.bits)
        if DEFAULT in figures:
            yield from (_at_least(where, DEFAULT, name, figures)
                        for name in figures if name != DEFAULT)


def _orders(figures: dict[str, Figure], where: str, bits: Bits) -> Iterator[Verdict]:
    """What the paper reports at few bits."""
    if {'tflite', 'bitsplit_published'} <= set(figures) and bits.weight <= LOW_BITS:
        low, high = figures['tflite'], figures['bitsplit_published']
        yield Verdict(low.mean + _noise(low, high, 0.0) < high.mean,
                      f'{where}: TF-Lite {low} below bit-split as published {high}')
    if {'ecaq', 'per_tensor'} <= set(figures) and (bits.activation or 32) <= LOW_BITS:
        yield _at_least(where, 'ecaq', 'per_tensor', figures)
    if bits.weight < LOW_BITS:  # what the papers of these methods report
        for better, other in (('qdrop', 'brecq'), ('brecq', 'adaround')):
            for name in figures:
                same = name.replace(better, other, 1)
                if name.partition('@')[0] == better and same in figures:
                    yield _at_least(where, name, same, figures)


def _at_least(where: str, name: str, other: str, figures: dict[str, Figure]) -> Verdict:
    ours, theirs = figures[name], figures[other]
    noise = _noise(ours, theirs, None)
    holds: bool | None = theirs.mean <= ours.mean
    if not holds:
        holds = None if noise is None else theirs.mean - ours.mean <= noise
    return Verdict(holds, f'{where}: {method_row(name).title} {ours} at least as good as '
                          f'{method_row(other).title} {theirs}')


def _noise(one: Figure, other: Figure, unknown: float | None) -> float | None:
    """Both standard deviations together, ``unknown`` where neither is known."""
    known = [figure.std for figure in (one, other) if figure.std is not None]
    return sum(known) if known else unknown
