"""Loads what ``tools/quantize.py`` left behind."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmbitsplit.engine.configs.config_errors import naming_config_errors
from mmbitsplit.engine.run.integers import IntegerMode
from mmbitsplit.engine.run.model_wrapper import check_wrapped, encode_plan
from mmbitsplit.export import PLAN_KEY, read_checkpoint


def load_quantized(config: str | Path, checkpoint: str | Path | Sequence[str | Path],
                   device: str | torch.device = 'cpu', *,
                   bits: int | Mapping[str, Any] | str | Path | None = None,
                   integer: IntegerMode | None = None) -> nn.Module:
    """Builds the quantized model in eval mode; ``cfg`` and ``dataset_meta`` are set on it.

    Args:
        config: ``quantized_config.py`` of a work directory.
        checkpoint: ``quantized.pth`` or ``quantized.safetensors`` beside it. Of one that was
            split: the base file, or a list of it and the residual files of its first widths.
        device: Where the model goes.
        bits: Of several widths, which to use: ``4``, ``dict(weight=3, activation=8)``, or a plan
            (its path or its contents). When not given, ``model.quantized_bits`` of the config, and
            the widest where that says nothing. ``model.set_bits`` and ``model.set_plan`` switch
            later.
        integer: ``True``: quantized layers multiply bytes, on a CPU or a CUDA device, with what
            float computing gives but for the rounding of float32; ``model.integers`` says which
            layers do, and why the others do not. ``'auto'``: where torch and processor can.
            Given nothing, as ``model.integer`` of the config says, ``False`` where it says nothing.

    Raises:
        ValueError: The checkpoint is damaged, of an unknown format version, not a quantized one,
            or of another architecture, or the config does not load a quantized one; or a layer
            lacks a width of ``bits``; or ``integer=True`` where torch or the processor cannot.
        FileNotFoundError: A file is not there.
    """
    cfg = Config.fromfile(config)
    check_wrapped(cfg)
    first, *residuals = [checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint
    packed = read_checkpoint(first, residuals)
    scope = cfg.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope):
        if scope != 'mmengine':
            importlib.import_module(f'{scope}.utils').register_all_modules(
                init_default_scope=False)
        if cfg.get('data_preprocessor') is not None:  # as mmengine's Runner hands it over
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        with naming_config_errors():
            model = MODELS.build(cfg.model)
    if bits is not None:
        model.quantized_bits = bits
    model.load_state_dict({**packed.state, PLAN_KEY: encode_plan(packed.description)})
    model.cfg, model.dataset_meta = cfg, packed.meta.get('dataset_meta', {})
    model.to(device).eval()
    if integer is not None or model.integers.asked:
        model.use_integers(model.integers.asked if integer is None else integer)
    return model
