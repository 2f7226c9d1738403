"""The tables of PTMQ: what their rows calibrate, what is taken over, and how they look."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.paper.ptmq import PTMQ_TABLES, chosen_rows, markdown, ptmq_table, with_widths
from bench.paper.ptmq_pictures import front_figures, mixer_figure
from bench.paper.ptmq_run import Cells, PTMQRun, run_rows
from bench.paper.ptmq_subjects import ModuleSubject, subject_of
from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import read_request
from mmbitsplit.models import set_bits


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))

    def forward(self, x):
        return self.linear(self.block(self.stem(x).relu()).relu().mean((2, 3)))


IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def load():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
    net.linear.bias -= net(IMAGES).mean(0)  # no class is that of all images
    return net


@pytest.fixture
def run():
    return PTMQRun(iterations=2, options=['learning_rate=0.5', 'batch_size=4'], num_images=32,
                   subject=ModuleSubject(label='a net', load=load, calib=IMAGES, images=IMAGES,
                                         labels=load()(IMAGES).argmax(1)))


@pytest.mark.parametrize('number', sorted(PTMQ_TABLES))
def test_every_row_is_a_request_that_gives_all_widths(number, run):
    table = PTMQ_TABLES[number]
    for row in table.rows:
        requests = run.requests(row, table.widths)
        assert [one for widths, _ in requests for one in widths] == [*table.widths]
        assert len(requests) == (len(table.widths) if row.key == 'qdrop' else 1)
        for _, request in requests:
            method = read_request(request).method
            assert method['iterations'] == 2 and method['learning_rate'] == 0.5
        assert all(len(figures) == len(table.widths) for figures in row.published.values())


def test_rows_are_evaluated_at_their_widths_and_taken_over(run, tmp_path):
    table = with_widths(ptmq_table(2), ['w3a4', '8'])
    rows = [*run_rows(table, table.rows, Cells(tmp_path / 'x' / 'cells.json', run), print)]
    assert [(row['name'], row['runs']) for row in rows] == [
        ('float', 0), ('QDrop, each width by itself', 2), ('PTMQ', 1)]
    assert rows[0]['figures'] == {'W3A4': [100.0], 'W8A8': [100.0]}
    model = load()
    quantize_model(model, run.subject.batches(0, 32), dict(
        method=run.method('PTMQ', widths=[3, 8], activation_widths=[4, 8])))
    for label, bits in (('W3A4', (3, 4)), ('W8A8', (8, 8))):
        set_bits(model, weight=bits[0], activation=bits[1])
        assert rows[2]['figures'][label] == [run.subject.figure(model)]
    assert rows[2]['figures']['W3A4'] < rows[2]['figures']['W8A8']
    broken = replace(run, subject=replace(run.subject, load=lambda: pytest.fail('runs again')))
    again = [*run_rows(table, table.rows, Cells(tmp_path / 'x' / 'cells.json', broken), print)]
    assert again == rows
    with pytest.raises(pytest.fail.Exception, match='runs again'):  # another setting
        other = Cells(tmp_path / 'x' / 'cells.json', replace(broken, num_images=16))
        [*run_rows(table, table.rows, other, print)]


def results(table):
    floats = {'name': 'float', 'figures': {'W3A3': [90.0], 'W4A4': [90.0], 'W5A5': [90.0]},
              'seconds': 0.0, 'runs': 0}
    return [floats, *({'name': row.name, 'seconds': 7.4, 'runs': 1 + 2 * (row.key == 'qdrop'),
                       'figures': {'W3A3': [60.0, 62.0], 'W4A4': [70.0], 'W5A5': [80.0, 82.0]}}
                      for row in table.rows)]


def test_a_table_has_our_means_and_the_papers_figures_of_the_same_model():
    table = ptmq_table(3)
    lines = markdown(table, results(table), 'a net.', 'ResNet-18').splitlines()
    assert lines[5] == ('| QDrop, each width by itself | 61.00 | 70.00 | 81.00 | 70.67 | '
                        '7 in 3 runs of 2 |')
    assert lines[6] == '| D-Q, only 3-bit | 61.00 | 70.00 | 81.00 | 70.67 | 7 once |'
    # Means as the paper prints them.
    assert lines[-1] == '| *the paper: PTMQ* | 64.92 | 67.57 | 69.00 | 67.16 |  |'
    assert '| 62.67 |' in lines[-2] and '| 36.75 |' in lines[-3]
    assert 'the paper' not in markdown(table, results(table), 'a net.')
    assert 'the paper' not in markdown(with_widths(table, ['3', '4', '6']), [], '', 'ResNet-18')


def test_rows_of_a_width_that_is_left_out_are_left_out():
    table = with_widths(ptmq_table(3), ['8', '4', 'w5a6'])
    assert [tuple(one) for one in table.widths] == [(4, 4), (5, 6), (8, 8)]
    assert [row.key for row in table.rows] == [
        'qdrop', 'dq_4', 'pq_up', 'pq_down', 'ptmq', 'separate']
    assert [row.key for row in chosen_rows(table, ['ptmq'])] == ['ptmq']
    with pytest.raises(ValueError, match="--bits 'w4'"):
        with_widths(table, ['w4'])


def test_figures_are_drawn(run, tmp_path):
    table = ptmq_table(5)
    mixer_figure(table, results(table), 'top-1', tmp_path / 'figure5.png')
    assert (tmp_path / 'figure5.png').read_bytes().startswith(b'\x89PNG')
    told = []
    front_figures(run, (3, 4, 8), 8, tmp_path / 'front', told.append)
    names = {path.name for path in (tmp_path / 'front').iterdir()}
    assert {'figure_3.svg', 'figure_4.svg', 'pareto.json', 'plan_4.json'} <= names
    assert any('uniform' in line for line in told) or any('W3' in line for line in told)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match='--figure 3'):
        ptmq_table(4)
    with pytest.raises(ValueError, match='calib and test'):
        subject_of('resnet20', str(tmp_path), None, tmp_path)
    for part in ('train.npz', 'test.npz'):
        (tmp_path / part).touch()
    with pytest.raises(ValueError, match='trains the model'):
        subject_of('fashion_vit', str(tmp_path), None, tmp_path)
