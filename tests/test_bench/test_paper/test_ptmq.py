"""The tables of PTMQ: rows that a request takes, and how they look."""

from pathlib import Path

import pytest

from bench.paper.ptmq import PTMQ_TABLES, PTMQRun, markdown
from mmbitsplit.calibration import read_request


@pytest.mark.parametrize('number', sorted(PTMQ_TABLES))
def test_every_row_is_a_request(number):
    table = PTMQ_TABLES[number]
    for row in table.rows:
        options = dict(type='QDrop') if row.options is None else dict(
            type='PTMQ', widths=[*table.widths], **row.options)
        assert read_request({'method': options}).method['type'] == options['type']
        assert not row.published or row.published.keys() == {*table.widths}


def test_a_table_has_our_means_and_the_papers_figures_below():
    table = PTMQ_TABLES[3]
    rows = [{'name': row.name, 'top1': {3: [60.0, 62.0], 4: [70.0, 70.0], 5: [80.0, 82.0]},
             'seconds': 7.4} for row in table.rows]
    text = markdown(table, rows, PTMQRun(data=Path(), iterations=50, seeds=(0, 1)))
    lines = text.splitlines()
    assert '50 steps' in lines[0]
    assert lines[4] == '| D-Q, only 3-bit | 61.00 | 70.00 | 81.00 | 70.67 | 7 |'
    # Means as the paper prints them.
    assert lines[-1] == ('| *the paper, ResNet-18, ImageNet: PTMQ* | 64.92 | 67.57 | 69.00 | 67.16 '
                         '|  |')
    assert '| 62.67 |' in lines[-2] and '| 36.75 |' in lines[-3]
