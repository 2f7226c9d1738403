"""Brings every function that multiplies two tensors to one form, ``finish(a @ b + bias)``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmbitsplit.models.opening.einsum import bound_einsum
from mmbitsplit.models.opening.multiply import Multiply, NotOpened, unchanged


def bound(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any], **defaults: Any,
          ) -> dict[str, Any]:
    """Arguments of a function of torch by name; ``self`` of a method goes by the first name.

    Raises:
        NotOpened: The result is written into a given tensor.
    """
    if kwargs.get('out') is not None:
        raise NotOpened('writes its result into a given tensor (out=...)')
    given = {**defaults, **dict(zip(names, args)), **kwargs}
    for name, alias in (('mat2', 'other'), ('tensor2', 'other'), ('self', names[0])):
        if name in given and alias in names and name not in names:
            given[alias] = given.pop(name)
    given.pop('out', None)
    return given


def _matmul(args: tuple, kwargs: dict[str, Any]) -> Multiply:
    given = bound(('input', 'other'), args, kwargs)
    a, b = given['input'], given['other']
    row, column = a.dim() == 1, b.dim() == 1

    def finish(output: Tensor) -> Tensor:
        output = output.squeeze(-1) if column else output
        return output.squeeze(-1 if column else -2) if row else output
    return Multiply(a.unsqueeze(0) if row else a, b.unsqueeze(1) if column else b, None,
                    finish if row or column else unchanged)


def _reflected(args: tuple, kwargs: dict[str, Any]) -> Multiply:
    return _matmul((args[1], args[0]), kwargs)


def _baddbmm(args: tuple, kwargs: dict[str, Any]) -> Multiply:
    given = bound(('input', 'batch1', 'batch2'), args, kwargs, beta=1, alpha=1)
    return Multiply(given['batch1'], given['batch2'], None, _added(given))


def _addmm(args: tuple, kwargs: dict[str, Any]) -> Multiply:
    given = bound(('input', 'mat1', 'mat2'), args, kwargs, beta=1, alpha=1)
    a, b, added = given['mat1'], given['mat2'], given['input']
    if given['beta'] == given['alpha'] == 1 and added.shape == b.shape[1:]:
        return Multiply(a, b, added)
    return Multiply(a, b, None, _added(given))


def _added(given: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    def finish(output: Tensor) -> Tensor:
        if given['alpha'] != 1:
            output = output * given['alpha']
        if given['beta'] == 0:
            return output
        added = given['input'].to(output.dtype)
        return output + (added if given['beta'] == 1 else added * given['beta'])
    return finish


def _linear(args: tuple, kwargs: dict[str, Any]) -> Multiply:
    given = bound(('input', 'weight', 'bias'), args, kwargs, bias=None)
    if given['weight'].dim() != 2:
        raise NotOpened('linear with a weight that is no matrix')
    product = _matmul((given['input'], given['weight'].t()), {})
    bias = given['bias']
    if bias is not None and bias.dim() == 0:
        bias = bias.expand(given['weight'].size(0))
    return Multiply(product.a, product.b, bias, product.finish)


def _einsum(args: tuple, kwargs: dict[str, Any]) -> Multiply:
    return bound_einsum(*args)


_T = torch.Tensor
# By function: what the call is named in descriptions, and how it is brought to the one form.
MULTIPLIES: dict[Any, tuple[str, Callable[[tuple, dict[str, Any]], Multiply]]] = {
    torch.matmul: ('matmul', _matmul), _T.matmul: ('matmul', _matmul),
    _T.__matmul__: ('matmul', _matmul), _T.__rmatmul__: ('matmul', _reflected),
    torch.mm: ('matmul', _matmul), _T.mm: ('matmul', _matmul),
    torch.bmm: ('matmul', _matmul), _T.bmm: ('matmul', _matmul),
    torch.baddbmm: ('baddbmm', _baddbmm), _T.baddbmm: ('baddbmm', _baddbmm),
    torch.addmm: ('addmm', _addmm), _T.addmm: ('addmm', _addmm),
    torch.einsum: ('einsum', _einsum), F.linear: ('linear', _linear)}
CONVOLUTIONS: dict[Any, str] = {F.conv1d: 'conv1d', F.conv2d: 'conv2d', F.conv3d: 'conv3d'}
ATTENTION, MULTI_HEAD = F.scaled_dot_product_attention, F.multi_head_attention_forward
# Names of all calls that are counted.
NAMES: dict[Any, str] = {**{function: name for function, (name, _) in MULTIPLIES.items()},
                         **CONVOLUTIONS, ATTENTION: 'attention', MULTI_HEAD: 'multi_head'}
