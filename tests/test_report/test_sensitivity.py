"""Trials become tables and heat maps without losing one."""

import csv
import io
import json

import pytest

from mmbitsplit.report.page import unpack
from mmbitsplit.report.sensitivity import (
    sensitivity_columns,
    sensitivity_csv,
    sensitivity_markdown,
    sensitivity_page,
)
from mmbitsplit.report.tables import RELATIVE_ERROR

FLOAT = {'coco/bbox_mAP': 0.6, 'coco/bbox_mAP_50': 0.8}


def trial(layer, what, bits, error, drop):
    metrics = {name: value - drop for name, value in FLOAT.items()} if drop is not None else {}
    return dict(layer=layer, what=what, num_bits=bits, error=error, metrics=metrics)


ROWS = [trial('conv', 'weight', 4, 1e-3, 0.01), trial('conv', 'weight', 2, 1e-1, 0.2),
        trial('fc', 'activation', 8, 1e-5, 0.0), trial('fc', 'weight', 2, 1e-2, 0.05)]


def test_columns_are_weights_first_few_bits_first():
    assert sensitivity_columns(ROWS) == [('weight', 2), ('weight', 4), ('activation', 8)]


def test_csv_keeps_every_trial_unrounded():
    lines = list(csv.DictReader(io.StringIO(sensitivity_csv(ROWS))))
    assert [(line['layer'], line['what'], int(line['num_bits']), float(line['error']))
            for line in lines] == [tuple(list(row.values())[:4]) for row in ROWS]
    assert float(lines[1]['coco/bbox_mAP']) == ROWS[1]['metrics']['coco/bbox_mAP']


def test_markdown_shows_drops_in_points_and_gaps():
    header, _, conv, fc = sensitivity_markdown(ROWS, FLOAT).split('\n')
    cells = [cell.strip() for cell in conv.split('|')[1:-1]]
    assert [cell.strip() for cell in header.split('|')[1:-1]] == [
        'layer', 'W2 error', 'W4 error', 'A8 error', 'W2 drop', 'W4 drop', 'A8 drop']
    assert cells == ['conv', '1.00e-01', '1.00e-03', '-', '20.00', '1.00', '-']
    assert '| fc' in fc


@pytest.mark.parametrize('evaluated', [True, False])
def test_the_page_has_a_map_of_errors_and_one_of_drops(read_page, evaluated):
    pytest.importorskip('plotly')
    rows = ROWS if evaluated else [{**row, 'metrics': {}} for row in ROWS]
    read = read_page(sensitivity_page(rows, FLOAT if evaluated else {}, 'a <title>'))
    data = json.loads(unpack(read.scripts['page-data']))
    assert list(data['figures']) == read.figures == ['error', 'metric'][:1 + evaluated]
    assert data['figures']['error']['data'][0]['z'] == [[-1, -3, None], [-2, None, -5]]
    if evaluated:
        assert data['figures']['metric']['data'][0]['z'] == [[20, 1, None], [5, None, 0]]
    assert {'conv', 'fc', 'a <title>'} <= set(read.text)
    said = ' '.join(read.text)
    assert RELATIVE_ERROR in said and 'an empty field is an input that stays float' in said
