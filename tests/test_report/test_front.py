"""The page of a front: each plan once, the one that a budget has taken in its row."""

import json

import pytest

from mmbitsplit.report.front import front_page, measured_figure, plan_rows
from mmbitsplit.report.page import unpack

pytest.importorskip('plotly')


def plan(name: str, source: str, whole: float, size: float, budget: str = '', **changes) -> dict:
    return {'name': name, 'source': source, 'whole': whole, 'predicted': 2 * whole, 'trial': None,
            'budget': budget, 'best': False, 'widths': {'a': 'W4A4', 'b': 'W4A4'},
            'costs': {'weight_bits': size, 'bytes': 1e5 * size, 'bitops': 0.1 * size}, **changes}


@pytest.fixture
def found():
    plans = [plan('program 4', 'program', 0.3, 3.9, '4'),
             plan('uniform W4A4 in 4', 'uniform', 0.1, 4.0, '4', best=True, file='plan_4.json'),
             plan('uniform W4A4', 'uniform', 0.1, 4.0), plan('uniform W8A8', 'uniform', 0.0, 8.0)]
    table = {name: {'W4A4': 0.2, 'W8A8': 0.0} for name in 'ab'}
    return {'loss': 'kl', 'against': 'widest', 'base': 0.0, 'blocks': {'a': ['a'], 'b': ['b']},
            'table': table, 'plans': plans, 'measured': 4, 'seconds': 1.0,
            'front': [{'predicted': 0.2, **plans[0]['costs']}],
            'looked_at': [{'whole': one['whole'], **one['costs']} for one in plans]}


def test_a_uniform_plan_that_a_budget_has_taken_is_drawn_once(found):
    drawn = {trace['name']: trace for trace in measured_figure(found)['data']}
    assert drawn['mixed, measured']['text'] == ['program 4']
    assert drawn['uniform, measured']['text'] == ['W4A4', 'W8A8']
    assert drawn['uniform, measured']['y'] == [0.1, None]  # 0 has no place on the axis
    assert drawn['front, measured']['x'] == [390.0, 400.0, 800.0]
    header, rows = plan_rows(found)
    assert [row[header.index('file')] for row in rows] == ['', 'plan_4.json', '', '']
    assert [row[:2] for row in rows][:3] == [
        ['program 4', '4'], ['uniform W4A4 in 4', '4'], ['uniform W4A4', '']]


def test_the_page_holds_front_plans_and_blocks(found, read_page):
    read = read_page(front_page(found, 'a: plans'))
    assert read.figures == ['front', 'widths', 'sensitivity']
    figures = json.loads(unpack(read.scripts['page-data']))['figures']
    columns = figures['widths']['data'][0]['x']
    assert len(set(columns)) == len(columns) == 4 and 'plan_4.json' in read.text
