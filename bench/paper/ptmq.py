"""The tables of PTMQ (Xu et al., AAAI 2024) on CIFAR: one run for all widths beside others.

The paper's models are ImageNet's; its figures stand below ours with the name of their model, and
are comparable in their order alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = (5,)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        name: As the paper has it.
        options: Of ``PTMQ``, one run for all widths; ``None`` for QDrop, a run a width.
        published: The paper's figures for ResNet-18 on ImageNet, by width.
    """

    name: str
    options: Mapping[str, Any] | None = field(default_factory=dict)
    published: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PTMQTable:
    """A table or figure of the paper.

    Args:
        number: In ``--table``; of a figure its number, which no table of the paper has.
        title: What it shows.
        widths: Of weights and inputs alike.
        rows: In order.
    """

    number: int
    title: str
    widths: tuple[int, ...]
    rows: tuple[Row, ...]


def _compared(**options: Any) -> dict[str, Any]:
    """Options of a run that is compared with others: what was learned is taken in any case."""
    return dict(fallback=False, **options)


PTMQ_TABLES = {table.number: table for table in (
    PTMQTable(1, 'One run for all widths, and QDrop at each width by itself', (3, 4, 6, 8), (
        Row('QDrop', None, {3: 66.26, 4: 69.54, 6: 70.52, 8: 70.83}),
        Row('PTMQ', {}, {3: 64.92, 4: 67.57, 6: 70.23, 8: 70.79}))),
    PTMQTable(3, 'Direct and progressive quantization, and PTMQ', (3, 4, 5), (
        Row('D-Q, only 3-bit', _compared(strategy='direct', direct_bits=3),
            {3: 66.10, 4: 39.24, 5: 63.06}),
        Row('D-Q, only 4-bit', _compared(strategy='direct', direct_bits=4),
            {3: 3.32, 4: 69.54, 5: 65.56}),
        Row('P-Q, low to high', _compared(strategy='low_to_high'),
            {3: 13.71, 4: 39.38, 5: 57.16}),
        Row('P-Q, high to low', _compared(strategy='high_to_low'),
            {3: 59.59, 4: 62.59, 5: 65.82}),
        Row('PTMQ', _compared(), {3: 64.92, 4: 67.57, 5: 69.00}))),
    # The paper's figure prints no numbers.
    PTMQTable(5, 'Mixers, and the loss with and without distillation', (3, 4, 5), (
        Row('mixer, case 1', _compared(mixer='case1')),
        Row('mixer, case 2', _compared(mixer='case2')),
        Row('mixer, case 3', _compared(mixer='case3')),
        Row('case 3 without GD-Loss', _compared(gammas=(1.0, 0.0, 0.0))),
        Row('case 3, high group not detached', _compared(detach_high=False)))),
)}


def ptmq_table(number: int) -> PTMQTable:
    """A table by its number.

    Raises:
        ValueError: There is none, or its models are not at hand.
    """
    if number not in PTMQ_TABLES:
        why = ' Table 2 is of vision transformers for ImageNet, which are not at hand; learn one ' \
              "with method=dict(type='PTMQ', widths=[4, 5, 6, 7, 8], " \
              'activation_widths=[6, 7, 8]).' if number == 2 else ''
        raise ValueError(f'--table {number} is not supported with --paper ptmq; allowed are 1, 3 '
                         f'and 5 (Figure 5).{why}')
    return PTMQ_TABLES[number]


