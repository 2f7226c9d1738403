"""A model of several widths is evaluated at each, each once, and is at its widest afterwards."""

import pytest
import torch
from several_widths import float_classifier, pictures, with_widths

from mmbitsplit.apis import quantize_model
from mmbitsplit.apis.width_metrics import (
    UniformWidths,
    check_evaluate_widths,
    evaluate_widths,
    uniform_widths,
)
from mmbitsplit.calibration import read_request
from mmbitsplit.models import bits_of, set_bits
from mmbitsplit.report.tables import widths_text
from mmbitsplit.structures import QuantSpec

FLOAT = {'loss': 0.0}


@pytest.fixture(scope='module')
def model():
    return with_widths(float_classifier(), pictures(), (2, 4, 8))


@pytest.fixture
def measure(model):
    """Gives a figure of the model as it is; ``calls`` counts, ``stop`` breaks off a call."""
    images = pictures()[0]

    def evaluate():
        if evaluate.calls == evaluate.stop:
            raise KeyboardInterrupt
        evaluate.calls += 1
        with torch.no_grad():
            return {'loss': float(model(images).square().mean())}, 2.0
    evaluate.calls, evaluate.stop = 0, None
    return evaluate


def test_rows_are_the_figures_of_each_width(model, measure):
    before = bits_of(model)
    widest = measure()[0]
    rows = evaluate_widths(model, QuantSpec(), FLOAT, measure, widest=widest)
    assert [(row['weight_bits'], row['activation_bits']) for row in rows] == [
        (2, 2), (4, 4), (8, 8)]
    assert rows[-1]['quantized'] == widest and measure.calls == 3  # not once more
    assert [row['seconds'] for row in rows] == [2.0, 2.0, 0.0] and bits_of(model) == before
    for row in rows[:2]:
        set_bits(model, row['weight_bits'])
        assert measure()[0] == row['quantized'] != widest
        assert row['drop'] == {'loss': -row['quantized']['loss']}
    set_bits(model, 8)


def test_an_interrupted_evaluation_goes_on_where_it_was(model, measure):
    kept = []
    whole = evaluate_widths(model, QuantSpec(), FLOAT, measure)
    measure.calls, measure.stop = 0, 2
    with pytest.raises(KeyboardInterrupt):
        evaluate_widths(model, QuantSpec(), FLOAT, measure, keep=lambda now: kept.append(dict(now)))
    assert {place.weight for place in bits_of(model).values()} == {8}  # put back
    measure.calls, measure.stop = 0, None
    assert evaluate_widths(model, QuantSpec(), FLOAT, measure, known=kept[-1]) == whole
    assert measure.calls == 1


def test_widths_go_together_as_they_were_solved(model):
    assert uniform_widths(float_classifier()) == []
    assert uniform_widths(model)[0] == UniformWidths(2, 2)
    made = float_classifier()
    quantize_model(made, pictures(), dict(
        method=dict(type='NestedBitSplit', widths=[3, 8], effort='fast'),
        activation=dict(num_bits=8, mode='per_channel')))
    assert uniform_widths(made) == [UniformWidths(3, None), UniformWidths(8, None)]
    assert [pair.row(QuantSpec()) for pair in uniform_widths(made)] == [
        {'weight_bits': 3, 'activation_bits': 8}, {'weight_bits': 8, 'activation_bits': 8}]


def test_a_method_of_one_width_is_refused_and_named():
    check_evaluate_widths(read_request(dict(method=dict(type='PTMQ'), evaluate_widths=True)))
    check_evaluate_widths(read_request({}))
    with pytest.raises(ValueError, match="method BitSplit .*NestedBitSplit or PTMQ"):
        check_evaluate_widths(read_request(dict(evaluate_widths=True)))
    with pytest.raises(ValueError, match='quantize_model, which evaluates nothing'):
        quantize_model(float_classifier(), pictures(), dict(
            method=dict(type='NestedBitSplit'), evaluate_widths=True))


def test_figures_are_a_table_or_a_hint():
    results = {'size_bytes': {}, 'float': {'accuracy/top1': 90.0}}
    assert widths_text(results) == ''
    results['size_bytes']['quantized_widths'] = {'narrowest': 1}
    assert '--evaluate-widths' in widths_text(results)
    results['widths'] = [{'weight_bits': 3, 'activation_bits': None, 'seconds': 1.0,
                          'quantized': {'accuracy/top1': 87.5}, 'drop': {'accuracy/top1': 2.5}}]
    assert '| W3A32  | accuracy/top1 | 90.00 |     87.50 | 2.50 |' in widths_text(results)
