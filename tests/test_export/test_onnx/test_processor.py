"""Which processors saturate, by their features."""

import platform

import pytest

from mmbitsplit.export.onnx import processor
from mmbitsplit.export.onnx.processor import processor_features, saturates, saturation_warning


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be another processor."""
    def pretend(architecture, *features, hidden=None):
        monkeypatch.setattr(platform, 'machine', lambda: architecture)
        monkeypatch.setattr(processor, 'processor_features',
                            lambda: {'avx2': True, **dict.fromkeys(features, True)})
        monkeypatch.delenv('ONEDNN_MAX_CPU_ISA', raising=False)
        if hidden:
            monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', hidden)
    return pretend


@pytest.mark.parametrize('architecture, features, hidden, onnxruntime, openvino', [
    ('x86_64', [], None, True, True), ('AMD64', ['avx512f'], None, True, True),
    ('x86_64', ['avx512vnni'], None, False, False), ('x86_64', ['avxvnni'], None, False, False),
    ('x86_64', ['avx512vnni'], 'avx2', False, True),
    ('x86_64', ['avx512vnni'], 'AVX512_CORE', False, True),
    ('x86_64', ['avx512vnni'], 'AVX512_CORE_VNNI', False, False),
    ('x86_64', ['avx512vnni'], 'AVX2_VNNI', False, True),  # which it has not
    ('x86_64', ['avxvnni'], 'AVX2_VNNI', False, False), ('aarch64', [], None, False, False),
    ('arm64', [], 'AVX2', False, False)])
def test_who_saturates(machine, architecture, features, hidden, onnxruntime, openvino):
    machine(architecture, *features, hidden=hidden)
    assert (saturates('onnxruntime'), saturates('openvino')) == (onnxruntime, openvino)


def test_features_are_those_of_linux():
    try:
        with open('/proc/cpuinfo') as stream:
            flags = set(stream.read().split())
    except OSError:
        pytest.skip('no Linux')
    if 'avx2' not in flags:
        pytest.skip('not an x86 processor')
    features = processor_features()
    assert features['avx2']
    assert bool(features.get('avx512vnni')) == ('avx512_vnni' in flags)
    assert bool(features.get('avxvnni')) == ('avx_vnni' in flags)


@pytest.mark.parametrize('here', [True, False])
def test_what_is_said(here):
    text = saturation_warning([f'layer{index}' for index in range(7)], here=here)
    assert ('This processor' in text) == here
    assert 'layer4 and 2 more' in text and 'layer5' not in text
    assert 'reduce_range=True' in text
