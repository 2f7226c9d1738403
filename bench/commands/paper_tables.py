"""Runs the grid of one table of the Bit-split paper, or of PTMQ's, and prints the table."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbitsplit.cli.command import add_debug, run_module

EXAMPLE = '--table 3 --model classifier --bits 4 3 --seeds 0 1 2 --work-dir work_dirs/paper'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    from bench.paper import BENCH_MODELS, METHOD_ROWS, TABLES
    from mmbitsplit.cli.config_arguments import ConfigOptions

    parser.add_argument('--paper', choices=['bitsplit', 'ptmq'], default='bitsplit',
                        help='ptmq: one run for all widths; its tables 1 to 3, and --figure 3 to '
                        '5; default bitsplit')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--table', type=int, choices=sorted(TABLES),
                      help='number of the table in the paper; 6: learned rounding; with --paper '
                      'ptmq 1 to 3, and 5 for its Figure 5')
    what.add_argument('--figure', type=int, choices=[3, 4, 5],
                      help='of --paper ptmq: 3 and 4, plans of a Pareto front; 5, its ablations')
    parser.add_argument('--model', nargs='+', metavar='MODEL',
                        help=f'{", ".join(BENCH_MODELS)}, or paths of quantization configs; '
                        'default: the demo models, or all of the data set in --data. With '
                        '--paper ptmq one of them, resnet20 (default), resnet56 or fashion_vit '
                        '(default of table 2)')
    parser.add_argument('--data', help='folder of ImageNet, COCO or the CIFAR set, known by what '
                        "lies in it; default: where the models' configs say")
    parser.add_argument('--work-dir', default='work_dirs/paper',
                        help='a folder a cell, and the tables; default work_dirs/paper')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0],
                        help='mean and standard deviation are over these; default 0')
    parser.add_argument('--bits', nargs='+', default=[], metavar='BITS',
                        help="such as w4a8, w4a32 (float activations), or in tables 1 to 3 one "
                        "number; with --paper ptmq widths that go into one run; default: the "
                        "table's")
    parser.add_argument('--methods', nargs='+', default=[], metavar='METHOD',
                        help=f"default: the table's, of {', '.join(METHOD_ROWS)}; with --paper "
                        'ptmq its rows: qdrop, ptmq; in table 3 dq_3, dq_4, pq_up, pq_down, '
                        'separate')
    parser.add_argument('--iterations', type=int, metavar='STEPS',
                        help='steps of methods that learn, instead of as many as published (their '
                        'further stages in proportion; NAME@STEPS in --methods sets them for one '
                        'row); tables say the steps')
    parser.add_argument('--scopes', nargs='+', default=[], metavar='SCOPE',
                        help='table 5: all, backbone+neck; default both')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='settings of the configs to replace, in every cell')
    parser.add_argument('--redo', action='store_true',
                        help='run finished cells again instead of taking them over')
    parser.add_argument('--keep', '--keep-checkpoints', action='store_true',
                        help='keep quantized.pth of every cell and leave its report.html')
    parser.add_argument('--num-images', type=int, default=1024,
                        help='of --paper ptmq: to calibrate on; default 1024')
    parser.add_argument('--test-images', type=int,
                        help='of --paper ptmq: to judge on; default all')
    parser.add_argument('--options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='of --paper ptmq: options of its methods in every row, such as '
                        'learning_rate=0.01 for few steps')
    parser.add_argument('--weights', help='of --paper ptmq: folder of the weights; default --data')
    parser.add_argument('--evaluations', type=int, default=200,
                        help='of --figure 3 and 4: most plans measured a budget; default 200')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the grid, cell after cell; returns 1 where some failed."""
    from bench.paper import TABLES

    if args.paper == 'ptmq':
        return run_ptmq(args)
    for name in ('figure', 'options', 'weights', 'test_images'):
        if getattr(args, name):
            raise ValueError(f'--{name.replace("_", "-")} is not supported with --paper bitsplit; '
                             'it goes with --paper ptmq.')
    planned = plan(args)
    work_dir = Path(args.work_dir)
    outcomes: list[Mapping[str, Any]] = []
    try:
        for number, cell in enumerate(planned, 1):
            outcomes.append(_run_one(cell, args, f'[{number}/{len(planned)}]'))
    finally:  # also what was done until Ctrl-C
        if outcomes:
            text = write_tables(TABLES[args.table], outcomes, work_dir, len(planned))
            print(f'\n{text}\nFiles are {work_dir}/table{args.table}.md, .csv and .png')
    return int(any('error' in run for run in outcomes))


