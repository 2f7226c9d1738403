"""demo/quantize_your_detector.ipynb runs, is short, and shows what it says."""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebooks import execute
from PIL import Image

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOK = PROJECT / 'demo/quantize_your_detector.ipynb'
MOST_LINES = 15


def code_lines(notebook) -> list[str]:
    """Lines of user code up to the first detections, imports counted, magic and comments not."""
    lines = []
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            lines += [line for line in cell.source.splitlines()
                      if line.strip() and not line.startswith(('%', '#'))]
            if any('visualization' in line for line in lines):
                break
    return lines


@pytest.fixture(scope='module')
def executed():
    """The notebook after a run; its work directory is put back as it was."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return execute(notebook, NOTEBOOK.parent)


def outputs(notebook, kind: str):
    return [output for cell in notebook.cells for output in cell.get('outputs', ())
            if output.output_type == kind]


def picture(notebook) -> np.ndarray:
    data = outputs(notebook, 'execute_result')[-1]['data']
    encoded = data.get('image/png') or data['image/jpeg']
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert('RGB'))


def drop(notebook) -> float:
    text = ''.join(output.text for output in outputs(notebook, 'stream'))
    line, = re.findall(r'^\| RetinaNet on digits .*coco/bbox_mAP.*$', text, re.MULTILINE)
    return float(line.split('|')[6])


def test_it_takes_fewer_than_15_lines_of_user_code():
    lines = code_lines(nbformat.read(NOTEBOOK, as_version=4))
    assert 5 < len(lines) < MOST_LINES, lines


def test_it_runs_and_the_quantized_model_is_nearly_as_good(executed):
    assert not outputs(executed, 'error')
    assert drop(executed) < 2


def test_it_shows_detections_of_both_models(executed):
    shown = picture(executed).astype(int)
    assert shown.shape == (480, 960, 3)
    left, right = shown[:, :480], shown[:, 480:]
    plain = np.asarray(Image.open(PROJECT / 'data/digits/val/000010.jpg').resize((480, 480)))
    for side in (left, right):  # boxes and names are drawn over the image
        changed = (np.abs(side - plain) > 60).any(-1).mean()
        assert 0.01 < changed < 0.4
    assert (np.abs(left - right) > 60).any(-1).mean() < 0.1  # nearly the same ones


def test_what_is_stored_is_what_it_gives(executed):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert abs(drop(stored) - drop(executed)) < 1
    assert np.abs(picture(stored).astype(int) - picture(executed)).mean() < 5
    assert NOTEBOOK.stat().st_size < 500_000
