"""Pages, metafiles and stored results say the same; no number stands in a table by hand."""

import re
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from bench.commands.update_tables import pages, wanted  # noqa: E402
from bench.marked_tables import BLOCK, unmarked_tables  # noqa: E402
from bench.model_zoo import FAMILIES, entries  # noqa: E402
from bench.stored_runs import KEPT, read_runs  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted((ROOT / 'results').rglob('*.json'))
PAGES = [path for path in pages(ROOT) if path.name.startswith('README')]
RUNS = [pytest.param(run, id=f'{path.stem}-{number}') for path in STORED
        for number, run in enumerate(read_runs([path]))]


def test_every_table_and_metafile_is_what_the_stored_results_give():
    stale = [str(path.relative_to(ROOT)) for path, text in wanted(ROOT).items()
             if not path.is_file() or path.read_text() != text]
    assert not stale, f'python tools/update_tables.py writes {", ".join(stale)}'


def test_all_pages_are_looked_at():
    assert {ROOT / 'README.md', *(ROOT / family.folder / 'README.md'
                                  for family in FAMILIES.values())} <= set(PAGES)


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_with_numbers_are_made_from_results_or_declared(path):
    assert unmarked_tables(path.read_text()) == []


def test_every_stored_file_stands_in_some_page():
    named = set()
    for path in pages(ROOT):
        for _, mark, _ in BLOCK.findall(path.read_text()):
            named |= {name for part in re.findall(r'from=(\S+)', mark)
                      for name in part.split(',')}
            named |= {FAMILIES[name].results for name in re.findall(r'family=(\S+)', mark)}
    assert {path.relative_to(ROOT).as_posix() for path in STORED} <= named


@pytest.mark.parametrize('run', RUNS)
def test_stored_runs_are_whole_and_consistent(run):
    assert not {*KEPT, 'command', 'calibration'} - set(run)
    for metric, value in run['quantized'].items():
        assert run['drop'][metric] == pytest.approx(run['float'][metric] - value, abs=1e-9)
    assert (ROOT / run['config']).is_file()
    assert run['versions']['torch'] and run['calibration']['num_images'] > 0
    sizes = run['size_bytes']
    assert sizes['quantized_checkpoint'] < sizes['float']


@pytest.mark.parametrize('run', RUNS)
def test_stored_commands_run_a_tool_of_the_repository(run):
    tool = re.match(r'(?:OMP_NUM_THREADS=1 )?(?:PYTHONPATH=\. )?(?:python (\S+)|make demo)',
                    run['command'])
    assert tool, run['command']
    assert tool[1] is None or (ROOT / tool[1]).is_file()
    assert not re.search(r'(^|[ =])/', run['command']), 'a path of somebody\'s machine'


@pytest.mark.parametrize('name', FAMILIES)
def test_metafiles_load_as_openmmlab_reads_them(name):
    load = pytest.importorskip('modelindex').load
    family = FAMILIES[name]
    index = load(str(ROOT / family.folder / 'metafile.yml'))
    assert [model.name for model in index.models] == [
        Path(entry.config).stem for entry in entries(ROOT, name)]
    assert {model.in_collection for model in index.models} == {family.collection}


def test_configs_without_results_say_so():
    text = (ROOT / 'configs/README.md').read_text()
    for entry in entries(ROOT, 'bitsplit'):
        line = next(line for line in text.splitlines() if f'({Path(entry.config).name})' in line)
        assert ('not run' in line) == (entry.run is None)
