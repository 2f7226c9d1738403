"""Layers are timed once a geometry and shape, by graphs that compute what the layers do."""

import pytest
import torch
from torch import nn

from benchmarks.layer_latency import calls_of, measure, rows_of, write_graph
from mmbitsplit.models import layer_geometry
from mmbitsplit.planning.latency_table import latencies_text, read_latencies

pytest.importorskip('onnx')
runtimes = pytest.importorskip('mmbitsplit.export.onnx.runtimes')


class Net(nn.Module):
    """A head that is called twice, once on a shape that another layer has, too."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.head = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.last = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        y = self.head(self.head(x) + self.first(x))
        return self.up(y), self.last(y.mean((2, 3)))


def test_a_table_has_the_sum_over_calls_and_each_distinct_layer_is_timed_once(tmp_path):
    model = Net()
    calls = calls_of(model, lambda: model(torch.randn(1, 4, 8, 8)))
    assert {name: len(own) for name, own in calls.items()} == {
        'first': 1, 'head': 2, 'up': 1, 'last': 1}
    told = []
    times = measure(calls, 'onnxruntime', 1, 0.0, told.append)
    assert len(times) == len(told) == 4
    path = tmp_path / 'times.csv'
    path.write_text(latencies_text(rows_of(calls, times)))
    table = read_latencies(path)
    assert table.times['head'][32, 32] == pytest.approx(
        sum(times[call][0] for call in calls['head']), abs=1e-3)
    assert table.times['first'][8, 8] == pytest.approx(times[calls['first'][0]][1], abs=1e-3)


def test_graphs_compute_the_layer(tmp_path):
    model = Net()
    for name, shape in (('first', (1, 4, 8, 8)), ('up', (1, 4, 2, 2)), ('last', (2, 4))):
        layer = model.get_submodule(name)
        call = (layer_geometry(layer), shape)
        for integer in (False, True):
            write_graph(call, tmp_path / 'layer.onnx', integer)
            x = torch.randint(0, 256, shape, dtype=torch.uint8)
            y = runtimes.OnnxGraph(tmp_path / 'layer.onnx')(x if integer else x.float())[0]
            assert y.shape == layer(x.float()).shape
            assert y.dtype == (torch.uint8 if integer else torch.float32)
