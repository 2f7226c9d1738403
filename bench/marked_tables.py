"""Tables of Markdown pages that are written from stored runs, never by hand.

A page marks such a table, and says which runs it is made of::

    <!-- results: paper from=results/cifar/methods.json metric=accuracy/top1 -->
    | Model | ... |
    <!-- end results -->

Other tables with numbers in them say why they are none of this: ``<!-- no results: settings -->``
in the line above.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.model_zoo import zoo_table
from bench.paper import (
    SummaryRow,
    full_table,
    method_table,
    pivot_table,
    summarise,
)
from bench.stored_runs import read_runs
from mmbitsplit.report.tables import results_rows, text_table
from mmbitsplit.spelling import nearest

BLOCK = re.compile(r'(<!-- results: ([^\n]*?) -->\n).*?(<!-- end results -->)', re.DOTALL)
MARK = re.compile(r'<!-- (?:end )?results\b')
DECLARED = re.compile(r'<!-- no results: \S.* -->')
CODE = re.compile(r'`[^`]*`')
HEADER = ['Config', 'Bits', 'Metric', 'Float', 'Quantized', 'Drop', 'Float MB', 'Quantized MB',
          'Seconds']


def regenerate(text: str, root: Path) -> str:
    """Returns a page with every marked table made anew from the stored runs.

    Args:
        text: Of the page.
        root: Folder that the paths in marks start from.

    Raises:
        ValueError: A mark is not understood or never ends, or its runs are missing.
    """
    found = BLOCK.findall(text)
    if len(MARK.findall(text)) != 2 * len(found):
        raise ValueError("a mark of results is not closed; each '<!-- results: ... -->' ends with "
                         "'<!-- end results -->'.")
    return BLOCK.sub(lambda match: f'{match[1]}{marked_table(match[2], root)}\n{match[3]}', text)


def marked_table(mark: str, root: Path) -> str:
    """Returns the table that a mark asks for.

    Args:
        mark: Kind and ``key=value`` settings, such as ``'paper from=results/a.json'``.
        root: Folder that its paths start from.
    """
    kind, *words = shlex.split(mark)
    if kind not in KINDS:
        raise ValueError(f"results: kind '{kind}' is not known; {nearest(kind, KINDS)}.")
    make, allowed = KINDS[kind]
    settings = dict(word.split('=', 1) for word in words if '=' in word)
    for key in (word.split('=', 1)[0] for word in words):
        if key not in allowed or key not in settings:
            raise ValueError(f"results: {kind} does not take '{key}'; {nearest(key, allowed)}, "
                             'each as key=value.')
    if allowed[0] not in settings:
        raise ValueError(f'results: {kind} needs {allowed[0]}=...')
    return make(root, settings)


def unmarked_tables(text: str) -> list[str]:
    """Lists the first lines of tables that hold numbers and are neither marked nor declared."""
    lines = BLOCK.sub('', text).splitlines()
    found, fenced = [], False
    for number, line in enumerate(lines):
        fenced ^= line.lstrip().startswith('```')
        begins = line.startswith('|') and not (number and lines[number - 1].startswith('|'))
        if begins and not fenced and not (number and DECLARED.fullmatch(lines[number - 1])):
            rows = [row for row in _table_at(lines, number)[2:]]
            if any(re.search(r'\d', CODE.sub('', row)) for row in rows):
                found.append(line)
    return found


def _table_at(lines: list[str], start: int) -> list[str]:
    end = start
    while end < len(lines) and lines[end].startswith('|'):
        end += 1
    return lines[start:end]


def _runs(root: Path, settings: Mapping[str, str]) -> list[dict]:
    return read_runs(root / path for path in settings['from'].split(','))


def _runs_table(root: Path, settings: Mapping[str, str]) -> str:
    """A row a run and headline metric."""
    rows = [row for run in _runs(root, settings) for row in results_rows(run)]
    return text_table(HEADER, [[f'`{row[0]}`', *row[1:]] for row in rows])


def _rows(root: Path, settings: Mapping[str, str]) -> list[SummaryRow]:
    """Of the model, methods and scopes that the mark names, of all when it names none.

    Raises:
        ValueError: There are no runs of one of them.
    """
    rows = summarise(_runs(root, settings))
    for key, attribute in (('model', 'model'), ('methods', 'method'), ('scope', 'scope')):
        found = [getattr(row, attribute) for row in rows]
        wanted = settings[key].split(',') if key in settings else []
        for name in wanted:
            if name not in found:
                raise ValueError(f"results: {settings['from']} has no {attribute} '{name}'; "
                                 f'{nearest(name, dict.fromkeys(found))}.')
        rows = [row for row, name in zip(rows, found) if not wanted or name in wanted]
    return rows


def _paper_table(root: Path, settings: Mapping[str, str]) -> str:
    """A row a model and width, a column a method."""
    return pivot_table(_rows(root, settings), settings.get('metric'))


def _methods_table(root: Path, settings: Mapping[str, str]) -> str:
    """A row a method, a column a model and width."""
    return method_table(_rows(root, settings), settings.get('metric'))


def _figures_table(root: Path, settings: Mapping[str, str]) -> str:
    """All metrics of one model: a row a method, width and quantized part."""
    rows = _rows(root, settings)
    models = dict.fromkeys(row.model for row in rows)
    if len(models) > 1:
        raise ValueError(f'results: figures needs model=..., one of {", ".join(models)}.')
    return full_table(rows, seconds=False)  # cells may have run side by side


def _zoo_table(root: Path, settings: Mapping[str, str]) -> str:
    """A row a config of a family."""
    return zoo_table(root, settings['family'])


CHOICES = ('model', 'methods', 'scope')  # among the runs of a file
# Kinds of table: who makes them, and their settings, the first of which is needed.
KINDS: dict[str, tuple[Callable[[Path, Mapping[str, str]], str], tuple[str, ...]]] = {
    'runs': (_runs_table, ('from',)),
    'paper': (_paper_table, ('from', 'metric', *CHOICES)),
    'methods': (_methods_table, ('from', 'metric', *CHOICES)),
    'figures': (_figures_table, ('from', *CHOICES)),
    'zoo': (_zoo_table, ('family',)),
}
