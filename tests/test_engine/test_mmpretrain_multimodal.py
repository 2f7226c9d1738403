"""mmpretrain is imported beside any transformers."""

import importlib.metadata

import pytest

from mmbitsplit.engine.mmpretrain_multimodal import leave_out_multimodal_models

dependency = pytest.importorskip('mmpretrain.utils.dependency')


@pytest.mark.parametrize('version, left', [('5.24.0', False), ('4.40.1', True), (None, True)])
def test_only_a_transformers_that_is_not_known_turns_multimodal_models_off(
        version, left, monkeypatch):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version
    monkeypatch.setattr(importlib.metadata, 'version', found)
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    leave_out_multimodal_models()
    assert dependency.WITH_MULTIMODAL is left
