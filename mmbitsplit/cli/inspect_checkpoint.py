"""Prints the plan and the sizes of a packed checkpoint, without building its model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmbitsplit.cli.command import add_debug, run_module
from mmbitsplit.export import read_checkpoint, summarise
from mmbitsplit.report.multiplications import multiplications_text
from mmbitsplit.structures import plan_text
from mmbitsplit.structures.given_plan import PLAN_FORMAT

EXAMPLE = 'work_dirs/retinanet/quantized.pth'
COLUMNS = ('Layer', 'Kind', 'Shape', 'Bits', 'Input bits', 'Input mode', 'Output bits',
           'Bytes')
NUMBERS = ('Bits', 'Input bits', 'Output bits', 'Bytes')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument('file', help='quantized.pth or quantized.safetensors of a '
                                     'work directory')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='print JSON instead of a table')
    form.add_argument('--plan', action='store_true',
                      help='print its plan.json, which "mmbitsplit quantize --plan" takes')
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """Reads the file and prints what it says."""
    summary = summarise(read_checkpoint(args.file), Path(args.file).stat().st_size)
    if args.plan:
        print(plan_text(plan_of(summary)), end='')
    else:
        print(json.dumps(summary, indent=2) if args.json else text_of(summary))
    return 0


def text_of(summary: dict[str, Any]) -> str:
    """Returns the summary of ``export.summarise`` as a table and a line a total."""
    rows = [(row['name'], row['kind'], 'x'.join(map(str, row['shape'])), _bits(row, 'weight'),
             _bits(row, 'input'), row['input_mode'] or '', _bits(row, 'output'),
             f'{row["payload_bytes"]:,}')
            for row in summary['layers']]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    lines = ['  '.join(value.rjust(width) if name in NUMBERS else value.ljust(width)
                       for value, width, name in zip(row, widths, COLUMNS)).rstrip()
             for row in (COLUMNS, tuple('-' * width for width in widths), *rows)]
    left, products = summary['float_leftovers'], summary.get('products', [])
    said = multiplications_text(summary.get('multiplications', {}))
    digest = summary['float_checkpoint_sha256']
    versions = summary['versions']
    return '\n'.join([
        *lines, '', *(f'product {row["name"]}: {_bits(row, "a")} × {_bits(row, "b")} bits'
                      for row in products),
        f'{len(rows)} layers, {summary["weights"]:,} weights of '
        f'{summary["mean_weight_bits"]:.2f} bits on average'
        f'{_range([row["weight_bits"] for row in summary["layers"]])}; '
        f'{summary["folded_batch_norms"]} batch norms folded', *([said] if said else []),
        *_width_lines(summary),
        f'payload {summary["payload_bytes"]:,} bytes, file {summary["file_bytes"]:,} bytes; '
        f'{len(left)} tensors left in float, {sum(left.values()):,} bytes',
        f'format version {summary["format_version"]}',
        f'float checkpoint {summary["float_checkpoint"] or "not named"}, sha256 '
        f'{digest or "not known"}',
        f'{summary["calibration_images"]} calibration images, seed '
        f'{summary["calibration_seed"]}',
        'versions ' + (', '.join(f'{name} {version}' for name, version in versions.items())
                       or 'not named')])


def plan_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint says of its plan, in the layout of ``structures.plan_value``.

    Widths and input modes; how scales were searched is not in the file.
    """
    rows = []
    for layer in summary['layers']:
        row = {name: layer[name] for name in ('name', 'weight_bits', 'input_bits', 'output_bits')}
        mode = layer['input_mode']
        rows.append({**row, **({'activation': {'mode': mode}} if mode else {})})
    others = {name: [{key: value for key, value in row.items() if not key.endswith('_widths')}
                     for row in summary[name]]
              for name in ('streams', 'products') if name in summary}
    return {'format': PLAN_FORMAT, **others, 'layers': rows}


def _bits(row: dict[str, Any], side: str) -> str:
    """Width of a side of a layer or product, or its widths."""
    several = row.get(f'{side}_widths')
    return ' '.join(map(str, several)) if several else str(row[f'{side}_bits'] or 'float')


def _width_lines(summary: dict[str, Any]) -> list[str]:
    """What each width takes, where there are several."""
    sizes, lines = summary.get('width_bytes', {}), []
    before = summary['payload_bytes'] - sum(sizes.values())
    for name, size in sizes.items():
        before += size
        what = 'narrowest widths' if name == 'narrowest' else f'width {name}'
        lines.append(f'{what} {size:,} bytes, {before:,} with all that it needs')
    if summary.get('lacking_widths'):
        lines.append('not given: residual files of the widths '
                     + ', '.join(map(str, summary['lacking_widths'])))
    return lines


def _range(bits: Sequence[int]) -> str:
    return f' ({min(bits)} to {max(bits)})' if len(set(bits)) > 1 else ''


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this command; see ``command.run_module``."""
    return run_module(sys.modules[__name__], argv)
