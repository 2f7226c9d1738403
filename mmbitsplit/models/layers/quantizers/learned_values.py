"""Scales and zero points while they are learned, beside the plain tensors that they begin as.

A quantizer that is asked for a value that it learns answers with what it is now, with gradients.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmbitsplit.functional.quantizers.straight_through import gradient_times, round_codes_ste

Form = Literal['log', 'raw']
FORMS: tuple[Form, ...] = get_args(Form)
LEAST_GROWTH = 2.0 ** -10  # of a scale that is learned raw; it stays positive


class LearnedScale(nn.Module):
    """``start * growth``, growth 1 until the first step: so no step changes no bit.

    Args:
        start: (C,) positive.
        form: ``'log'``: the parameter is the logarithm of the growth, so that a learning rate is
            relative. ``'raw'``: the parameter is the scale itself.
        common: One parameter for all, of the mean scale where it is raw.
    """

    def __init__(self, start: Tensor, form: Form, common: bool = False):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"scale={form!r} is not supported; it must be 'log' (a relative "
                             "learning rate), 'raw' or None (not learned).")
        self.form, self.factor = form, 1.0  # on the gradient
        start = start.detach().clone()
        raw = start.mean().reshape(1) if common else start
        self.register_buffer('start', start, persistent=False)
        self.register_buffer('raw', raw if form == 'raw' else None, persistent=False)
        self.parameter = nn.Parameter(raw.clone() if form == 'raw' else torch.zeros_like(raw))

    def growth(self) -> Tensor:
        """(C,), or (1,) of a common parameter: in parts of the start."""
        parameter = self.parameter
        if self.factor != 1:
            parameter = gradient_times(parameter, self.factor)
        if self.form == 'log':
            return parameter.exp()
        growth = parameter / self.raw
        # Straight through, so that it can come back from the end.
        return growth + (growth.clamp(min=LEAST_GROWTH) - growth).detach()

    def forward(self) -> Tensor:
        return self.start * self.growth()


class LearnedZeroPoint(nn.Module):
    """A whole code in the forward, a real one for gradients (LSQ+).

    Args:
        start: (C,) whole.
        low, high: Smallest and largest code, (1,) or (C,).
    """

    def __init__(self, start: Tensor, low: Tensor, high: Tensor):
        super().__init__()
        self.register_buffer('low', low, persistent=False)
        self.register_buffer('high', high, persistent=False)
        self.parameter = nn.Parameter(start.detach().to(low, copy=True))

    def forward(self) -> Tensor:
        return round_codes_ste(self.parameter, self.low, self.high, everywhere=True)


class LearnedShift(nn.Module):
    """A real number that is learned as it is."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.parameter = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        return self.parameter


class LearnedCodes(nn.Module):
    """Codes that gradients move as far as they like, straight through rounding.

    A position is ``start + moves * steps``, moves 0 until the first step.

    Args:
        start: Where each weight is, in code steps; shape of the weight.
        low, high: Smallest and largest code.
        steps: Code steps a unit of the moves, one for all or broadcast to the weight.
        everywhere: Gradients pass beyond the range too.
        follow: Whether a weight stays where it is when scale and offset move, so that its code
            changes (AdaQuant); else its code stays.
    """

    def __init__(self, start: Tensor, low: int, high: int, steps: Tensor | float = 1.0,
                 everywhere: bool = False, follow: bool = False):
        super().__init__()
        self.low, self.high, self.everywhere, self.follow = low, high, everywhere, follow
        self.register_buffer('start', start, persistent=False)
        self.register_buffer('steps', torch.as_tensor(steps).to(start), persistent=False)
        self.parameter = nn.Parameter(torch.zeros_like(start))

    def forward(self, growth: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Whole codes.

        Args:
            growth: Of the scale since the start, broadcast to the weight.
            shift: What the offset has grown by, in steps of the scale as it is now.
        """
        return round_codes_ste(self._position(growth, shift), self.low, self.high, self.everywhere)

    @torch.no_grad()
    def beyond(self, growth: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Which positions are beyond the range; see ``forward``."""
        position = self._position(growth, shift)
        return (position < self.low) | (position > self.high)

    def _position(self, growth: Tensor | None, shift: Tensor | None) -> Tensor:
        position = self.start + self.parameter * self.steps
        if growth is not None:
            position = position / growth
        return position if shift is None else position - shift
