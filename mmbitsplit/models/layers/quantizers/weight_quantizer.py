"""Integer codes of a weight, and the weight that they stand for; hard or soft."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmbitsplit.functional import code_range, narrower_codes, per_output
from mmbitsplit.functional.quantizers.shared_rounding import shared_codes
from mmbitsplit.functional.quantizers.soft_rounding import (
    harden_codes,
    rectified_sigmoid,
    soften_codes,
)
from mmbitsplit.functional.quantizers.weight_codes import write_weight
from mmbitsplit.models.layers.quantizers.learned_values import (
    Form,
    LearnedCodes,
    LearnedScale,
    LearnedShift,
)
from mmbitsplit.models.layers.quantizers.learning import Learning, check_width
from mmbitsplit.structures import LayerGeometry, LayerSolution
from mmbitsplit.structures.solution import Nesting

# How far from half a step a loose position keeps, so that it rounds to its code; and how far beyond
# the range it counts as at its end.
CLEAR = 1e-4
# References to a tensor that is in one variable alone, in the call that asks, and that counts.
_OURS = 3


class WeightQuantizer(Learning):
    """Codes of one width with their scales, and the bias that belongs to them.

    Hard, the weight is ``scale * codes + offset``. Soft, codes are ``base + h(rounding)``, and the
    weight has gradients for ``rounding``; loose, codes are rounded positions, and gradients pass
    the rounding. It has some for ``scale``, ``offset`` and ``bias`` where ``learn`` says so, or as
    soon as these require them. ``harden`` ends all of it.

    Args:
        geometry: Of the layer.
        num_bits: Width of a code.
        codes: int8, shape of the weight; ``None`` for a width of a
            ``WeightQuantizerSet`` whose codes are made of the widest's.
        scale: (out_channels,) real units a code step.
        bias: (out_channels,) or ``None``.
        offset: (out_channels,) added to every weight of a channel, or ``None``.
        nesting: Of the set that it is of; ``'floor'`` has the most negative code, too.
    """

    def __init__(self, geometry: LayerGeometry, num_bits: int, codes: Tensor | None,
                 scale: Tensor, bias: Tensor | None = None, offset: Tensor | None = None,
                 nesting: Nesting | None = None):
        super().__init__()
        self.geometry, self.num_bits, self.nesting = geometry, num_bits, nesting
        # Copies of what may be learnt in place: whoever made a solution may keep it.
        self.register_parameter('bias', None if bias is None else nn.Parameter(
            bias.detach().clone(), requires_grad=False))
        self.register_buffer('codes', codes)
        self.register_buffer('scale', scale.detach().to(torch.float32, copy=True))
        self.register_buffer('offset', None if offset is None
                             else offset.detach().to(torch.float32, copy=True))
        self.register_buffer('base', None, persistent=False)
        self.register_parameter('rounding', None)  # v of the rectified sigmoid, while soft
        self._shares = False  # the rounding is that of other widths, too
        self.register_module('loose', None)  # while codes are learned straight-through
        self._made: frozenset[str] = frozenset()  # bias, offset: begun from none
        self._carried: Callable[[], Tensor] | None = None  # growth of the input's scale
        self.register_buffer('hard_weight', None, persistent=False)  # made once for all forwards
        self.made_for = 1.0  # factor of the input's scale
        self.refresh()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are."""
        return (self.num_bits,)

    @property
    def soft(self) -> bool:
        """Whether codes, scale or offset are being learned: the weight is made in each forward."""
        return any(part is not None for part in (self.rounding, self.loose, self.learning,
                                                 self._carried))

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return code_range(self.num_bits, signed=True, narrow_range=self.nesting != 'floor')

    def weight(self, factor: Tensor | float = 1.0) -> Tensor:
        """The weight that the layer multiplies by, float32.

        Args:
            factor: The scale of the input in use in parts of that which the weight's scale
                carries; (1,) while it is being learned.
        """
        if isinstance(factor, Tensor):
            return self._make(factor)
        learnt = (self.scale, self.offset) if torch.is_grad_enabled() else ()
        if self.soft or self.hard_weight is None \
                or any(value is not None and value.requires_grad for value in learnt):
            return self._make(factor)
        if factor != self.made_for:
            self.refresh(factor)
        return self.hard_weight

    def soft_codes(self) -> Tensor:
        """Real codes within the range of the width: ``base + h(rounding)`` while soft, whole ones
        with the gradients of their positions while loose."""
        if self.rounding is not None:
            up = rectified_sigmoid(self.rounding)
            return shared_codes(self.base, up, self.num_bits) if self._shares else self.base + up
        return self.codes.to(torch.float32) if self.loose is None else self._loose_codes()

    def soften(self, position: Tensor) -> None:
        """Lets gradients choose between each code and its neighbour, by ``rounding``.

        Args:
            position: Where each weight would be without rounding, in code steps, shape of the
                weight. ``harden`` gives today's codes as long as ``rounding`` is as it is made
                here.
        """
        self.codes, self.loose = self.hard_codes(), None
        low, high = self.limits
        base, v = soften_codes(self.codes, position.to(torch.float32), low, high)
        self.base, self.rounding, self._shares = base, nn.Parameter(v), False

    def share(self, position: Tensor, rounding: nn.Parameter) -> None:
        """Lets gradients choose between the floor and the ceiling of each position, by a rounding
        that quantizers of other widths have, too (PTMQ, Eq. 3). The full range of codes is used.

        Args:
            position: As for ``soften``.
            rounding: v of the rectified sigmoid, shape of the weight.
        """
        self.base, self.loose = position.to(torch.float32).floor(), None
        self.rounding, self._shares = rounding, True

    def loosen(self, position: Tensor, steps: Tensor | float = 1.0, everywhere: bool = False,
               follow: bool = False) -> None:
        """Lets gradients move codes as far as they like: straight through rounding.

        Until the first step codes are today's: positions within half a step of them are taken as
        they are, and so are those beyond the range where the code is the last; others count as
        half a step away.

        Args:
            position: As for ``soften``.
            steps: Code steps a unit of what is learned (``learned()['codes']``), broadcast to the
                weight: 1 for code steps, ``1 / scale`` for real units.
            everywhere: Gradients pass where a position is beyond the range, too.
            follow: Weights stay where they are when scale and offset move, and their codes change
                (AdaQuant); else codes stay.
        """
        self.codes, self.base, self.rounding = self.hard_codes(), None, None
        low, high = self.limits
        away = position.to(torch.float32) - self.codes
        reach = 0.5 - CLEAR
        beyond = ((self.codes == high) & (away > 0)) | ((self.codes == low) & (away < 0))
        # What ranges are made of lies at their ends, whatever rounding says of the last bit.
        near = torch.where(beyond, torch.where(away.abs() < CLEAR, 0.0, away),
                           away.clamp(-reach, reach))
        self.loose = LearnedCodes(self.codes + near, low, high, steps, everywhere, follow)

    def learn(self, scale: Form | None = None, offset: bool = False, bias: bool = False) -> None:
        """Lets gradients move what codes are multiplied by and what is added.

        An offset or bias that there is none of begins as zeros; where it ends so, there is none.

        Args:
            scale: ``'log'``: a learning rate is relative; ``'raw'``; ``None`` leaves it.
            offset: Added to every weight of a channel; costs a runtime the sum of the inputs.
            bias: Of the layer.
        """
        made = set()
        if scale is not None:
            self._learn('scale', LearnedScale(self.scale, scale))
        if offset:
            if self.offset is None:
                made.add('offset')
            self._learn('offset', LearnedShift(
                torch.zeros_like(self.scale) if self.offset is None else self.offset))
        if bias:
            if self.bias is None:
                made.add('bias')
                self.bias = nn.Parameter(torch.zeros_like(self.scale.detach()))
            self.bias.requires_grad_()
        self._made = frozenset(self._made | made)

    def carry(self, growth: Callable[[], Tensor]) -> None:
        """Multiplies scale and offset by what an input's scale has grown by since.

        Args:
            growth: Gives (1,), 1 so far; called in every forward until ``harden``.
        """
        self._carried = growth

    def learned(self) -> dict[str, nn.Parameter]:
        """See ``Learning``: ``'codes'``, ``'scale'``, ``'offset'`` and ``'bias'``, those that are
        learned."""
        codes = self.rounding if self.loose is None else self.loose.parameter
        bias = self.bias if self.bias is not None and self.bias.requires_grad else None
        return {name: value for name, value in (
            ('codes', codes), *super().learned().items(), ('bias', bias)) if value is not None}

    @torch.no_grad()
    def hard_codes(self) -> Tensor:
        """The whole codes that ``harden`` would give now."""
        if self.loose is not None:
            return self._loose_codes().to(self.codes.dtype)
        if self.rounding is None:
            return self.codes
        if self._shares:
            up = (self.rounding >= 0).to(self.base)
            return shared_codes(self.base, up, self.num_bits).to(self.codes.dtype)
        return harden_codes(self.base, self.rounding)

    @torch.no_grad()
    def harden(self) -> Tensor:
        """Ends ``soften``, ``loosen``, ``learn`` and ``carry``: a plain quantizer from here on.

        Returns:
            Its whole codes.
        """
        if self.bias is not None:
            self.bias.requires_grad_(False)
        if self.soft or self._made:
            hard = self.solution()
            if self.learning is not None or self._carried is not None:
                self.learning = self._carried = None
                self.scale, self.offset = hard.weight_scale, hard.weight_offset
            self.codes, self.base, self.rounding, self.loose = hard.codes, None, None, None
            self._shares = False
            self.bias = self.bias if hard.bias is not None else None
            self._made = frozenset()
            self.refresh()
        return self.codes

    @torch.no_grad()
    def solution(self, codes: Tensor | None = None) -> LayerSolution:
        """A copy of what it stands for now, whole codes.

        Args:
            codes: Instead of its own.
        """
        scale, offset = self._factors()
        bias = self.bias
        if 'offset' in self._made and not offset.any():
            offset = None
        if 'bias' in self._made and not bias.any():
            bias = None
        parts = (self.hard_codes() if codes is None else codes, scale, bias, offset)
        copied = [None if value is None else value.detach().clone() for value in parts]
        return LayerSolution(codes=copied[0], num_bits=self.num_bits, weight_scale=copied[1],
                             bias=copied[2], weight_offset=copied[3], qparams=None,
                             nesting=self.nesting)

    def use(self, num_bits: int, factor: float | None = None) -> None:
        """Chooses among ``widths``, here there is one, and makes the weight for a factor.

        Args:
            num_bits: Of ``widths``.
            factor: See ``weight``; as it was when not given.
        """
        check_width(num_bits, self.widths)
        if factor is not None and factor != self.made_for:
            self.refresh(factor)

    def refresh(self, factor: float | None = None, room: Tensor | None = None,
                wider: tuple[Tensor, int, Nesting] | None = None) -> None:
        """Makes the weight anew, after codes, scale or offset have been written to.

        Args:
            factor: See ``weight``; as before when not given.
            room: Float32 of the weight's shape, to make it in; its own when not given.
            wider: What codes are made of, into the memory that they have; see ``write_weight``.
        """
        if factor is not None:
            self.made_for = factor
        room, self.hard_weight = self.give_room() if room is None else room, None
        codes = self.codes
        if codes is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            plain = not self.soft and room is not None and room.shape == codes.shape \
                and room.device == codes.device
            if plain:  # new memory would take longer than all of this
                write_weight(room, codes, times(self.scale, self.made_for),
                             times(self.offset, self.made_for), self.geometry, wider)
                self.hard_weight = room
                return
            if wider is not None:
                source, shift, nesting = wider
                codes.copy_(narrower_codes(source, 8, 8 - shift, nesting))
            self.hard_weight = self._make(self.made_for)

    def give_room(self) -> Tensor | None:
        """Takes the weight's memory away, for another; ``None`` where somebody else reads it."""
        room, self.hard_weight = self.hard_weight, None
        return room if is_free(room, torch.float32) else None

    def _factors(self) -> tuple[Tensor, Tensor | None]:
        """Scale and offset of the weight that the layer multiplies by."""
        scale, offset = self.scale, self.offset
        if self._carried is not None:
            growth = self._carried()
            scale, offset = scale * growth, None if offset is None else offset * growth
        return scale, offset

    def _make(self, factor: Tensor | float = 1.0) -> Tensor:
        scale, offset = self._factors()
        weight = self.soft_codes() * per_output(times(scale, factor), self.geometry)
        if offset is None:
            return weight
        offset = per_output(times(offset, factor), self.geometry)
        if self.loose is not None and self.loose.follow and self.offset.requires_grad:
            # Inside the range codes make good for it: else what two gradients that cancel leave
            # over would be learned.
            fixed = self.offset.detach() if self._carried is None else \
                self.offset.detach() * self._carried()
            beyond = self.loose.beyond(*self._moved())
            offset = torch.where(beyond, offset, per_output(times(fixed, factor), self.geometry))
        return weight + offset

    def _loose_codes(self) -> Tensor:
        return self.loose(*self._moved())

    def _moved(self) -> tuple[Tensor | None, Tensor | None]:
        """What loose codes follow: growth of the scale, and of the offset in its steps."""
        growth = shift = None
        if self.loose.follow and self.learning is not None:
            if 'scale' in self.learning:
                growth = per_output(self.learning['scale'].growth(), self.geometry)
            if 'offset' in self.learning:
                before, now = self._buffers['offset'], self.offset.detach()  # see ``_make``
                moved = now if before is None else now - before
                shift = per_output(moved / self.scale, self.geometry)
        return growth, shift

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def extra_repr(self) -> str:
        return f'num_bits={self.num_bits}, {"soft" if self.soft else "hard"}'


def times(values: Tensor | None, factor: Tensor | float) -> Tensor | None:
    """Values times a factor; the values themselves where it is 1."""
    return values if values is None or isinstance(factor, float) and factor == 1.0 \
        else values * factor


def is_free(room: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether a tensor that one variable of the caller has may be written over."""
    return room is not None and not room.is_inference() and not room.requires_grad \
        and room.dtype == dtype and sys.getrefcount(room) <= _OURS
