"""Several widths of one weight, one of them in use."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import narrower_codes
from mmbitsplit.functional.quantizers.weight_codes import prepare_writing
from mmbitsplit.models.layers.quantizers.learning import check_width
from mmbitsplit.models.layers.quantizers.weight_quantizer import WeightQuantizer, is_free
from mmbitsplit.models.layers.quantizers.width_set import WidthSet
from mmbitsplit.structures import LayerSolution


class WeightQuantizerSet(WidthSet):
    """Weight quantizers of a layer, by width; see ``WidthSet``.

    A narrower width has codes of its own, or those that are made of the widest's
    (``functional.narrower_codes``, by the widest's ``nesting``, leading planes where it says
    nothing), which are not stored; scales, offset and bias are its own.

    Args:
        quantizers: Of the same layer, each of another width, the widest with codes.
    """

    def __init__(self, quantizers: Iterable[WeightQuantizer]):
        super().__init__(quantizers, 'weight')
        if self.widest.codes is None:
            raise ValueError('The widest of several widths has no codes; the narrower ones can be '
                             'made of its codes, it cannot be made of theirs.')
        prepare_writing(self.widest.codes.device)
        self._lent: Tensor | None = None  # to the width in use
        *narrower, _ = self.quantizers.values()
        for one in narrower:
            one.hard_weight = None
            if one.codes is not None and torch.equal(one.codes, self._nested(one.num_bits)):
                one.codes = None
        # Those without codes: theirs are made of the widest's while they are in use.
        self.nested = frozenset(one.num_bits for one in narrower if one.codes is None)
        self.register_load_state_dict_post_hook(_after_loading)

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
        if num_bits == self.num_bits:
            left.refresh(factor, room)
            return
        spare = self._take_back(left)
        self.num_bits = num_bits
        self._make(factor, room, spare)

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

    def lend(self) -> None:
        """Makes codes for the width in use of the widest's, where they are nested."""
        if self.num_bits in self.nested:
            self._lent = self._nested(self.num_bits)
            self.active.codes = self._lent

    def _take_back(self, left: WeightQuantizer) -> Tensor | None:
        """Forgets codes that were made of the widest's for a width that was in use.

        Returns:
            Their memory, where nobody else reads it.
        """
        lent, self._lent = self._lent, None
        if left.num_bits not in self.nested:
            return None
        if left.codes is not lent or left.soft:  # other codes have been learnt
            self.nested -= {left.num_bits}
            return None
        left.codes = None
        return lent if is_free(lent, torch.int8) else None

    def _make(self, factor: float | None, room: Tensor | None, spare: Tensor | None = None) -> None:
        """Makes the weight in use, and its codes where they are made of the widest's.

        Args:
            factor, room: See ``WeightQuantizer.refresh``.
            spare: int8, for the codes.
        """
        active, widest = self.active, self.widest
        if self.num_bits not in self.nested:
            active.refresh(factor, room)
            return
        same = spare is not None and spare.shape == widest.codes.shape \
            and spare.device == widest.codes.device
        with torch.inference_mode(False):
            self._lent = active.codes = spare if same else torch.empty_like(widest.codes)
        active.refresh(factor, room, (widest.codes, widest.num_bits - self.num_bits,
                                      widest.nesting or 'planes'))

    def refresh(self, factor: float | None = None) -> None:
        """Makes the weight in use anew, after codes or scales have been written to."""
        if self.num_bits in self.nested and self.active.codes is self._lent:
            self._make(factor, None)
        else:
            self.active.refresh(factor)

    def solution(self) -> LayerSolution:
        """What the widths stand for now, as a solution of the widest with narrower ones."""
        widest, *narrower = (
            one.solution(self._nested(one.num_bits) if one.codes is None else None)
            for one in reversed(self.quantizers.values()))
        return replace(widest, narrower=tuple(narrower))

    def _nested(self, num_bits: int) -> Tensor:
        """Codes of a width that are made of the widest's."""
        widest = self.widest
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


def _after_loading(quantizers: WeightQuantizerSet, _: Any) -> None:
    """A hook: what was made of codes before another state was loaded is made anew."""
    for one in quantizers.quantizers.values():
        one.hard_weight = None
    quantizers.refresh()
