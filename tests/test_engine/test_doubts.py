"""What makes a result doubtful stands in the log and in ``layers.json``."""

import json
from types import SimpleNamespace

import pytest

from mmbitsplit.engine.results.artifacts import layers_table
from mmbitsplit.engine.run.quantize import _log
from mmbitsplit.structures import QuantizationReport, Selection, Unit


@pytest.fixture
def report():
    return QuantizationReport(
        layers=[], kept_float=[], folded_batch_norms=[], seconds={'calibration': 1.0, 'solve': 0.5},
        calibration={'layers_taken_over': 0}, method={}, peak_rss_bytes=0, estimated_bytes=0,
        selections=[Selection('topk', 'decoder', 'choose', ('decoder.a', 'head'))],
        warnings=['The forward is random.'])


def test_the_log_names_the_step_the_layers_and_what_to_do(report):
    lines = []
    logger = SimpleNamespace(info=lambda *args: None,
                             warning=lambda text, *args: lines.append(text % args))
    _log(SimpleNamespace(logger=logger), report)
    random, selection = lines
    assert 'The forward is random.' in random
    assert 'topk in decoder.choose' in selection and 'decoder.a, head' in selection
    assert 'replay point' in selection


def test_layers_json_lists_them_beside_units(report):
    report.units.append(Unit('part', ('part', 'relu'), ('part.a', 'part.b')))
    table = json.loads(json.dumps(layers_table(SimpleNamespace(report=report))))
    assert table['selections'] == [{'operation': 'topk', 'module': 'decoder', 'method': 'choose',
                                    'reaches': ['decoder.a', 'head']}]
    assert table['warnings'] == ['The forward is random.']
    assert table['units'] == [{'name': 'part', 'modules': ['part', 'relu'],
                               'layers': ['part.a', 'part.b'], 'reason': ''}]
