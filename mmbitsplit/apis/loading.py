"""Loads what ``tools/quantize.py`` left behind."""

import importlib
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

import mmbitsplit.engine  # noqa: F401  registers the wrapper


def load_quantized(config: str | Path, checkpoint: str | Path) -> nn.Module:
    """Builds the quantized model in eval mode.

    Args:
        config: ``quantized_config.py`` of a work directory.
        checkpoint: ``quantized.pth`` beside it.

    Raises:
        ValueError: The checkpoint is not a quantized one, or of another architecture.
    """
    cfg = Config.fromfile(config)
    scope = cfg.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope):
        if scope != 'mmengine':
            importlib.import_module(f'{scope}.utils').register_all_modules(
                init_default_scope=False)
        model = MODELS.build(cfg.model)
    load_checkpoint(model, str(checkpoint), map_location='cpu')
    return model.eval()
