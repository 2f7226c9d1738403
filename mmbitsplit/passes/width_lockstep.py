"""The quantized pass for models of several widths: each batch runs once at each of them.

What a layer is given depends on the width of the layers before it. So a batch has several
*prefixes*, each a forward in which the solved layers have one width of weights and inputs; all of
them sleep side by side where they reach an unsolved layer, and the layer is solved for all widths
at once. Float targets are the same for all.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmbitsplit.models import PreparedModel, QuantizedLayer
from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.layers.streams import use_stream
from mmbitsplit.models.surgery.modules import get_module
from mmbitsplit.passes.branches import current_branch
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.passes.forward_state import ForwardState
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.lockstep import Lockstep, Worker
from mmbitsplit.passes.repeated_calls import Owner
from mmbitsplit.passes.replay import ReplayPoint, Tape, patched


@dataclass(frozen=True)
class Prefix:
    """Widths of the layers before the one that is solved.

    Args:
        weight: Of their weights.
        input: Of their inputs, ``None`` for float ones.
    """

    weight: int
    input: int | None


@dataclass
class PrefixTape(Tape):
    """A tape that the forwards of a batch at several widths each read from its beginning."""

    places: dict[tuple[int, int], int] = field(default_factory=dict)

    def _turn_to(self, batch: int) -> tuple[int, int]:
        """Goes to where the running forward has read to."""
        key = batch, getattr(current_branch(), 'number', 0)
        self.positions[batch] = self.places.get(key, 0)
        return key

    def next(self, batch: int) -> Any:
        """See ``Tape``."""
        key = self._turn_to(batch)
        result = super().next(batch)
        self.places[key] = self.positions[batch]
        return result

    def behind(self, batch: int) -> bool:
        """See ``Tape``."""
        self._turn_to(batch)
        return super().behind(batch)

    def bookmark(self, batch: int) -> Callable[[], None]:
        """See ``Tape``."""
        key = self._turn_to(batch)
        position = self.places.get(key, 0)
        return lambda: self.places.update({key: position})


class WidthLockstep(Lockstep):
    """Drives the quantized pass at several widths.

    Args:
        prepared, forwards, counts, owners, sampler: See ``Lockstep``.
        tape: Results that are replayed, as the float pass has recorded them.
        solve: Given the name and, by (batch, number of the prefix), what was captured.
        prefixes: Widths at which each batch runs.
    """

    def __init__(self, prepared: PreparedModel, forwards: Forwards,
                 counts: Mapping[int, dict[str, int]], owners: dict[str, Owner], sampler: Sampler,
                 tape: Tape, solve: Callable[[str, dict[Any, list[Any]]], None],
                 prefixes: Sequence[Prefix]):
        super().__init__(prepared, forwards, counts, owners, sampler, PrefixTape(tape.results),
                         solve)
        self.prefixes = tuple(prefixes)

    def _make_workers(self) -> list[Worker]:
        # Those of one prefix wake one after another: layers are switched as seldom as can be.
        return [PrefixWorker(batch, number, self._work, self.state)
                for number in range(len(self.prefixes)) for batch in self.forwards.batches]

    def _layer_forward(self, name: str) -> Callable:
        return _switching(super()._layer_forward(name), lambda: self._switch(name))

    def _product_forward(self, name: str) -> Callable:
        return _switching(super()._product_forward(name), lambda: self._switch(name))

    def _intercept(self, stack: ExitStack) -> None:
        super()._intercept(stack)
        for module in switched_streams(self.prepared):
            stack.enter_context(patched([ReplayPoint(module, 'forward')], partial(
                _switching_afterwards, switch=partial(self._switch_stream, module))))

    def _switch(self, name: str) -> None:
        """Gives a solved layer the widths of the forward that is running."""
        site = self.sites[name]
        if site.quantized:
            use_prefix(site, self.prefixes[current_branch().number])

    def _switch_stream(self, module: nn.Module) -> None:
        """Gives a residual stream the width of the forward that is running."""
        bits = self.prefixes[current_branch().number].input
        if bits is not None:
            use_stream(module, bits)


def switched_streams(prepared: PreparedModel) -> list[nn.Module]:
    """Modules that give residual streams of several widths; layers that do are left out."""
    return [get_module(prepared.model, stream.name) for stream in prepared.plan.streams
            if stream.widths and not stream.on_layer]


def use_everywhere(prepared: PreparedModel, prefix: Prefix) -> None:
    """Switches all layers, products and residual streams to a prefix's widths; see
    ``use_prefix``."""
    for site in prepared.sites.values():
        use_prefix(site, prefix)
    for module in switched_streams(prepared):
        if prefix.input is not None:
            use_stream(module, prefix.input)


def use_prefix(site: QuantizedLayer | Product, prefix: Prefix) -> None:
    """Switches a layer or product to a prefix's widths, where it has several; others stay as they
    are."""
    if isinstance(site, Product):
        site.use(**{side: prefix.input for side, quantizer in site.quantizers().items()
                    if quantizer is not None and len(quantizer.widths) > 1})
        return
    weights, inputs, outputs = (site.weight_quantizer, site.input_quantizer,
                                site.output_quantizer)
    if outputs is not None and len(outputs.widths) > 1:
        outputs.use(prefix.input)
    if len(weights.widths) > 1 and weights.num_bits != prefix.weight:
        site.use(weight=prefix.weight)
    if inputs is not None and len(inputs.widths) > 1 and inputs.num_bits != prefix.input:
        site.use(input=prefix.input)


def _switching(wrap: Callable[[Callable], Callable], switch: Callable[[], None]) -> Callable:
    """Calls ``switch`` whenever what is wrapped calls the layer's own forward."""
    def around(forward: Callable) -> Callable:
        def switched(*inputs: Tensor, **options: Any) -> Tensor:
            switch()
            return forward(*inputs, **options)
        return wrap(switched)
    return around


def _switching_afterwards(forward: Callable, switch: Callable[[], None]) -> Callable:
    """Calls ``switch`` when a module has computed what its hook is to round."""
    def switched(*inputs: Any, **options: Any) -> Any:
        output = forward(*inputs, **options)
        switch()
        return output
    return switched


class PrefixWorker(Worker):
    """One batch on its way at one prefix's widths.

    Args:
        batch, work, state: See ``Branch``.
        number: Of the prefix.
    """

    def __init__(self, batch: int, number: int, work: Callable[[Worker], None],
                 state: ForwardState):
        super().__init__(batch, work, state)
        self.number = number

    @property
    def key(self) -> tuple[int, int]:
        """Batch and prefix."""
        return self.batch, self.number
