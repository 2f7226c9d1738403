"""Attention spelled out: its products and projections are given, the rest is computed here."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_Module = Callable[..., Tensor]
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_ATTENTION = ('query', 'key', 'value', 'attn_mask', 'dropout_p', 'is_causal')
_DEFAULTS = {'attn_mask': None, 'dropout_p': 0.0, 'is_causal': False, 'scale': None,
             'enable_gqa': False}


def scaled_dot_product(args: tuple, kwargs: dict[str, Any], qk: _Module, av: _Module) -> Tensor:
    """What ``F.scaled_dot_product_attention`` computes.

    Args:
        args, kwargs: Of its call.
        qk: Multiplies queries (..., L, E), scaled, by transposed keys (..., E, S).
        av: Multiplies the attention (..., L, S) by values (..., S, V).
    """
    given = {**_DEFAULTS, **dict(zip(_ATTENTION, args)), **kwargs}
    q, k, v = given['query'], given['key'], given['value']
    if given['enable_gqa']:
        k, v = (x.repeat_interleave(q.size(-3) // x.size(-3), -3) for x in (k, v))
    mask = given['attn_mask']
    if mask is not None and mask.dtype == torch.bool:
        mask = _additive(~mask, q.dtype)
    if given['is_causal']:
        mask = _causal(q.size(-2), k.size(-2), q)
    scale = 1 / math.sqrt(q.size(-1)) if given['scale'] is None else given['scale']
    scores = qk(q * scale, k.transpose(-2, -1))
    return av(F.dropout(attention_weights(scores, mask), given['dropout_p']), v)


def attention_weights(scores: Tensor, mask: Tensor | None, safe: bool = True) -> Tensor:
    """Softmax over the last dimension.

    Args:
        scores: (..., L, S).
        mask: Added to them first, 0 and -inf for example.
        safe: Rows that are masked whole attend to nothing; else they are NaN.
    """
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = torch.softmax(scores, -1)
    if mask is not None and safe:
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return weights


def bind_multi_head(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call of ``F.multi_head_attention_forward`` by name, with defaults."""
    given = _MULTI_HEAD.bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments


def multi_head(given: Mapping[str, Any], projections: Sequence[_Module], out: _Module,
               qk: _Module, av: _Module) -> tuple[Tensor, Tensor | None]:
    """What ``F.multi_head_attention_forward`` computes, samples first inside.

    Args:
        given: Its arguments by name.
        projections: One of queries, keys and values together, or one each.
        out: The output projection.
        qk, av: See ``scaled_dot_product``.
    """
    inputs = [given[name] for name in ('query', 'key', 'value')]
    batched = inputs[0].dim() == 3
    q, k, v = _projected([x.transpose(0, 1) if batched else x.unsqueeze(0) for x in inputs],
                         projections)  # (B, L, E), (B, S, E) twice
    heads, need_weights = given['num_heads'], given['need_weights']
    samples, length, width = q.shape
    if given['bias_k'] is not None:
        k = torch.cat([k, given['bias_k'].to(k.dtype).expand(samples, 1, width)], 1)
        v = torch.cat([v, given['bias_v'].to(v.dtype).expand(samples, 1, width)], 1)
    if given['add_zero_attn']:
        k, v = (torch.cat([x, x.new_zeros(samples, 1, width)], 1) for x in (k, v))
    q, k, v = (x.reshape(samples, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    scores = qk(q * (1 / math.sqrt(width // heads)), k.transpose(-2, -1))  # (B, H, L, S)
    weights = attention_weights(scores, _multi_head_mask(given, q, k), safe=not need_weights)
    if given['training']:
        weights = F.dropout(weights, given['dropout_p'])
    output = out(av(weights, v).transpose(1, 2).reshape(samples, length, width))
    output = output.transpose(0, 1) if batched else output.squeeze(0)
    if not need_weights:
        return output, None
    if given['average_attn_weights']:
        weights = weights.mean(1)
    return output, weights if batched else weights.squeeze(0)


def _projected(inputs: list[Tensor], projections: Sequence[_Module]) -> Sequence[Tensor]:
    if len(projections) == 1:
        return projections[0](inputs[0]).chunk(3, -1)
    return [project(x) for project, x in zip(projections, inputs)]


def _multi_head_mask(given: Mapping[str, Any], q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one that is added to scores (B, H, L, S); what was appended is not masked."""
    length, source, dtype = q.size(-2), k.size(-2), q.dtype
    padding, mask = given['key_padding_mask'], given['attn_mask']
    if given['is_causal'] and padding is None and not given['need_weights']:
        return _causal(length, source, q)
    if mask is not None:
        mask = _appended(_additive(mask, dtype), source)
        if mask.dim() == 3:  # of each head
            mask = mask.reshape(q.size(0), q.size(1), length, source)
    if padding is not None:
        padding = _appended(_additive(padding, dtype), source).reshape(-1, 1, 1, source)
        mask = padding if mask is None else mask + padding
    return mask


def _appended(mask: Tensor, source: int) -> Tensor:
    missing = source - mask.size(-1)
    return F.pad(mask, (0, missing)) if missing else mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add: -inf where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _causal(length: int, source: int, like: Tensor) -> Tensor:
    seen = torch.ones(length, source, dtype=torch.bool, device=like.device).tril()
    return _additive(~seen, like.dtype)
