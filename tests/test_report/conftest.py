"""Results, layers and report data of runs that never were."""

import random
import re
from html.parser import HTMLParser

import pytest

VOID = {'meta', 'link', 'img', 'br', 'input'}


class Reader(HTMLParser):
    """Reads a page, holding that every element is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.sources, self.text, self.scripts = [], [], [], {}
        self.figures, self.links = [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[name] for name in ('src', 'href') if name in values]
        self.figures += [values['data-figure']] if 'data-figure' in values else []
        self.links += [values['data-layer']] if 'data-layer' in values else []
        if tag not in VOID:
            self.open.append((tag, values.get('id')))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ('script', 'style'):
            self.scripts[self.open[-1][1]] = data
        else:
            self.text.append(data)


def _plain_figure(value):
    """A figure as plotly checks it: colours of the page's style become colours."""
    if isinstance(value, str) and value == '@heat':
        return 'Viridis'
    if isinstance(value, str) and re.fullmatch('@[a-z]+[0-9]?', value):
        return '#123456'
    if isinstance(value, dict):
        return {key: _plain_figure(part) for key, part in value.items()}
    return [_plain_figure(part) for part in value] if isinstance(value, list) else value


def _layer(name: str, seed: int = 0, **changes) -> dict:
    chance = random.Random(f'{name} {seed}')
    error = 10 ** chance.uniform(-5, -1)
    return {'name': name, 'kind': 'conv2d', 'shape': [8, 4, 3, 3], 'role': 'inner',
            'weight_bits': 4, 'activation_bits': 8, 'activation_mode': 'ecaq',
            'activation_symmetry': 'unsigned', 'strength': 0.3, 'weight_scale': [0.1, 0.2],
            'activation_scale': [0.1, 0.2], 'error_rounding': 2 * error, 'error': error,
            'sweeps': 3, 'guard_taken': False, 'calls': 5, 'rows': 100, 'seconds': 0.5,
            'notes': [], **changes}


def _results(**changes) -> dict:
    metrics = {'coco/bbox_mAP': 0.645, 'coco/bbox_mAP_s': 0.3, 'coco/bbox_mAP_m': 0.5,
               'coco/bbox_mAP_l': -1.0}
    worse = {name: value - 0.011 for name, value in metrics.items()} | {'coco/bbox_mAP_l': -1.0}
    return {'config': 'configs/a_name.py', 'method': {'type': 'BitSplit'}, 'weight_bits': 4,
            'activation_bits': 8, 'float': metrics, 'quantized': worse,
            'drop': {name: metrics[name] - worse[name] for name in metrics},
            'size_bytes': {'float': 7_180_000, 'quantized_checkpoint': 1_020_000,
                           'quantized_payload': 1_000_000},
            'seconds': {'calibration': 21.6, 'solve': 10.0, 'float_forward': 2.0,
                        'evaluation': 30.0}, 'peak_rss_bytes': 10 ** 9,
            'calibration': {'image_ids': [1, 2], 'seed': 0}, 'versions': {'torch': '2.13'},
            **changes}


def _ranges(channels: int = 4, total: int = 4) -> dict:
    return {'num_channels': total, 'channel': list(range(channels)), 'low': [-2.0] * channels,
            'low_tail': [-1.0] * channels, 'high_tail': [1.0] * channels,
            'high': [3.0] * channels, 'clip_low': [-1.5] * channels,
            'clip_high': [1.5] * channels}


@pytest.fixture
def read_page():
    return Reader


@pytest.fixture
def plain_figure():
    return _plain_figure


@pytest.fixture
def layer():
    return _layer


@pytest.fixture
def results():
    return _results


@pytest.fixture
def ranges():
    return _ranges
