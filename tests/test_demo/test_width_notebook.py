"""demo/one_model_every_width.ipynb runs, and shows what it says."""

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebooks import execute
from PIL import Image

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOK = PROJECT / 'demo/one_model_every_width.ipynb'


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    """The notebook after a run in a work directory of its own."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('work_dirs/every_width',
                                          str(tmp_path_factory.getbasetemp() / 'every_width'))
    return execute(notebook, NOTEBOOK.parent)


@pytest.fixture(scope='module')
def stored():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 300_000
    return notebook


def said(notebook) -> str:
    return ''.join(output.text for cell in notebook.cells for output in cell.get('outputs', ())
                   if output.output_type == 'stream' and output.name == 'stdout')


def figures(notebook) -> dict[str, float]:
    """Top-1 by width."""
    return {name: float(top1) for name, top1 in re.findall(
        r'^\| (W\dA\d) +\| accuracy/top1 \| +\S+ \| +(\S+) \|', said(notebook), re.MULTILINE)}


def pictures(notebook) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data['image/png']))))
            for cell in notebook.cells for output in cell.get('outputs', ())
            if 'image/png' in output.get('data', {})]


def test_each_width_is_evaluated_and_switching_back_is_exact(executed):
    found = figures(executed)
    assert list(found) == ['W2A8', 'W3A8', 'W4A8', 'W8A8']
    assert found['W8A8'] > 88 and found['W3A8'] > 86
    text = said(executed)
    assert 'the same as before: True' in text and 'the same as above at 3 bits: True' in text
    assert 'widths of a layer: (2, 3)' in text


def test_plans_of_the_front_are_measured_put_in_and_evaluated(executed):
    text = said(executed)
    for budget in ('2.5', '3', '3.5'):
        assert re.search(rf'^\| .*\b{re.escape(budget)} +\| plan_{re.escape(budget)}\.json', text,
                         re.MULTILINE)
    plan, = re.findall(r'layers by weight bits: \{(.*)\}', text)
    assert sum(int(count) for count in re.findall(r': (\d+)', plan)) == 21
    top1 = json.loads(text[text.rindex('{\n'):text.index('}', text.rindex('{\n')) + 1])
    assert top1['accuracy/top1'] > 85


def test_what_is_stored_is_what_it_gives(executed, stored):
    there, here = figures(stored), figures(executed)
    assert there.keys() == here.keys()
    assert all(abs(there[name] - here[name]) < 2.5 for name in here)
    for ours, theirs in zip(pictures(stored), pictures(executed), strict=True):
        assert min(ours.shape[:2]) > 200 and ours.std() > 10
        assert np.abs(np.subtract(ours.shape[:2], theirs.shape[:2])).max() < 30
    errors = [cell for cell in stored.cells if any(
        output.output_type == 'error' for output in cell.get('outputs', ()))]
    assert not errors and '/' + 'work' + '/' not in NOTEBOOK.read_text()
