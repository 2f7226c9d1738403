"""What quantizers have in common: tensors that can be learned, and a check of widths."""

from collections.abc import Sequence
from typing import Any

from torch import nn


class Learning(nn.Module):
    """A module some of whose tensors are being learned: asked for one, it says what it is now.

    The tensors themselves stay as they were until ``harden``.
    """

    learning: nn.ModuleDict | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module('learning', None)  # by name of the tensor

    def learned(self) -> dict[str, nn.Parameter]:
        """What an optimizer is to be given, by name of what it moves."""
        return {name: value.parameter for name, value in (self.learning or {}).items()}

    def _learn(self, name: str, value: nn.Module) -> None:
        if self.learning is None:
            self.learning = nn.ModuleDict()
        self.learning[name] = value

    def __getattr__(self, name: str) -> Any:
        learning = self.__dict__.get('_modules', {}).get('learning')
        if learning is not None and name in learning:
            return learning[name]()
        return super().__getattr__(name)


def check_width(num_bits: int, widths: Sequence[int]) -> None:
    """Raises ``ValueError`` for a width that there is not.

    Args:
        num_bits: Asked for.
        widths: Those that there are.
    """
    if num_bits not in widths:
        raise ValueError(f'num_bits={num_bits!r} is none of the widths of this layer; it has '
                         f'{", ".join(map(str, widths))}.')
