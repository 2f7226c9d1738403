"""Refuses, before anything is run or changed, models with which nothing can be done."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from mmbitsplit.models.layers.geometry import layer_kind
from mmbitsplit.models.layers.quantized_layers import QuantizedLayer

SUPPORTED = 'Conv1d, Conv2d, ConvTranspose2d, Linear and their subclasses'
FIRST_NAMES, MOST_NAMES = 5, 30  # of layers, in the sentence and below it
MOST_PATTERNS = 6


def check_model(model: nn.Module) -> None:
    """Raises ``ValueError`` for a model that is quantized already, a trace, or without layers.

    Likewise for one that holds a trace: torch lets nobody watch what such a module is given.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ValueError(f'The model is a {type(model).__name__}, traced or scripted: its layers '
                         'cannot be quantized. Give the nn.Module that it was made from.')
    traced = next((name for name, module in model.named_modules()
                   if isinstance(module, torch.jit.ScriptModule)), None)
    if traced is not None:
        raise ValueError(f"The model's '{traced}' is traced or scripted: what runs inside cannot "
                         'be watched. Put the nn.Module that it was made from in its place.')
    quantized = [name for name, module in model.named_modules()
                 if isinstance(module, QuantizedLayer)]
    if quantized:
        raise ValueError(f'The model holds {len(quantized)} quantized layer(s) already, such as '
                         f"'{quantized[0]}'. Build the float model and load its weights again; to "
                         'quantize one model several times, give copy.deepcopy(model) each time.')
    if not any(layer_kind(module) or isinstance(module, (nn.Conv1d, nn.MultiheadAttention))
               for module in model.modules()):
        raise ValueError(f'The model has no layer that can be quantized: supported are {SUPPORTED}'
                         f'; seen were {_what_was_seen(model)}.')


def check_left(layers: Collection, kept: Sequence, what: str) -> None:
    """Raises ``ValueError`` when a plan leaves no layer to quantize.

    Args:
        layers: The planned ones.
        kept: ``FloatRemainder`` of what stays float.
        what: Says of the request how layers are left out.
    """
    if not layers:
        reasons = '; '.join(f'{row.name or type(row).__name__} ({row.kind}): {row.reason}'
                            for row in kept[:5]) or 'none was seen'
        raise ValueError(f'No layer is left to quantize: {reasons}'
                         f'{"; ..." if len(kept) > 5 else ""}. {what}')


def check_reached(missing: Sequence[str], layers: Sequence[str]) -> None:
    """Raises ``ValueError`` for layers that no image reached; says how to leave them out.

    Args:
        missing: Their names.
        layers: Of all layers of the model.
    """
    if not missing:
        return
    patterns = covering_patterns(missing, layers)
    rows = [f"dict(match='{pattern}', skip=True)" for pattern in patterns[:MOST_PATTERNS]]
    more = ', ...' if len(patterns) > MOST_PATTERNS else ''
    first = ', '.join(missing[:FIRST_NAMES])
    names = ''
    if len(missing) > FIRST_NAMES:
        first += ', ...'
        names = '\nThese are ' + ', '.join(missing[:MOST_NAMES])
        names += f' and {len(missing) - MOST_NAMES} more.' if len(missing) > MOST_NAMES else '.'
    raise ValueError(
        f'{len(missing)} layer(s) were never reached by the calibration images: {first}. '
        'Use images on which the model runs them (for a mask branch: images with detections), or '
        f'leave them in float with overrides=[{", ".join(rows)}{more}], or all such layers with '
        f"calibration.unreached='float' (of layers that only training calls).{names}")


def covering_patterns(chosen: Sequence[str], layers: Sequence[str]) -> list[str]:
    """Returns shell patterns that match chosen layers and no other, as few as prefixes allow.

    Args:
        chosen: Dotted names, some of ``layers``.
        layers: All names.
    """
    wanted, patterns = set(chosen), []
    for name in chosen:
        if name not in wanted:
            continue
        parts = name.split('.')
        for depth in range(1, len(parts)):
            prefix = '.'.join(parts[:depth]) + '.'
            inside = {layer for layer in layers if layer.startswith(prefix)}
            if len(inside) > 1 and inside <= set(chosen):
                patterns.append(f'{prefix}*')
                wanted -= inside
                break
        else:
            patterns.append(name)
            wanted.discard(name)
    return patterns


def _what_was_seen(model: nn.Module) -> str:
    """Classes of the modules that hold weights."""
    seen = {getattr(module, 'original_name', type(module).__name__): None
            for module in model.modules() if any(True for _ in module.parameters(recurse=False))}
    return ', '.join(list(seen)[:12]) or f'no weights at all ({type(model).__name__})'
