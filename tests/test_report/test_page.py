"""A page parses, asks for nothing from outside, and holds what was put into it."""

import json
import re

import pytest

from mmbitsplit.report.page import Table, build_page, pack, templates, to_json, unpack

pytest.importorskip('plotly')
PARTS = "{% import 'parts.html' as parts %}"


@pytest.fixture
def page_of(monkeypatch):
    """Builds a page whose template is given as text."""
    import jinja2

    def make(body: str, title: str, *args, **values) -> str:
        text = "{% extends 'base.html' %}" + PARTS + '{% block body %}' + body + '{% endblock %}'
        environment = templates().overlay(loader=jinja2.ChoiceLoader(
            [jinja2.DictLoader({'x.html': text}), templates().loader]))
        monkeypatch.setattr('mmbitsplit.report.page.templates', lambda: environment)
        return build_page('x.html', title, *args, **values)
    return make


def test_packed_text_comes_back():
    text = 'Grüße, "quotes", </script> ' * 100
    assert unpack(pack(text)) == text
    assert re.fullmatch('[A-Za-z0-9+/=]+', pack(text)) and len(pack(text)) < len(text)


def test_json_is_what_browsers_read():
    value = {'a': [float('nan'), float('inf'), 1.23456789], 'b': (1, None, 'x'), 3: 12345678}
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        'a': [None, None, 1.235], 'b': [1, None, 'x'], '3': 12345678}


def test_a_page_is_whole_and_alone(page_of, read_page):
    from plotly.offline import get_plotlyjs

    figures = {'one': {'data': [], 'layout': {}}}
    page = page_of("{{ parts.plot('one') }}<p>{{ text }}</p>", 'a & b', figures,
                   {'layer': {'facts': 'x'}}, text='<text>')
    read = read_page(page)
    assert read.figures == ['one'] and {'a & b', '<text>'} <= set(read.text)
    assert json.loads(unpack(read.scripts['page-data'])) == {
        'figures': figures, 'layers': {'layer': {'facts': 'x'}}}
    assert unpack(read.scripts['plotly']) == get_plotlyjs()
    assert all(source.startswith('data:') for source in read.sources)
    assert 'http:' not in page and 'https:' not in page and '@import' not in page
    assert page.startswith('<!DOCTYPE html>') and len(page.encode()) < 2_500_000


def test_colours_of_figures_are_defined_in_both_styles():
    from pathlib import Path

    import mmbitsplit.report as room
    folder = Path(room.__file__).parent
    style = (folder / 'assets/page.css').read_text()
    light, dark = style.split('prefers-color-scheme: dark')
    used = {name for path in [*folder.glob('*.py'), folder / 'assets/page.js']
            for name in re.findall(r"'@([a-z]+)'", path.read_text())} - {'heat'}
    assert {'ours', 'plain', 'warn'} <= used
    for part in (light, dark):
        assert used <= set(re.findall(r'--([a-z]+[0-9]?):', part))
        assert {f'series{number}' for number in range(6)} <= set(
            re.findall(r'--([a-z]+[0-9]?):', part))


def test_a_template_that_asks_for_what_is_not_there_is_an_error(page_of):
    import jinja2
    with pytest.raises(jinja2.UndefinedError, match='unknown_name'):
        page_of('{{ unknown_name }}', 't', {})


def test_cells_are_escaped_and_sorted_by_their_values(read_page):
    rows = [['<b>&"', ('1.0e+03', 1000.0)], ['plain', 'x']]
    table = Table(['name', 'value'], rows, numeric=(1,), sortable=True, layers=['<l>"', 'm'])
    html = templates().from_string(PARTS + '{{ parts.table(table) }}').render(table=table)
    read = read_page(html)
    assert '<b>&"' in read.text and '1.0e+03' in read.text
    assert read.links == ['<l>"', 'm']
    assert 'data-value="1000.0"' in html and html.count('<tr') == 3


def test_without_plotly_the_error_names_the_extra(monkeypatch):
    import sys

    from mmbitsplit.report import page
    monkeypatch.setitem(sys.modules, 'plotly.offline', None)
    page._plotly.cache_clear()
    with pytest.raises(ImportError, match=r'plotly.*mmbitsplit\[report\]'):
        build_page('run.html', 't', {})
