"""Runs as they are kept for tables: figures, config, versions and command of a ``results.json``.

A stored file is ``{"runs": [...]}``. Runs of ``tools/paper_tables.py`` know their cell (table,
model, method, bits, scope, seed), others are known by their config.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS, CELL, FAILURE = 'results.json', 'cell.json', 'failure.json'
KEPT = ('config', 'method', 'weight_bits', 'activation_bits', 'float', 'quantized', 'drop',
        'size_bytes', 'seconds', 'peak_rss_bytes', 'versions')


def strip_run(results: Mapping[str, Any], command: str, cell: Mapping[str, Any] | None = None,
              quantization: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Takes what tables need out of the contents of a ``results.json``.

    Args:
        results: Its contents.
        command: What made it.
        cell: Where the run belongs in a paper table, if it does.
        quantization: The whole request, where it is known.

    Raises:
        ValueError: Something is missing, or the weights were random.
    """
    missing = [key for key in KEPT if key not in results]
    if missing:
        raise ValueError(f'results without {", ".join(missing)} cannot be stored; they are not '
                         'of this version of tools/quantize.py.')
    if results.get('untrained'):
        raise ValueError(f"the results of {results['config']} are of random weights "
                         '(--untrained) and say nothing about accuracy; run it with weights.')
    calibration, bits = results.get('calibration', {}), results.get('bits', {})
    return {
        **({'cell': dict(cell)} if cell else {}), 'command': command,
        **{key: results[key] for key in KEPT},
        **({} if bits.get('uniform', True) else {'bits': bits}),  # else the two widths say it
        'calibration': {'num_images': len(calibration.get('image_ids', ())),
                        'seed': calibration.get('seed')},
        **({'quantization': dict(quantization)} if quantization else {}),
    }


def read_folder(folder: Path, command: str | None = None) -> dict[str, Any] | None:
    """Reads one run from the folder it left, ``None`` where nothing has finished.

    Args:
        folder: Work directory of ``tools/quantize.py`` or of one cell.
        command: What made it, where the folder does not know.

    Returns:
        A run; of a cell that failed ``{'cell': ..., 'error': ...}``.

    Raises:
        ValueError: The command is not known, or see ``strip_run``.
    """
    cell = _read(folder / CELL) or {}
    failure = _read(folder / FAILURE)
    if failure is not None:
        return {'cell': failure['cell'], 'error': failure['error']}
    results = _read(folder / RESULTS)
    if results is None:
        return None
    command = cell.get('command', command)
    if command is None:
        raise ValueError(f'{folder} does not know the command that made it; pass it with '
                         '--command.')
    try:
        return strip_run(results, command, cell.get('cell'), cell.get('quantization'))
    except ValueError as error:
        raise ValueError(f'{folder / RESULTS}: {error}') from error


def read_runs(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Reads the runs of stored files, in order.

    Raises:
        ValueError: A file is missing or is not a stored file.
    """
    runs = []
    for path in paths:
        content = _read(path)
        if not isinstance(content, dict) or not isinstance(content.get('runs'), list):
            raise ValueError(f'{path} is missing or holds no stored runs; make it with '
                             'tools/store_results.py.')
        runs += content['runs']
    return runs


def stored_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of a stored file: a run a line, so that changes can be read."""
    lines = ',\n'.join(json.dumps(run, ensure_ascii=False) for run in runs)
    return f'{{"runs": [\n{lines}\n]}}\n'


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error}); remove it and run again.') from error
