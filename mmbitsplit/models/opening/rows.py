"""What is known of the calls that a module's own forward makes, in plain values.

A *row* says what one call becomes, a *child* what is put into the module for it. Both are dicts of
plain values, so that a checkpoint can hold them:

row ``{'function', 'kind', ...}`` by kind:
    ``'pass'``        stays as it is
    ``'product'``     ``child``
    ``'linear'``      ``child``, ``side`` of the weight (``'a'``, ``'b'``), ``added`` bias
    ``'convolution'`` ``child``, ``added`` bias
    ``'attention'``   ``qk``, ``av``
    ``'multi_head'``  ``projections``, ``out``, ``qk``, ``av``

child ``{'make', ...}``:
    ``'product'``     ``softmax``
    ``'linear'``      ``weight``, ``bias``: views of the module's parameters, see ``View``
    ``'conv2d'``      and ``options``
    ``'called'``      nothing: a layer that the module has and never called
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

Row = dict[str, Any]


@dataclass(frozen=True)
class View:
    """Which part of a module's own parameter a tensor is.

    Args:
        parameter: Its name on the module.
        size, stride, offset: Of the view, the offset from the parameter's own.
    """

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, name: str, parameter: Tensor, view: Tensor) -> 'View':
        """Describes a view of a parameter."""
        return cls(name, tuple(view.shape), tuple(view.stride()),
                   view.storage_offset() - parameter.storage_offset())

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> 'View':
        """The one that ``row`` gave, also after JSON."""
        return cls(row['parameter'], tuple(row['size']), tuple(row['stride']), row['offset'])

    def row(self) -> dict[str, Any]:
        """In plain values."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self).items()}

    def rows(self, start: int, stop: int) -> 'View':
        """A slice of its first dimension."""
        return View(self.parameter, (stop - start, *self.size[1:]), self.stride,
                    self.offset + start * self.stride[0])

    def look(self, parameter: Tensor) -> Tensor:
        """The view of another tensor that is laid out alike."""
        return parameter.as_strided(self.size, self.stride,
                                    parameter.storage_offset() + self.offset)


def parameter_of(module: nn.Module, view: View) -> nn.Parameter:
    """The parameter that a view is of.

    Raises:
        ValueError: The module has none such, or one of another size.
    """
    parameter = module._parameters.get(view.parameter)
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.size, view.stride))
    if parameter is None or last >= parameter.numel():
        raise ValueError(f"it has no parameter '{view.parameter}' of that size")
    return parameter
