"""A table of rows that are looked up, in integer codes: an embedding with quantized weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbitsplit.models.layers.float_weights import FloatWeights
from mmbitsplit.models.layers.in_place import become, has
from mmbitsplit.models.layers.layer_state import (
    NAMES,
    blank_solution,
    geometry_of_row,
    plan_row,
    to_file,
    to_memory,
)
from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.structures import EmbeddingPlan, LayerGeometry, LayerSolution


def embedding_geometry(module: nn.Module) -> LayerGeometry:
    """The geometry of an embedding: a row is what an output channel of a linear layer is."""
    return LayerGeometry('embedding', module.embedding_dim, module.num_embeddings)


class RowCodes(nn.Module):
    """Codes of a table, each row on a scale of its own.

    Args:
        codes: (rows, channels) int8.
        scale: (rows,) real units a code step.
        num_bits: Width of a code.
    """

    def __init__(self, codes: Tensor, scale: Tensor, num_bits: int):
        super().__init__()
        self.num_bits = num_bits
        self.register_buffer('codes', codes.detach().clone())
        self.register_buffer('scale', scale.detach().to(torch.float32, copy=True))

    def weight(self) -> Tensor:
        """(rows, channels) what the codes stand for, float32."""
        return self.codes.to(torch.float32) * self.scale.unsqueeze(1)

    def rows(self, index: Tensor) -> Tensor:
        """(..., channels) some rows of ``weight()``; only these are made.

        Args:
            index: (...) int.
        """
        scale = F.embedding(index, self.scale.unsqueeze(1))
        return F.embedding(index, self.codes).to(torch.float32) * scale

    def extra_repr(self) -> str:
        return f'{self.codes.shape[0]} x {self.codes.shape[1]}, num_bits={self.num_bits}'


class QuantizedEmbedding(nn.Module):
    """What an embedding becomes: the same module, whose weight is codes.

    A class with a forward of its own (positions with an offset) goes on computing with ``weight``.
    The float weight stays beside the codes until ``release_float``.
    """

    in_place_name = 'Quantized'
    weight_quantizer: RowCodes
    _kept: FloatWeights | None
    _in_float: bool

    @property
    def weight(self) -> Tensor:
        """(rows, channels) float32, in the units of the float model."""
        if self._in_float:
            return self._float_weight()
        return self.weight_quantizer.weight()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        index = args[0] if args else kwargs.get('input')
        if self._in_float or len(args) + len(kwargs) != 1 or not isinstance(index, Tensor) \
                or _own_forward(self) is not nn.Embedding.forward:
            return super().forward(*args, **kwargs)
        return self.weight_quantizer.rows(index)

    @contextmanager
    def in_float(self) -> Iterator[None]:
        """Inside, it answers as the float model does; nobody may sleep there."""
        vars(self)['_in_float'] = True
        try:
            yield
        finally:
            vars(self)['_in_float'] = False

    def _float_weight(self) -> Tensor:
        if self._kept is None:
            raise RuntimeError('The float weight of this embedding has been released: calibration '
                               'is over, or it was loaded from a quantized checkpoint. Load the '
                               'float model again.')
        return self._kept.weight

    def release_float(self) -> None:
        """Gives the memory of the float weight back; there is no way back to float then."""
        self._kept = None

    def solution(self) -> LayerSolution:
        """A copy of its codes and scales."""
        codes = self.weight_quantizer
        return LayerSolution(codes=codes.codes.clone(), num_bits=codes.num_bits,
                             weight_scale=codes.scale.clone(), bias=None, qparams=None)

    # As of a quantized layer.

    @property
    def quantized(self) -> bool:
        """Whether codes are installed: always."""
        return True

    @property
    def geometry(self) -> LayerGeometry:
        """See ``embedding_geometry``."""
        return embedding_geometry(self)

    @property
    def codes(self) -> Tensor:
        """(rows, channels) int8."""
        return self.weight_quantizer.codes

    @property
    def num_bits(self) -> int:
        """Width of a code."""
        return self.weight_quantizer.num_bits

    def use(self, weight: int) -> None:
        """Chooses among its widths: it has one."""
        check_width(weight, (self.num_bits,))

    @property
    def weight_scale(self) -> Tensor:
        """(rows,) real units a code step."""
        return self.weight_quantizer.scale

    def plan_row(self, plan: EmbeddingPlan | None = None) -> dict[str, Any]:
        """What a checkpoint must say besides tensors to make this embedding again."""
        row = plan_row(self.solution(), self.geometry)
        return row if plan is None else {**row, 'role': plan.role}

    # Checkpoints: the layout of ``layer_state``.

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = '',
                   keep_vars: bool = False) -> dict[str, Any]:
        state = super().state_dict(*args, destination=destination, prefix=prefix,
                                   keep_vars=keep_vars)
        inner = {place: state.pop(prefix + place) for place in NAMES.values()
                 if prefix + place in state}
        state.update({prefix + name: value for name, value in to_file(
            inner, self.num_bits, self.geometry).items()})
        return state

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys,
                              *args):
        found = {name: state_dict.pop(prefix + name) for name in ('codes', 'weight_scale')
                 if prefix + name in state_dict}
        inner = {NAMES['codes']: self.codes, NAMES['weight_scale']: self.weight_scale}
        for name in ('codes', 'weight_scale'):
            if name not in found:
                missing_keys.append(prefix + name)
                state_dict[prefix + NAMES[name]] = inner[NAMES[name]]
        state_dict.update({prefix + place: value for place, value in to_memory(
            found, self.num_bits, self.geometry).items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys,
                                      *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        super()._apply(fn, *args, **kwargs)
        if self._kept is not None:
            self._kept = self._kept.map(fn)
        return self


def quantize_embedding(module: nn.Module, solution: LayerSolution) -> None:
    """Turns an embedding into one with codes, in place; other codes where it has some.

    Args:
        module: An ``nn.Embedding``.
        solution: Its codes and scales.
    """
    device = module.weight.device
    codes = RowCodes(solution.codes.to(device), solution.weight_scale.to(device),
                     solution.num_bits).train(module.training)
    if not has(module, QuantizedEmbedding):
        kept = FloatWeights(module._parameters.pop('weight'), None)
        become(module, QuantizedEmbedding)
        module._kept, module._in_float = kept, False
    module.weight_quantizer = codes


def expect_embedding(module: nn.Module, row: dict[str, Any]) -> None:
    """Makes an embedding ready for the state that a checkpoint's row describes.

    Raises:
        ValueError: The row is of another table; says where they differ.
    """
    quantize_embedding(module, blank_solution(row, geometry_of_table(row, module)))
    module.release_float()


def geometry_of_table(row: dict[str, Any], module: nn.Module) -> LayerGeometry:
    """The geometry of the embedding that a checkpoint's row describes.

    Raises:
        ValueError: The row is of another table; says where they differ.
    """
    if not isinstance(module, nn.Embedding):
        raise ValueError(f'the checkpoint has an embedding where the model has a '
                         f'{type(module).__name__}.')
    return geometry_of_row(row, embedding_geometry(module))


def _own_forward(module: nn.Module) -> Callable:
    """The forward of the class that the module was of."""
    kinds = type(module).__mro__
    after = kinds[kinds.index(QuantizedEmbedding) + 1:]
    return next(vars(kind)['forward'] for kind in after if 'forward' in vars(kind))
