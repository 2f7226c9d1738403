"""Lets mmpretrain be imported beside a transformers that its multimodal models do not know."""

import importlib.metadata
import importlib.util

FIRST_UNKNOWN = 5  # version of transformers without what BLIP's language model imports from it


def leave_out_multimodal_models() -> None:
    """Tells mmpretrain, before its models are imported, that it has no multimodal ones.

    With transformers 5 beside it ``import mmpretrain.models`` fails at a base class that is
    ``None`` (``find_pruneable_heads_and_indices`` is gone). Its own switch for a missing or old
    transformers leaves these models out, and says so to whoever asks for one.
    """
    try:
        version = importlib.metadata.version('transformers')
    except importlib.metadata.PackageNotFoundError:
        return
    if int(version.split('.')[0]) < FIRST_UNKNOWN or not importlib.util.find_spec('mmpretrain'):
        return
    from mmpretrain.utils import dependency
    dependency.WITH_MULTIMODAL = False