def run_ptmq(args: argparse.Namespace) -> int:
    """Runs a table or figure of PTMQ, and writes it after each row.

    Raises:
        ValueError: An option of the other grid is given, or a row, width, model or data set is
            refused.
    """
    from bench.paper.ptmq import chosen_rows, ptmq_table, with_widths
    from bench.paper.ptmq_pictures import FRONT_WIDTHS, front_figures
    from bench.paper.ptmq_run import Cells, PTMQRun
    from bench.paper.ptmq_subjects import FASHION, subject_of

    for name in ('scopes', 'cfg_options', 'keep'):
        if getattr(args, name):
            raise ValueError(f'--{name.replace("_", "-")} is not supported with --paper ptmq.')
    front = args.figure in (3, 4)
    if front and args.methods:
        raise ValueError(f'--methods is not supported with --figure {args.figure}; it is of PTMQ.')
    table = ptmq_table(1 if front else args.figure or args.table)
    if args.bits or front:
        table = with_widths(table, args.bits or [str(bits) for bits in FRONT_WIDTHS])
    rows = chosen_rows(table, args.methods)
    if args.model is not None and len(args.model) != 1:
        raise ValueError('--paper ptmq takes one --model at a time.')
    (name,) = args.model or [FASHION if table.transformers else 'resnet20']
    work_dir = Path(args.work_dir)
    subject = subject_of(name, args.data, args.weights, work_dir / 'logs', args.test_images)
    run = PTMQRun(subject=subject, iterations=args.iterations, seeds=args.seeds,
                  options=args.options, num_images=args.num_images)
    if front:
        front_figures(run, [one.weight for one in table.widths], args.evaluations, work_dir,
                      lambda line: print(line, flush=True))
        print(f'\nThe file is {work_dir}/figure_{args.figure}.svg, its data pareto.json')
        return 0
    return _write_ptmq(table, rows, Cells(work_dir / 'ptmq_cells.json', run, args.redo), work_dir)


def _write_ptmq(table, rows: Sequence, cells, work_dir: Path) -> int:
    """Runs rows; writes the table after each, and Figure 5 when all are done."""
    from bench.paper.ptmq import ABLATIONS, markdown
    from bench.paper.ptmq_pictures import mixer_figure
    from bench.paper.ptmq_run import run_rows

    run, figure = cells.run, table.number == ABLATIONS
    path = work_dir / f'ptmq_{"figure" if figure else "table"}{table.number}.md'
    found: list[Mapping[str, Any]] = []
    for row in run_rows(table, rows, cells, lambda line: print(line, flush=True)):
        found.append(row)
        path.write_text(markdown(table, found, run.heading, run.subject.paper), encoding='utf-8')
    if figure:
        mixer_figure(table, found, run.subject.metric, path.with_suffix('.png'))
    print(f'\n{path.read_text(encoding="utf-8")}\nThe file is {path}')
    return 0


