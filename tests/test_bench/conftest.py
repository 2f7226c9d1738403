"""Stored runs that never were."""

import pytest

FLOATS = {'accuracy/top1': 70.0, 'accuracy/top5': 90.0}


def make_run(top1=60.0, *, table=3, model='resnet18', method='bitsplit', bits=(4, 4), seed=0,
             scope='all', **changes):
    """One stored run of a cell; ``top1=None`` makes a failed one."""
    cell = dict(table=table, model=model, method=method, weight_bits=bits[0],
                activation_bits=bits[1], scope=scope, seed=seed)
    if top1 is None:
        return {'cell': cell, 'error': 'ValueError: it broke', **changes}
    quantized = {'accuracy/top1': top1, 'accuracy/top5': 80.0}
    return {'cell': cell, 'command': 'python tools/paper_tables.py',
            'config': 'configs/resnet18_w4a8.py', 'method': {'type': 'BitSplit'},
            'weight_bits': bits[0], 'activation_bits': bits[1], 'float': FLOATS,
            'quantized': quantized, 'drop': {'accuracy/top1': 70.0 - top1},
            'size_bytes': {'float': 4_000_000, 'quantized_checkpoint': 500_000},
            'seconds': {'calibration': 12.0}, 'peak_rss_bytes': 1, 'versions': {},
            'calibration': {'num_images': 8, 'seed': seed}, **changes}


@pytest.fixture(name='make_run')
def make_run_fixture():
    """The function, as other folders' tests get it too."""
    return make_run
