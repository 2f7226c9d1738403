"""Loads quantized checkpoints: by the config beside them, or into a model that was built."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mmbitsplit.export import read_checkpoint, restore_model
from mmbitsplit.models import to_integer, use_bits


def load_quantized(source: str | Path | nn.Module, checkpoint: str | Path | Sequence[str | Path],
                   device: str | torch.device = 'cpu', *,
                   bits: int | Mapping[str, Any] | str | Path | None = None,
                   integer: bool | Literal['auto'] | None = None) -> nn.Module:
    """Returns the quantized model of a checkpoint, in eval mode.

    Args:
        source: ``quantized_config.py`` of a work directory, which needs mmengine: ``cfg`` and
            ``dataset_meta`` are set on the model. Or, for what ``save_quantized`` wrote, the float
            model as it is built, with any weights, which torch alone turns into the quantized one
            in place.
        checkpoint: ``quantized.pth`` or ``quantized.safetensors`` beside it. Of one that was
            split: the base file, or a list of it and the residual files of its first widths.
        device: Where the model goes.
        bits: Of several widths, which to use: ``4``, ``dict(weight=3, activation=8)``, or a plan
            (its path or its contents). When not given, ``model.quantized_bits`` of the config, and
            the widest where that says nothing. ``set_bits`` and ``set_plan`` switch later.
        integer: ``True``: quantized layers multiply bytes, on a CPU or a CUDA device, with what
            float computing gives but for the rounding of float32; ``model.integers`` of a config's
            model, ``models.integer_layers(model)`` of any, says which layers do, and why the
            others do not. ``'auto'``: where torch and processor can. Given nothing, as
            ``model.integer`` of the config says, ``False`` where it says nothing.

    Raises:
        ValueError: The checkpoint is damaged, of an unknown format version, not a quantized one,
            or of another architecture, or the config does not load a quantized one; or a layer
            lacks a width of ``bits``; or ``integer=True`` where torch or the processor cannot.
        FileNotFoundError: A file is not there.
    """
    files = [checkpoint] if isinstance(checkpoint, (str, Path)) else list(checkpoint)
    if not isinstance(source, nn.Module):
        from mmbitsplit.apis.config_loading import load_by_config  # it needs mmengine
        return load_by_config(source, files, device, bits, integer)
    restore_model(source, read_checkpoint(files[0], files[1:]))
    use_bits(source, bits)
    source.to(device)
    if integer:
        to_integer(source, integer)
    return source