def plan(args: argparse.Namespace) -> list:
    """Checks everything that can be checked and returns the planned cells.

    Raises:
        ValueError: A model, method, width, data set or request is refused.
    """
    from mmengine.config import Config

    from bench.grid import plan_cells
    from bench.paper import TABLES, at_iterations, cells_of, check_rows, parse_bits
    from mmbitsplit.cli.config_arguments import check_options

    table = TABLES[args.table]
    if args.iterations is not None and args.iterations < 1:
        raise ValueError(f'--iterations {args.iterations} is not supported; give 1 or more.')
    methods = [at_iterations(name, args.iterations) for name in args.methods or table.methods]
    check_rows(methods)
    bits = [parse_bits(table, text) for text in args.bits]
    models = choose_models(table, args.model, args.data)
    planned = []
    for model in models:
        if args.cfg_options and Path(model.config).is_file():
            check_options(Config.fromfile(model.config), args.cfg_options)
        cells = cells_of(table, model.name, methods=methods, bits=bits, seeds=args.seeds,
                         scopes=args.scopes)
        planned += plan_cells(model, cells, args.data, args.cfg_options)
    return planned


def choose_models(table, names: Sequence[str] | None, data: str | None) -> list:
    """Returns the models that are asked for, or those that fit table and data.

    Raises:
        ValueError: A model is not known, needs other data, or does not belong into the table.
    """
    from bench.paper import BENCH_MODELS, bench_model, data_kind
    from bench.paper.models import AT_HAND

    kind = AT_HAND if data is None else data_kind(data)
    if names:
        models = [bench_model(name) for name in names]
        for model in models:
            if data is not None and model.data not in (kind, None):
                raise ValueError(f"data='{data}' is {kind}, model '{model.name}' needs "
                                 f'{model.data}; give each data set a call of its own.')
    else:
        models = [model for model in BENCH_MODELS.values() if model.data == kind]
    fitting = [model for model in models if model.detector is not False or not table.detectors]
    if not fitting or (names and fitting != models):
        raise ValueError(f'Table {table.number} is of detectors; model(s) '
                         f'{", ".join(model.name for model in models)} are classifiers. Allowed: '
                         + ', '.join(m.name for m in BENCH_MODELS.values() if m.detector) + '.')
    return fitting


def _run_one(planned, args: argparse.Namespace, count: str) -> Mapping[str, Any]:
    """Runs a cell and prints one line about it."""
    from bench.grid import run_cell

    print(f'{count} {planned.cell.label}: ', end='', flush=True)
    outcome = run_cell(planned, Path(args.work_dir), redo=args.redo,
                       keep=args.keep)
    print(describe(outcome.run) + (', taken over' if outcome.taken_over
                                   else f', {outcome.seconds:.0f} s'), flush=True)
    return outcome.run


def describe(run: Mapping[str, Any]) -> str:
    """Returns the figures of a run in a few words."""
    from bench.paper.layout import shortened
    from bench.paper.summary import HEADINGS
    from mmbitsplit.report.tables import HEADLINES, in_points

    if 'error' in run:
        return f'FAILED: {shortened(run["error"])}'
    return ', '.join(
        f'{HEADINGS[name]} {in_points(name, run["quantized"][name]):.2f} '
        f'(float {in_points(name, run["float"][name]):.2f})'
        for name in HEADLINES if name in run['quantized'])


def write_tables(table, runs: Sequence[Mapping[str, Any]], work_dir: Path, planned: int) -> str:
    """Writes Markdown, CSV and plot of what has run; returns the Markdown."""
    from bench.paper import bits_figure, csv_text, paper_page, summarise
    from mmbitsplit.export.writing import write_text

    rows = summarise(runs)
    left = planned - len(runs)
    text = paper_page(table, rows, left)
    write_text(work_dir / f'table{table.number}.md', text)
    write_text(work_dir / f'table{table.number}.csv', csv_text(rows))
    if any(row.figures for row in rows):
        bits_figure(rows, str(work_dir / f'table{table.number}.png'))
    return text


def after_interrupt(command: Sequence[str]) -> str:
    """Says how to go on after Ctrl-C.

    Args:
        command: The interrupted command line.
    """
    return f'finished cells are kept; go on with: {shlex.join(command)}'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
