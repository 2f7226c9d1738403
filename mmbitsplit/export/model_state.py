"""A model that was quantized in place as what a packed checkpoint holds, and back."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmbitsplit.export.packed_checkpoint import PackedCheckpoint, check_fit, pack_checkpoint
from mmbitsplit.models import QuantizedLayer, rebuild, surgery_of
from mmbitsplit.models.surgery.undo import as_it_was_on_error

# Before names of tensors, as in the state dict of ``engine``'s wrapper: every tool reads the file.
PREFIX = 'model.'


def pack_model(model: nn.Module, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is to be saved of a quantized model.

    Args:
        model: Quantized in place, or loaded.
        meta: Plain values that JSON can say.

    Raises:
        ValueError: It was not quantized, or only a part of it was, or its layers have other names
            now.
    """
    description = surgery_of(model)
    if description is None:
        part = next((name for name, module in model.named_modules()
                     if surgery_of(module) is not None), None)
        raise ValueError('The model was not quantized' + (
            f": its part '{part}' was; save that." if part else '; call quantize_model first.'))
    modules = dict(model.named_modules())
    for name in description['layers']:
        if not isinstance(modules.get(name), QuantizedLayer):
            raise ValueError(f"The model was changed after it was quantized: '{name}' is "
                             f'{"no quantized layer any more" if name in modules else "gone"}. '
                             'Save it as quantize_model leaves it.')
    state = {PREFIX + name: value for name, value in model.state_dict().items()}
    return pack_checkpoint(state, description, meta)


def restore_model(model: nn.Module, packed: PackedCheckpoint) -> None:
    """Makes a float model the quantized one of a checkpoint; an error leaves it as it was.

    Args:
        model: Freshly built, with any weights; in eval mode afterwards.
        packed: As it was read.

    Raises:
        ValueError: The model is quantized already, or of another architecture.
    """
    if any(isinstance(module, QuantizedLayer) for module in model.modules()):
        raise ValueError('The model is quantized already; build the float model again to load '
                         'this checkpoint.')
    state = {name.removeprefix(PREFIX): value for name, value in packed.state.items()}
    with as_it_was_on_error(model):
        rebuild(model, packed.description)
        check_fit(state, model.state_dict())
        model.load_state_dict(state)
        model.eval()
