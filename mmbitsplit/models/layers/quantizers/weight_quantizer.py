"""Integer codes of a weight, and the weight that they stand for; hard or soft."""

import torch
from torch import Tensor, nn

from mmbitsplit.functional import code_range, per_output
from mmbitsplit.functional.quantizers.soft_rounding import (
    harden_codes,
    rectified_sigmoid,
    soften_codes,
)
from mmbitsplit.structures import LayerGeometry, LayerSolution


class WeightQuantizer(nn.Module):
    """Codes of one width with their scales, and the bias that belongs to them.

    Hard, the weight is ``scale * codes + offset``. Soft, codes are ``base + h(rounding)``, and the
    weight has gradients for ``rounding``; it has some for ``scale``, ``offset`` and ``bias`` as
    soon as these require them, hard or soft.

    Args:
        geometry: Of the layer.
        num_bits: Width of a code.
        codes: int8, shape of the weight; ``None`` for a width of a
            ``WeightQuantizerSet`` whose codes are made of the widest's.
        scale: (out_channels,) real units a code step.
        bias: (out_channels,) or ``None``.
        offset: (out_channels,) added to every weight of a channel, or ``None``.
    """

    def __init__(self, geometry: LayerGeometry, num_bits: int, codes: Tensor | None,
                 scale: Tensor, bias: Tensor | None = None, offset: Tensor | None = None):
        super().__init__()
        self.geometry, self.num_bits = geometry, num_bits
        # Copies of what may be learnt in place: whoever made a solution may keep it.
        self.register_parameter('bias', None if bias is None else nn.Parameter(
            bias.detach().clone(), requires_grad=False))
        self.register_buffer('codes', codes)
        self.register_buffer('scale', scale.detach().to(torch.float32, copy=True))
        self.register_buffer('offset', None if offset is None
                             else offset.detach().to(torch.float32, copy=True))
        self.register_buffer('base', None, persistent=False)
        self.register_parameter('rounding', None)  # v of the rectified sigmoid, while soft
        self.register_buffer('hard_weight', None, persistent=False)  # made once for all forwards
        self.refresh()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are."""
        return (self.num_bits,)

    @property
    def soft(self) -> bool:
        """Whether codes lie between whole numbers and gradients move them."""
        return self.rounding is not None

    def weight(self) -> Tensor:
        """The weight that the layer multiplies by, float32."""
        learnt = (self.scale, self.offset) if torch.is_grad_enabled() else ()
        if self.soft or self.hard_weight is None \
                or any(value is not None and value.requires_grad for value in learnt):
            return self._make()
        return self.hard_weight

    def soft_codes(self) -> Tensor:
        """Real codes: ``base + h(rounding)`` while soft; within the range of the width."""
        if self.soft:
            return self.base + rectified_sigmoid(self.rounding)
        return self.codes.to(torch.float32)

    def soften(self, position: Tensor) -> None:
        """Lets gradients choose between each code and its neighbour, by ``rounding``.

        Args:
            position: Where each weight would be without rounding, in code steps, shape of the
                weight. ``harden`` gives today's codes as long as ``rounding`` is as it is made
                here.
        """
        low, high = code_range(self.num_bits, signed=True, narrow_range=True)
        base, v = soften_codes(self.codes, position.to(torch.float32), low, high)
        self.base, self.rounding = base, nn.Parameter(v)

    def hard_codes(self) -> Tensor:
        """The whole codes that ``harden`` would give now."""
        return harden_codes(self.base, self.rounding.detach()) if self.soft else self.codes

    def harden(self) -> Tensor:
        """Ends ``soften``: whole codes from here on, which are returned."""
        if self.soft:
            self.codes = self.hard_codes()
            self.base = self.rounding = None
            self.refresh()
        return self.codes

    def solution(self, codes: Tensor | None = None) -> LayerSolution:
        """A copy of what it stands for now, whole codes.

        Args:
            codes: Instead of its own.
        """
        parts = (self.hard_codes() if codes is None else codes, self.scale, self.bias, self.offset)
        copied = [None if value is None else value.detach().clone() for value in parts]
        return LayerSolution(codes=copied[0], num_bits=self.num_bits, weight_scale=copied[1],
                             bias=copied[2], weight_offset=copied[3], qparams=None)

    def use(self, num_bits: int) -> None:
        """Chooses among ``widths``: here there is one."""
        if num_bits not in self.widths:
            raise ValueError(f'num_bits={num_bits!r} is none of the widths of this layer; it has '
                             f'{", ".join(map(str, self.widths))}.')

    def refresh(self) -> None:
        """Makes the weight anew, after codes, scale or offset have been written to."""
        with torch.no_grad():
            self.hard_weight = None if self.codes is None else self._make()

    def _make(self) -> Tensor:
        weight = self.soft_codes() * per_output(self.scale, self.geometry)
        return weight if self.offset is None else weight + per_output(self.offset, self.geometry)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def extra_repr(self) -> str:
        return f'num_bits={self.num_bits}, {"soft" if self.soft else "hard"}'
