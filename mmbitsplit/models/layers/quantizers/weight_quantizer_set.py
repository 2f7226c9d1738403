"""Several widths of one weight, one of them in use."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmbitsplit.functional import leading_planes
from mmbitsplit.models.layers.quantizers.weight_quantizer import WeightQuantizer
from mmbitsplit.structures import LayerSolution


class WeightQuantizerSet(nn.Module):
    """Weight quantizers of a layer, by width; answers as the one in use does.

    A narrower width has codes of its own, or those that the leading bit planes of the widest make,
    which are not stored; scales, offset and bias are its own. The widest is in use first.

    Args:
        quantizers: Of the same layer, each of another width, the widest with codes.
    """

    def __init__(self, quantizers: Iterable[WeightQuantizer]):
        super().__init__()
        ordered = sorted(quantizers, key=lambda quantizer: quantizer.num_bits)
        self.quantizers = nn.ModuleDict({str(one.num_bits): one for one in ordered})
        if len(self.quantizers) < len(ordered):
            raise ValueError(f'widths {[one.num_bits for one in ordered]} hold one twice; give '
                             'each width once.')
        if not ordered or ordered[-1].codes is None:
            raise ValueError('The widest of several widths has no codes; the narrower ones can be '
                             'made of its codes, it cannot be made of theirs.')
        self.num_bits = ordered[-1].num_bits
        self._lent: Tensor | None = None  # to the width in use
        for one in ordered[:-1]:
            one.hard_weight = None
            if one.codes is not None and torch.equal(one.codes, self._leading(one.num_bits)):
                one.codes = None
        # Those without codes: theirs are made of the widest's while they are in use.
        self.nested = frozenset(one.num_bits for one in ordered if one.codes is None)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are, rising."""
        return tuple(map(int, self.quantizers))

    @property
    def active(self) -> WeightQuantizer:
        """The quantizer in use."""
        return self.quantizers[str(self.num_bits)]

    def use(self, num_bits: int) -> None:
        """Switches to another width.

        Raises:
            ValueError: There is no such width.
        """
        if num_bits not in self.widths:
            raise ValueError(f'num_bits={num_bits!r} is none of the widths of this layer; it has '
                             f'{", ".join(map(str, self.widths))}.')
        if num_bits == self.num_bits:
            return
        left = self.active
        left.hard_weight = None  # one weight in memory, whatever the number of widths
        if left.num_bits in self.nested:
            if left.codes is self._lent and not left.soft:
                left.codes = None
            else:  # other codes have been learnt
                self.nested -= {left.num_bits}
        self.num_bits, self._lent = num_bits, None
        if num_bits in self.nested:
            self._lent = self._leading(num_bits)
            self.active.codes = self._lent
        self.active.refresh()

    def keep(self, num_bits: int) -> WeightQuantizer:
        """One width by itself, with codes of its own."""
        self.use(num_bits)
        return self.active

    def solution(self) -> LayerSolution:
        """What the widths stand for now, as a solution of the widest with narrower ones."""
        widest, *narrower = (
            one.solution(self._leading(one.num_bits) if one.codes is None else None)
            for one in reversed(self.quantizers.values()))
        return replace(widest, narrower=tuple(narrower))

    def _leading(self, num_bits: int) -> Tensor:
        """Codes of a width that the widest's leading planes make."""
        widest = self.quantizers[str(self.widths[-1])]
        return leading_planes(widest.codes, widest.num_bits, num_bits)

    def weight(self) -> Tensor:
        """The weight of the width in use."""
        return self.active.weight()

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'quantizers' not in self.__dict__.get('_modules', ()):
                raise
            return getattr(self.active, name)
