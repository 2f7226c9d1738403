"""The paper's tables as grids of cells: which methods, bits, scopes and seeds."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.paper.methods import DEFAULT, method_row
from mmbitsplit.structures.options import check_choice
from mmbitsplit.structures.widths import MAX_BITS, MIN_BITS


@dataclass(frozen=True)
class Bits:
    """Widths of weight and activation codes; ``activation=None`` leaves the inputs in float."""

    weight: int
    activation: int | None

    def __str__(self) -> str:
        return f'w{self.weight}a{self.activation or 32}'

    @property
    def label(self) -> str:
        """As tables write it: ``W4A8``, ``W4A32`` for float inputs."""
        return str(self).upper()


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Args:
        number: 1 to 5; from 6 on they are no tables of the paper but made like them.
        title: What it compares.
        varies: Which bits one number of ``--bits`` stands for: ``'weight'`` (inputs in float),
            ``'activation'`` (weights 8 bits), ``'both'``, or ``'pairs'``: only pairs will do.
        bits: Of the columns.
        methods: Rows, keys of ``METHOD_ROWS``; those of methods that learn with as many steps as
            published.
        scopes: Which parts of the model are quantized, each of its own.
        detectors: Only detectors belong into it.
    """

    number: int
    title: str
    varies: str
    bits: tuple[Bits, ...]
    methods: tuple[str, ...]
    scopes: tuple[str, ...] = ('all',)
    detectors: bool = False

    def bits_of(self, number: int) -> Bits:
        """Returns the bits that one number stands for in this table."""
        if self.varies == 'pairs':
            raise ValueError(f"bits='{number}' is not enough for table {self.number}; give "
                             "weights and activations, such as 'w4a8'.")
        return {'weight': Bits(number, None), 'activation': Bits(8, number),
                'both': Bits(number, number)}[self.varies]

    def bits_label(self, bits: Bits) -> str:
        """What a row of the table is called: ``W4`` in Table 1, ``A4`` in Table 2."""
        return {'weight': f'W{bits.weight}', 'activation': f'A{bits.activation}'}.get(
            self.varies, bits.label)


DOWN = (8, 7, 6, 5, 4, 3)
TABLES = {table.number: table for table in (
    PaperTable(1, 'Weights quantized, activations in float', 'weight',
               tuple(Bits(n, None) for n in DOWN),
               ('tflite', 'bitsplit_published', 'bitsplit_published_a8', DEFAULT)),
    PaperTable(2, 'Activations quantized, weights 8 bits', 'activation',
               tuple(Bits(8, n) for n in DOWN), ('per_tensor', 'per_channel', 'ecaq', DEFAULT)),
    PaperTable(3, 'Weights and activations quantized', 'both',
               tuple(Bits(n, n) for n in DOWN), ('tflite', 'bitsplit_published', DEFAULT)),
    PaperTable(4, 'Methods compared', 'pairs', (Bits(4, 8), Bits(4, 4)),
               ('tflite', 'mse', 'tensorrt', 'aciq', 'aciq_mix', 'lapq', 'error_feedback',
                'bitsplit_published', 'bitsplit_published_per_channel', DEFAULT,
                'bitsplit_per_channel')),
    PaperTable(5, 'Detectors', 'pairs', (Bits(8, 8), Bits(4, 8), Bits(4, 4), Bits(3, 8)),
               ('tflite', 'bitsplit_published', DEFAULT), ('all', 'backbone+neck'),
               detectors=True),
    PaperTable(6, 'Learned rounding', 'pairs', (Bits(4, 4), Bits(3, 3), Bits(2, 4)),
               ('mse', 'adaround', 'adaquant', 'brecq', 'qdrop', DEFAULT)),
)}


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Args:
        table: Number of the table.
        model: Name of a ``BenchModel``.
        method: Key of ``METHOD_ROWS``, also with steps: ``'qdrop@2000'``.
        bits: As the run has them.
        seed: Chooses calibration images and positions.
        scope: Which parts are quantized.
    """

    table: int
    model: str
    method: str
    bits: Bits
    seed: int = 0
    scope: str = 'all'

    @property
    def folder(self) -> Path:
        """Where the run lies in the work directory."""
        part = '' if self.scope == 'all' else f'_{self.scope}'
        return Path(f'table{self.table}', self.model,
                    f'{self.method}_{self.bits}{part}_s{self.seed}')

    @property
    def label(self) -> str:
        """One line for progress and errors."""
        part = '' if self.scope == 'all' else f' {self.scope}'
        return f'{self.model} {self.method} {self.bits.label}{part} seed {self.seed}'

    def quantization(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the ``quantization`` dict of the run.

        Args:
            base: That of the model's config; first and last layers, calibration set and
                overrides stay as they are there, for all methods alike. Weights, activations and
                method are the row's alone.
        """
        row, request = method_row(self.method), copy.deepcopy(dict(base))
        request['weight'] = {**row.weight, 'num_bits': self.bits.weight}
        request['activation'] = {**row.activation, 'num_bits': self.bits.activation}
        request['method'] = dict(row.method)
        request['calibration'] = {**request.get('calibration', {}), 'seed': self.seed}
        request['scope'] = self.scope
        return request


def parse_bits(table: PaperTable, text: str) -> Bits:
    """Reads ``'w4a8'``, ``'w4a32'`` (float activations) or a number that the table widens.

    Raises:
        ValueError: It is none of these, or a width is not from 2 to 8.
    """
    pair = re.fullmatch(r'w(\d+)a(\d+)', text.lower())
    if pair:
        weight, activation = int(pair[1]), int(pair[2])
        bits = Bits(weight, None if activation == 32 else activation)
    elif text.isdigit():
        bits = table.bits_of(int(text))
    else:
        raise ValueError(f"bits='{text}' is not understood; allowed are pairs such as 'w4a8' "
                         "('a32': float activations), and one number in tables 1 to 3.")
    for width in (bits.weight, bits.activation):
        if width is not None and not MIN_BITS <= width <= MAX_BITS:
            raise ValueError(f"bits='{text}': widths are {MIN_BITS} to {MAX_BITS}, activations "
                             "also 32 for float.")
    return bits


def cells_of(table: PaperTable, model: str, *, methods: Sequence[str] = (),
             bits: Sequence[Bits] = (), seeds: Sequence[int] = (0,),
             scopes: Sequence[str] = ()) -> list[Cell]:
    """Lists the runs of one model in one table; what is not given is as in the table.

    Raises:
        ValueError: A method or a scope is not known.
    """
    for scope in scopes:
        check_choice('scope', scope, table.scopes)
    return list(dict.fromkeys(_cells(
        table, model, methods or table.methods, bits or table.bits, seeds,
        scopes or table.scopes)))


def _cells(table: PaperTable, model: str, methods: Sequence[str], bits: Sequence[Bits],
           seeds: Sequence[int], scopes: Sequence[str]) -> Iterator[Cell]:
    for scope in scopes:
        for pair in bits:
            for method in methods:
                row = method_row(method)
                own = Bits(pair.weight, row.activation.get('num_bits', pair.activation))
                sees_images = own.activation is not None or row.looks_at_images
                for seed in seeds if sees_images else seeds[:1]:
                    yield Cell(table.number, model, method, own, seed, scope)
