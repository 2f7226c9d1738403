"""Several widths of one weight, one of them in use."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import narrower_codes
from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.models.layers.quantizers.weight_quantizer import WeightQuantizer
from mmbitsplit.structures import LayerSolution


class WeightQuantizerSet(nn.Module):
    """Weight quantizers of a layer, by width; answers as the one in use does.

    A narrower width has codes of its own, or those that are made of the widest's
    (``functional.narrower_codes``, by the widest's ``nesting``, leading planes where it says
    nothing), which are not stored; scales, offset and bias are its own. The widest is in use first.

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
            if one.codes is not None and torch.equal(one.codes, self._nested(one.num_bits)):
                one.codes = None
        # Those without codes: theirs are made of the widest's while they are in use.
        self.nested = frozenset(one.num_bits for one in ordered if one.codes is None)
        self.register_load_state_dict_post_hook(_after_loading)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths there are, rising."""
        return tuple(map(int, self.quantizers))

    @property
    def active(self) -> WeightQuantizer:
        """The quantizer in use."""
        return self.quantizers[str(self.num_bits)]

    def use(self, num_bits: int, factor: float | None = None) -> None:
        """Switches to another width; its weight is made here, so that forwards only read.

        Args:
            num_bits: Of ``widths``.
            factor: See ``WeightQuantizer.weight``; as it was when not given.

        Raises:
            ValueError: There is no such width.
        """
        check_width(num_bits, self.widths)
        left = self.active
        factor = left.made_for if factor is None else factor
        if num_bits == self.num_bits and factor == left.made_for:
            return
        room = left.give_room()  # one weight in memory, whatever the number of widths
        self.switch(num_bits)
        self.active.refresh(factor, room)

    def switch(self, num_bits: int) -> None:
        """Switches codes and scales alone; see ``use``, which makes the weight, too."""
        if num_bits != self.num_bits:
            self._take_back(self.active)
            self.num_bits = num_bits
            self.lend()

    def give_back(self) -> None:
        """Forgets what was made of the widest's codes for the width in use: its own codes, where
        they are nested, and the weight. ``refresh`` makes them anew."""
        self.active.give_room()
        if self.num_bits in self.nested and self.active.codes is self._lent:
            self.active.codes = self._lent = None

    def _take_back(self, left: WeightQuantizer) -> None:
        """Forgets codes that were made of the widest's for a width that was in use."""
        if left.num_bits in self.nested:
            if left.codes is self._lent and not left.soft:
                left.codes = None
            else:  # other codes have been learnt
                self.nested -= {left.num_bits}
        self._lent = None

    def lend(self) -> None:
        """Makes codes for the width in use of the widest's, where they are nested."""
        if self.num_bits in self.nested:
            self._lent = self._nested(self.num_bits)
            self.active.codes = self._lent

    def refresh(self, factor: float | None = None) -> None:
        """Makes the weight in use anew, after codes or scales have been written to."""
        if self.num_bits in self.nested and self.active.codes is self._lent:
            self.lend()
        self.active.refresh(factor)

    def keep(self, num_bits: int) -> WeightQuantizer:
        """One width by itself, with codes of its own."""
        self.use(num_bits)
        return self.active

    def solution(self) -> LayerSolution:
        """What the widths stand for now, as a solution of the widest with narrower ones."""
        widest, *narrower = (
            one.solution(self._nested(one.num_bits) if one.codes is None else None)
            for one in reversed(self.quantizers.values()))
        return replace(widest, narrower=tuple(narrower))

    def _nested(self, num_bits: int) -> Tensor:
        """Codes of a width that are made of the widest's."""
        widest = self.quantizers[str(self.widths[-1])]
        return narrower_codes(widest.codes, widest.num_bits, num_bits,
                              widest.nesting or 'planes')

    def weight(self, factor: Tensor | float = 1.0) -> Tensor:
        """The weight of the width in use; see ``WeightQuantizer.weight``."""
        return self.active.weight(factor)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
        lent = self.active.codes is self._lent
        super()._apply(fn, *args, **kwargs)
        if lent:
            self._lent = self.active.codes
        return self

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'quantizers' not in self.__dict__.get('_modules', ()):
                raise
            return getattr(self.active, name)


def _after_loading(quantizers: WeightQuantizerSet, _: Any) -> None:
    """A hook: what was made of codes before another state was loaded is made anew."""
    for one in quantizers.quantizers.values():
        one.hard_weight = None
    quantizers.refresh()
