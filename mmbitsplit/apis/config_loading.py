"""Loads what ``tools/quantize.py`` left behind, by the config that it wrote."""

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


def load_by_config(config: str | Path, files: Sequence[str | Path], device: str | torch.device,
                   bits: int | Mapping[str, Any] | str | Path | None,
                   integer: IntegerMode | None) -> nn.Module:
    """See ``load_quantized``; of ``files`` all but the first are residual ones."""
    cfg = Config.fromfile(config)
    check_wrapped(cfg)
    packed = read_checkpoint(files[0], files[1:])
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
