"""What sets of quantizers of one place have in common, of weights or of activations."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from mmbitsplit.models.layers.quantizers.learning import check_width


class WidthSet(nn.Module):
    """Quantizers of one place, by width; answers as the one in use does, first the widest.

    Args:
        quantizers: Each of another width.
        kind: Of the widths, for messages.

    Raises:
        ValueError: A width is there twice, or there is none.
    """

    widths: tuple[int, ...]  # those there are, rising
    num_bits: int  # the one in use

    def __init__(self, quantizers: Iterable[Any], kind: str):
        super().__init__()
        ordered = sorted(quantizers, key=lambda quantizer: quantizer.num_bits)
        self.widths = tuple(one.num_bits for one in ordered)
        if len(set(self.widths)) < max(1, len(ordered)):
            raise ValueError(f'{kind} widths {list(self.widths)} hold one twice, or none; give '
                             'each width once.')
        self.quantizers = nn.ModuleDict({str(one.num_bits): one for one in ordered})
        self.num_bits = self.widths[-1]

    @property
    def active(self) -> Any:
        """The quantizer in use."""
        return self._modules['quantizers']._modules[str(self.num_bits)]

    @property
    def widest(self) -> Any:
        """The quantizer of the widest width."""
        return self._modules['quantizers']._modules[str(self.widths[-1])]

    def use(self, num_bits: int) -> None:
        """Switches to another width.

        Raises:
            ValueError: There is no such width.
        """
        check_width(num_bits, self.widths)
        self.num_bits = num_bits

    def keep(self, num_bits: int) -> Any:
        """One width by itself."""
        self.use(num_bits)
        return self.active

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'quantizers' not in self.__dict__.get('_modules', ()):
                raise
            return getattr(self.active, name)