@dataclass(frozen=True, kw_only=True)
class PTMQRun:
    """How the cells of a table are run.

    Args:
        data: Folder of the CIFAR set, see ``benchmarks/cifar.py``.
        iterations: Steps for each block, of all methods; ``None`` for as many as published.
        options: Of all methods, such as a learning rate for few steps.
        num_images: To calibrate on.
        seeds: Of the calibrations.
        network: Of ``benchmarks.cifar.NETWORKS``.
    """

    data: Path
    iterations: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    num_images: int = 1024
    seeds: Sequence[int] = (0,)
    network: str = 'resnet20'

    def of(self, table: PTMQTable, told: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """Yields a row of results after another: name, top-1 by width and seed, seconds.

        Args:
            table: Which.
            told: Called with a line about each row.
        """
        from benchmarks.cifar import NETWORKS, accuracy, load_images, load_model, predict

        network = NETWORKS[self.network]
        calib, _ = load_images(self.data / 'calib', None, network.mean, network.std)
        images, labels = load_images(self.data / 'test', None, network.mean, network.std)
        full = accuracy(predict(load_model(network, [self.data]), images), labels)
        told(f'{network.label}, float: {full:.2f}')
        yield {'name': 'float', 'top1': {bits: [full] for bits in table.widths}, 'seconds': 0.0}
        for row in table.rows:
            found: dict[int, list[float]] = {bits: [] for bits in table.widths}
            seconds = 0.0
            for seed in self.seeds:
                for bits, spent, model in self._models(row, table, network, calib, seed):
                    found[bits].append(accuracy(predict(model, images), labels))
                    seconds += spent / len(self.seeds)
            told(f'{row.name}: ' + ', '.join(
                f'W{bits}A{bits} {np.mean(top1):.2f}' for bits, top1 in found.items())
                + f' ({seconds:.0f} s)')
            yield {'name': row.name, 'top1': found, 'seconds': seconds}

    def _models(self, row: Row, table: PTMQTable, network: Any, calib: Any, seed: int,
                ) -> Iterator[tuple[int, float, Any]]:
        """Models of a row at each width, with the seconds that each has taken beyond the last."""
        import torch

        from benchmarks.cifar import load_model
        from mmbitsplit.apis import quantize_model
        from mmbitsplit.models import set_bits

        chosen = torch.randperm(len(calib), generator=torch.Generator().manual_seed(seed))
        batches = calib[chosen[:self.num_images]].split(64)

        def calibrated(request: dict[str, Any]) -> tuple[Any, float]:
            model = load_model(network, [self.data])
            started = time.perf_counter()
            quantize_model(model, batches, {**request, 'calibration': dict(seed=seed)})
            return model, time.perf_counter() - started

        steps = {} if self.iterations is None else dict(iterations=self.iterations)
        shared = {**steps, **self.options}
        if row.options is None:
            for bits in table.widths:
                model, spent = calibrated(dict(
                    weight=dict(num_bits=bits), activation=dict(num_bits=bits),
                    method=dict(type='QDrop', **shared)))
                yield bits, spent, model
            return
        model, spent = calibrated(dict(method=dict(
            type='PTMQ', widths=[*table.widths], **{**shared, **row.options})))
        for bits in table.widths:
            set_bits(model, bits)
            yield bits, spent, model
            spent = 0.0


def markdown(table: PTMQTable, rows: Sequence[Mapping[str, Any]], run: PTMQRun) -> str:
    """The table as Markdown: ours, and the paper's figures of its model below."""
    widths = table.widths
    name = 'Figure' if table.number in FIGURES else 'Table'
    steps = 'as many steps as published' if run.iterations is None else \
        f'{run.iterations} steps for each block'
    lines = [f'{name} {table.number} of PTMQ. {table.title}: {run.network}, '
             f'CIFAR-10, {run.num_images} images, {steps}, {len(run.seeds)} seed(s), top-1 in %.',
             '', '| Method | ' + ' | '.join(f'W{bits}A{bits}' for bits in widths)
             + ' | mean | seconds |', '|---|' + '---|' * (len(widths) + 2)]

    def line(label: str, values: Mapping[int, float], seconds: str) -> str:
        cells = [f'{values[bits]:.2f}' for bits in widths]
        return f'| {label} | ' + ' | '.join(
            [*cells, f'{np.mean([*values.values()]):.2f}', seconds]) + ' |'

    for row in rows:
        means = {bits: float(np.mean(row['top1'][bits])) for bits in widths}
        lines.append(line(row['name'], means, f'{row["seconds"]:.0f}' if row['seconds'] else ''))
    lines += [line(f'*the paper, ResNet-18, ImageNet: {row.name}*', row.published, '')
              for row in table.rows if row.published]
    return '\n'.join(lines) + '\n'
