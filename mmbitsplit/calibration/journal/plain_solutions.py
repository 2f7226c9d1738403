"""Solutions as plain values and tensors, which a journal writes, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.functional import narrower_codes
from mmbitsplit.structures import LayerSolution, Log2Params, ProductSolution, QParams


def to_plain(value: Any) -> Any:
    """Returns dataclasses as dicts and tensors as copies (a view would save all its storage)."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value


def solution_to_plain(solution: LayerSolution | ProductSolution) -> dict[str, Any]:
    """``to_plain`` of a solution, without codes that are made of the widest's."""
    if isinstance(solution, ProductSolution):
        return to_plain(solution)
    narrower = [
        {**to_plain(one), 'codes': None if _is_nested(solution, one) else to_plain(one.codes)}
        for one in solution.narrower]
    return {**to_plain(replace(solution, narrower=())), 'narrower': narrower}


def to_solution(plain: Mapping[str, Any]) -> LayerSolution:
    """Inverse of ``solution_to_plain``, all codes whole; older entries say nothing of outputs and
    narrower widths."""
    sides: dict[str, Any] = {side: QParams(**plain[side]) for side in ('qparams', 'output_qparams')
                             if plain.get(side) is not None}
    sides.update({side: tuple(QParams(**one) for one in plain.get(side, ()))
                  for side in ('narrower_inputs', 'narrower_outputs')})
    widest = LayerSolution(**{**plain, **sides, 'narrower': ()})
    return replace(widest, narrower=tuple(
        one if one.codes is not None else replace(one, codes=_made_of(widest, one.num_bits))
        for one in map(to_solution, plain.get('narrower', ()))))


def _is_nested(widest: LayerSolution, one: LayerSolution) -> bool:
    return one.codes is None or (widest.nesting is not None and torch.equal(
        one.codes, _made_of(widest, one.num_bits)))


def _made_of(widest: LayerSolution, num_bits: int) -> Tensor:
    return narrower_codes(widest.codes, widest.num_bits, num_bits, widest.nesting or 'planes')


def to_product_solution(plain: Mapping[str, Any]) -> ProductSolution:
    """Inverse of ``solution_to_plain`` for a product."""
    return ProductSolution(**{side: _to_params(value) for side, value in plain.items()})


def _to_params(value: Any) -> Any:
    """Inverse of ``to_plain`` for one side of a product: of one width, or of several."""
    if isinstance(value, list):
        return tuple(map(_to_params, value))
    return None if value is None else \
        QParams(**value) if 'scale' in value else Log2Params(**value)
