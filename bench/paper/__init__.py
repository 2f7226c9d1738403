"""The tables of the Bit-split paper (Wang et al., ICML 2020): grids of runs, and printing."""

from bench.paper.grids import TABLES, Bits, Cell, PaperTable, cells_of, parse_bits
from bench.paper.layout import (
    csv_text,
    full_table,
    method_table,
    paper_page,
    pivot_table,
)
from bench.paper.methods import (
    METHOD_ROWS,
    MethodRow,
    at_iterations,
    check_rows,
    method_row,
)
from bench.paper.models import BENCH_MODELS, BenchModel, bench_model, data_kind
from bench.paper.plots import bits_figure
from bench.paper.published import published, published_float
from bench.paper.summary import Figure, SummaryRow, summarise
from bench.paper.verdicts import verdicts

__all__ = [
    'BENCH_MODELS', 'METHOD_ROWS', 'TABLES', 'BenchModel', 'Bits', 'Cell', 'Figure', 'MethodRow',
    'PaperTable', 'SummaryRow', 'at_iterations', 'bench_model', 'bits_figure', 'cells_of',
    'check_rows', 'csv_text', 'data_kind', 'full_table', 'method_row', 'method_table', 'paper_page',
    'parse_bits', 'pivot_table', 'published', 'published_float', 'summarise', 'verdicts',
]
