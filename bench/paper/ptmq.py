"""The tables of PTMQ (Xu et al., AAAI 2024): their rows, and how they are printed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmbitsplit.structures import Widths

ABLATIONS = 5  # Figure 5, a table here
ALONE = 'qdrop'  # the row that is calibrated once a width


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        key: For ``--methods``.
        name: As the paper has it.
        options: Of ``PTMQ``, one run for all widths; ``None`` for QDrop, a run a width.
        published: The paper's figures by model, in the order of the table's widths.
    """

    key: str
    name: str
    options: Mapping[str, Any] | None = field(default_factory=dict)
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PTMQTable:
    """A table or figure of the paper.

    Args:
        number: In ``--table``; of a figure its number, which no table of the paper has.
        title: What it shows.
        widths: Of weights and inputs, rising.
        rows: In order.
        transformers: Whether its models are.
    """

    number: int
    title: str
    widths: tuple[Widths, ...]
    rows: tuple[Row, ...]
    transformers: bool = False

    @property
    def name(self) -> str:
        """Such as 'Table 3'."""
        return f'{"Figure" if self.number == ABLATIONS else "Table"} {self.number}'


def _same(*bits: int) -> tuple[Widths, ...]:
    return tuple(Widths(one, one) for one in bits)


def _compared(**options: Any) -> dict[str, Any]:
    """Options of a run that is compared with others: what was learned is taken in any case."""
    return dict(fallback=False, **options)


def _resnet18(*figures: float) -> dict[str, Sequence[float]]:
    return {'ResNet-18': figures}


QDROP = Row(ALONE, 'QDrop, each width by itself', None)

PTMQ_TABLES = {table.number: table for table in (
    PTMQTable(1, 'One run for all widths, and QDrop at each width by itself', _same(3, 4, 6, 8), (
        Row(ALONE, QDROP.name, None, {
            'ResNet-18': (66.26, 69.54, 70.52, 70.83), 'ResNet-50': (71.07, 74.98, 76.44, 76.65)}),
        Row('ptmq', 'PTMQ', {}, {
            'ResNet-18': (64.92, 67.57, 70.23, 70.79),
            'ResNet-50': (69.67, 73.93, 76.11, 76.52)}))),
    PTMQTable(2, 'Vision transformers', (
        Widths(4, 6), Widths(5, 6), Widths(6, 6), Widths(7, 7), Widths(8, 8)), (
        QDROP,
        Row('ptmq', 'PTMQ', {}, {
            'DeiT-S': (77.20, 78.24, 78.74, 79.30, 79.53),
            'DeiT-B': (80.00, 80.62, 80.81, 81.35, 81.54)})), transformers=True),
    PTMQTable(3, 'Direct and progressive quantization, and PTMQ', _same(3, 4, 5), (
        QDROP,
        Row('dq_3', 'D-Q, only 3-bit', _compared(strategy='direct', direct_bits=3),
            _resnet18(66.10, 39.24, 63.06)),
        Row('dq_4', 'D-Q, only 4-bit', _compared(strategy='direct', direct_bits=4),
            _resnet18(3.32, 69.54, 65.56)),
        Row('pq_up', 'P-Q, low to high', _compared(strategy='low_to_high'),
            _resnet18(13.71, 39.38, 57.16)),
        Row('pq_down', 'P-Q, high to low', _compared(strategy='high_to_low'),
            _resnet18(59.59, 62.59, 65.82)),
        Row('ptmq', 'PTMQ', _compared(), _resnet18(64.92, 67.57, 69.00)),
        Row('separate', 'widths not mixed (ours)', _compared(strategy='separate')))),
    # The paper's figure prints no numbers.
    PTMQTable(5, 'Mixers, and the loss with and without distillation', _same(3, 4, 5), (
        Row('case1', 'mixer, case 1', _compared(mixer='case1')),
        Row('case2', 'mixer, case 2', _compared(mixer='case2')),
        Row('case3', 'mixer, case 3', _compared(mixer='case3')),
        Row('no_gd', 'case 3 without GD-Loss', _compared(gammas=(1.0, 0.0, 0.0))),
        Row('not_detached', 'case 3, high group not detached', _compared(detach_high=False)))),
)}


def ptmq_table(number: int) -> PTMQTable:
    """A table by its number.

    Raises:
        ValueError: There is none.
    """
    if number not in PTMQ_TABLES:
        raise ValueError(f'--table {number} is not supported with --paper ptmq; allowed are 1, 2, '
                         '3 and 5 (Figure 5), or --figure 3, 4 or 5.')
    return PTMQ_TABLES[number]


def with_widths(table: PTMQTable, texts: Sequence[str]) -> PTMQTable:
    """A table at other widths: such as 4, or w4a8. Rows of a width that is not among
    them are left out.

    Raises:
        ValueError: A text is no width.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r'(?:w(\d)a(\d)|(\d))', text.lower())
        if match is None:
            raise ValueError(f"--bits '{text}' is not supported with --paper ptmq; it must be one "
                             'digit, or such as w4a6.')
        weight, activation, both = match.groups()
        found.append(Widths(int(weight or both), int(activation or both)))
    widths = tuple(sorted(found))
    held = {one.weight for one in widths}
    rows = tuple(replace(row, published={} if widths != table.widths else row.published)
                 for row in table.rows
                 if row.options is None or row.options.get('direct_bits', widths[0].weight) in held)
    return replace(table, widths=widths, rows=rows)


def chosen_rows(table: PTMQTable, keys: Sequence[str]) -> tuple[Row, ...]:
    """Rows of a table by their keys, all without any.

    Raises:
        ValueError: It has no such row.
    """
    known = {row.key: row for row in table.rows}
    for key in keys:
        if key not in known:
            raise ValueError(f"--methods '{key}' is not in {table.name} of PTMQ; allowed are "
                             f'{", ".join(known)}.')
    return tuple(row for row in table.rows if not keys or row.key in keys)


def markdown(table: PTMQTable, rows: Sequence[Mapping[str, Any]], heading: str,
             model: str | None = None) -> str:
    """The table as Markdown.

    Args:
        table: Which.
        rows: Each with ``name``, ``figures`` (by width, of each seed), ``seconds`` of processors
            for all widths together, and ``runs`` that they are of. The float model's comes first.
        heading: What was run.
        model: The paper's name of this model on these data, whose figures then stand below ours.
    """
    labels = [f'W{one.weight}A{one.activation}' for one in table.widths]
    lines = [f'{table.name} of PTMQ. {table.title}: {heading}', '',
             '| Method | ' + ' | '.join(labels) + ' | mean | processor seconds |',
             '|---|' + '---:|' * (len(labels) + 2)]

    def line(name: str, values: Sequence[float], seconds: str) -> str:
        cells = [f'{value:.2f}' for value in (*values, np.mean(values))]
        return f'| {name} | ' + ' | '.join([*cells, seconds]) + ' |'

    for row in rows:
        lines.append(line(row['name'], [float(np.mean(row['figures'][label])) for label in labels],
                          _seconds(row)))
    lines += [line(f'*the paper: {row.name}*', row.published[model], '')
              for row in table.rows if model in row.published]
    return '\n'.join(lines) + '\n'


def _seconds(row: Mapping[str, Any]) -> str:
    """Of all widths; beside it how many calibrations these are."""
    if not row['runs']:
        return ''
    total = f'{row["seconds"]:.0f}'
    return f'{total} once' if row['runs'] == 1 else \
        f'{total} in {row["runs"]} runs of {row["seconds"] / row["runs"]:.0f}'
