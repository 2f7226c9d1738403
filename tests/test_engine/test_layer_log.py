"""A line of JSON a solved layer, readable while it is written."""

import dataclasses
import json
import os

import pytest

from mmbitsplit.calibration import Progress
from mmbitsplit.engine.files.layer_log import LAYER_LOG, layer_log, layer_row
from mmbitsplit.structures import LayerReport

ROW = LayerReport(
    name='conv', kind='conv2d', shape=(2, 3, 1, 1), role='inner', weight_bits=4,
    activation_bits=8, activation_mode='ecaq', activation_symmetry='unsigned', strength=0.5,
    weight_scale=(1.0, 2.0), activation_scale=(0.5, 0.5), error_rounding=0.2, error=0.1,
    sweeps=3, guard_taken=False, calls=1, rows=64, seconds=0.5, notes=['ä note'],
    input_ranges={'lowest': [0.0] * 300})


def lines(folder):
    return [json.loads(line) for line in (folder / LAYER_LOG).read_text('utf-8').splitlines()]


def test_every_layer_is_there_as_soon_as_it_is_solved(tmp_path):
    (tmp_path / LAYER_LOG).write_text('of an earlier run\n')
    with layer_log(tmp_path) as log:
        log(Progress('float', 1, 2))
        assert lines(tmp_path) == []
        for number, name in ((1, 'conv'), (2, 'head')):
            log(Progress('layers', number, 2, dataclasses.replace(ROW, name=name)))
            assert len(lines(tmp_path)) == number
    first, second = lines(tmp_path)
    assert (first['layer'], first['of'], first['name'], second['name']) == (1, 2, 'conv', 'head')
    assert first['time'] <= second['time']
    wanted = json.loads(json.dumps(layer_row(ROW)))  # as in layers.json
    assert {name: first[name] for name in wanted} == wanted
    assert set(first) == {*wanted, 'layer', 'of', 'time'} and 'input_ranges' not in wanted


def test_other_processes_write_nothing(tmp_path):
    with layer_log(tmp_path, written=False) as log:
        log(Progress('layers', 1, 1, ROW))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='layers.jsonl cannot be written'), \
            layer_log(tmp_path / 'gone'):
        pass

    def full(descriptor, data):
        raise OSError(28, 'No space left on device')

    with pytest.raises(ValueError, match='No space left'), layer_log(tmp_path) as log:
        monkeypatch.setattr(os, 'write', full)
        log(Progress('layers', 1, 1, ROW))
