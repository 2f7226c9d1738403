"""How far the inputs of inner layers are from the float model's, with gradients."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmbitsplit.models import QuantizedLayer
from mmbitsplit.passes.hooks import hooked


@dataclass
class InnerLoss:
    """Squared change of what each layer reads, relative to the spread of the float model's.

    A model that is learned against its outputs alone fits the few numbers that an image has there;
    what its layers read holds it where the float model is. Of a layer that is called several
    times each call counts for itself, since levels of a pyramid differ in size. Mean over calls.

    Args:
        layers: By name.
    """

    layers: Mapping[str, QuantizedLayer]
    wanted: list[tuple[str, Tensor]] = field(default_factory=list)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, the float model runs: what its layers read is kept."""
        self.wanted.clear()
        with self._watched(lambda name, x: self.wanted.append((name, x.detach().clone()))):
            yield

    @contextmanager
    def comparing(self) -> Iterator[list[Tensor]]:
        """Inside, the quantized model runs on the same batch; gives the terms of the loss.

        Raises:
            ValueError: Its layers are called otherwise than in the float model.
        """
        terms: list[Tensor] = []
        rest = iter(self.wanted)

        def compare(name: str, x: Tensor) -> None:
            expected, target = next(rest, ('', x))
            if expected != name or target.shape != x.shape:
                raise ValueError(
                    f"quantization.tuning: layer '{name}' is not called as in the float model, on "
                    'the same batch: a step picks rows by values of layers. Name it as a replay '
                    'point (docs/own_detector.md), or set inner=0.')
            change = (x - target).square().mean()
            if x.requires_grad or bool(change):
                terms.append(change / _variance(target))

        with self._watched(compare):
            yield terms

    def _watched(self, see: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
        def hook_for(name: str) -> Callable[..., None]:
            return lambda module, args: see(name, args[0])
        return hooked(self.layers.items(), hook_for, before=True)


def mean_of(terms: list[Tensor]) -> Tensor:
    """Their mean, float64 on the CPU; 0 where there are none."""
    return torch.stack([term.double().cpu() for term in terms]).mean() if terms \
        else torch.zeros((), dtype=torch.float64)


def _variance(target: Tensor) -> Tensor:
    """About the mean of all; 1 for constants."""
    variance = target.var(correction=0)
    return torch.where(variance > 0, variance, 1.0)
