"""Marked tables come from stored runs; numbers elsewhere have to be declared."""

import pytest

from bench.marked_tables import marked_table, regenerate, unmarked_tables
from bench.stored_runs import stored_text


@pytest.fixture
def root(make_run, tmp_path):
    """A repository with two stored runs."""
    (tmp_path / 'runs.json').write_text(stored_text(
        [make_run(60.125), make_run(61.5, method='tflite')]))
    return tmp_path


def page(body):
    return f'# Title\n\n<!-- results: paper from=runs.json -->\n{body}<!-- end results -->\n\nEnd\n'


def test_a_table_is_made_from_its_runs_and_stays(root):
    text = regenerate(page(''), root)
    assert '60.12' in text and '61.50' in text and text.endswith('\n\nEnd\n')
    assert regenerate(text, root) == text


def test_a_number_written_by_hand_is_undone(root):
    text = regenerate(page(''), root)
    assert regenerate(text.replace('61.50', '65.00'), root) == text


def test_each_table_has_its_own_runs(root, make_run):
    (root / 'other.json').write_text(stored_text([make_run(33.0)]))
    text = regenerate(page('') + page('').replace('runs.json', 'other.json'), root)
    first, second = text.split('# Title')[1:]
    assert '61.50' in first and '33.00' not in first and '33.00' in second


def test_rows_of_runs(root):
    table = marked_table('runs from=runs.json', root)
    assert table.count('`configs/resnet18_w4a8.py`') == 2 and '| Config ' in table


def test_all_figures_of_one_model(root, make_run):
    (root / 'runs.json').write_text(stored_text([make_run(60.125),
                                                 make_run(33.0, model='resnet50')]))
    table = marked_table('figures from=runs.json model=resnet50', root)
    assert '| 33.00 ' in table and '60.12' not in table and '| Method ' in table
    assert 'Seconds' not in table
    with pytest.raises(ValueError, match='needs model=..., one of resnet18, resnet50'):
        marked_table('figures from=runs.json', root)
    with pytest.raises(ValueError, match="no model 'resnet51'; did you mean 'resnet50'"):
        marked_table('figures from=runs.json model=resnet51', root)


def test_a_row_a_method(root, make_run):
    (root / 'runs.json').write_text(stored_text([
        make_run(60.0), make_run(61.0, seed=1), make_run(33.0, method='tflite'),
        make_run(50.0, bits=(3, 3)), make_run(70.0, model='resnet50'),
        make_run(20.0, method='mse')]))
    table = marked_table('methods from=runs.json methods=bitsplit,tflite', root)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()]
    assert rows[0] == ['Method', 'ResNet-18 W4A4', 'ResNet-18 W3A3', 'ResNet-50 W4A4']
    assert [row for row in rows[2:]] == [
        ['float', '70.00', '70.00', '70.00'], ['TF-Lite min/max', '33.00', '-', '-'],
        ['mmbitsplit default', '60.50 ± 0.71', '50.00', '70.00']]
    one = marked_table('methods from=runs.json model=resnet50', root)
    assert 'W4A4' in one and 'ResNet' not in one
    with pytest.raises(ValueError, match="no method 'tflit'; did you mean 'tflite'"):
        marked_table('methods from=runs.json methods=tflit', root)


@pytest.mark.parametrize('mark, message', [
    ('papr from=runs.json', "kind 'papr' is not known; did you mean 'paper'"),
    ('paper form=runs.json', "does not take 'form'"), ('paper', 'needs from='),
    ('paper from', "does not take 'from'"), ('paper from=none.json', 'none.json is missing'),
    ('zoo family=demos', "family 'demos' is not known; did you mean 'demo'")])
def test_marks_that_are_not_understood(mark, message, root):
    with pytest.raises(ValueError, match=message):
        regenerate(page('').replace('paper from=runs.json', mark), root)


def test_a_mark_without_an_end(root):
    for text in ('<!-- results: paper from=runs.json -->\n', 'x\n<!-- end results -->\n',
                 page('').replace('<!-- results: paper', '<!-- results paper')):
        with pytest.raises(ValueError, match='not closed'):
            regenerate(text, root)


TABLE = '| Model | AP |\n|---|---|\n| a | 36.5 |\n'


@pytest.mark.parametrize('text, found', [
    (TABLE, 1), (f'Text\n\n{TABLE}\nMore\n\n{TABLE}', 2),
    (f'<!-- no results: settings -->\n{TABLE}', 0), (f'<!-- no results: -->\n{TABLE}', 1),
    (TABLE.replace('36.5', 'words'), 0), (TABLE.replace('36.5', '`w4a8`'), 0),
    (f'```\n{TABLE}```\n', 0), (page(TABLE), 0), (page('') + TABLE, 1)])
def test_numbers_in_tables_are_marked_or_declared(text, found):
    assert len(unmarked_tables(text)) == found
