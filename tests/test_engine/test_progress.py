"""Progress of a calibration, in the log and on a terminal."""

import io
import logging

import pytest

from mmbitsplit.calibration import Progress
from mmbitsplit.engine.run import progress
from mmbitsplit.engine.run.progress import progress_bar
from mmbitsplit.structures import LayerReport

ROW = LayerReport(
    name='conv', kind='conv2d', shape=(2, 3, 1, 1), role='inner', weight_bits=4,
    activation_bits=8, activation_mode='ecaq', activation_symmetry='unsigned', strength=0.5,
    weight_scale=(1.0, 2.0), activation_scale=(0.5, 0.5), error_rounding=0.25, error=0.125,
    sweeps=3, guard_taken=False, calls=1, rows=64, seconds=0.5)


@pytest.fixture
def said(caplog, monkeypatch):
    """Takes steps, two seconds apart, and returns the lines of the log."""
    clock = iter(range(0, 10_000, 2))

    class Clocked(progress.Progress):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, get_time=lambda: self.now, **kwargs)

        now = 0.0

    def take(*steps, stream=None):
        bars = []
        monkeypatch.setattr(progress, 'Progress', lambda *args, **kwargs: bars.append(
            Clocked(*args, **kwargs)) or bars[0])
        with caplog.at_level(logging.INFO), \
                progress_bar(logging.getLogger('run'), stream or io.StringIO()) as show:
            for step in steps:
                bars[0].now = float(next(clock))
                show(step)
        return [record.getMessage() for record in caplog.records]
    return take


def test_the_log_has_stage_number_layer_errors_and_time_left(said):
    lines = said(Progress('float', 1, 20), Progress('float', 2, 20), Progress('float', 4, 20),
                 *(Progress('layers', number, 5, ROW) for number in (1, 2, 5)))
    assert lines == [
        'mmbitsplit: float pass, batches 2/20, about 0:00:36 left',
        'mmbitsplit: float pass, batches 4/20, about 0:00:22 left',
        'mmbitsplit: layer 1/5 conv: W4A8, relative output error 0.12 (plain rounding 0.25), '
        '0.5 s',
        'mmbitsplit: layer 2/5 conv: W4A8, relative output error 0.12 (plain rounding 0.25), '
        '0.5 s, about 0:00:06 left',
        'mmbitsplit: layer 5/5 conv: W4A8, relative output error 0.12 (plain rounding 0.25), '
        '0.5 s']


def test_the_log_says_now_and_then_which_unit_is_learned(said, monkeypatch):
    monkeypatch.setattr(progress, 'QUIET', 3.0)  # a line at every second step

    def step(done, unit='blocks.1', seconds_left=None):
        return Progress('unit', done, 100, unit=unit, units_done=2, units=5,
                        seconds_left=seconds_left)

    assert said(step(1), step(2), step(50, seconds_left=90.4), step(1, 'blocks.2'),
                step(2, 'blocks.2', 61.0)) == [
        f'mmbitsplit: learning unit 3/5 {line}' for line in (
            'blocks.1: step 1/100',
            'blocks.1: step 50/100, about 0:01:30 of learning left in all',
            'blocks.2: step 2/100, about 0:01:01 of learning left in all')]


def test_the_log_counts_losses_of_the_whole_model(said):
    assert said(*(Progress('refine', number, 0) for number in range(1, 120))) == [
        'mmbitsplit: losses of the whole model: 50 so far',
        'mmbitsplit: losses of the whole model: 100 so far']


def test_a_terminal_gets_a_bar_and_the_log_nothing(said):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    assert said(Progress('layers', 1, 2, ROW), Progress('layers', 2, 2, ROW),
                stream=stream) == []
    assert 'solving layers' in stream.getvalue() and '2/2' in stream.getvalue()


def test_other_processes_show_nothing(caplog):
    stream = io.StringIO()
    with caplog.at_level(logging.INFO), \
            progress_bar(logging.getLogger('run'), stream, shown=False) as show:
        show(Progress('layers', 1, 1, ROW))
    assert not caplog.records and not stream.getvalue()
