"""Which modules can be reconstruction units, and why others cannot."""

from collections.abc import Mapping, Sequence
from typing import Literal

from mmbitsplit.planning.units.call_tree import CallTree, Place
from mmbitsplit.planning.units.forced import ForcedUnits
from mmbitsplit.structures import OverrideSpec

Granularity = Literal['block', 'stage', 'net']


class Candidates:
    """Says why a module is no unit, in words that follow its name.

    Args:
        tree: The calls.
        max_layers, max_bytes, overrides, counts, granularity: See ``find_units``.
        apart: Layers that stand alone besides those of overrides, with the reason.

    Attributes:
        forced: What overrides say.
    """

    def __init__(self, tree: CallTree, max_layers: int, max_bytes: int,
                 overrides: Sequence[OverrideSpec], counts: Mapping[int, Mapping[str, int]],
                 granularity: Granularity = 'block', apart: Mapping[str, str] | None = None):
        self.tree, self.max_layers, self.max_bytes = tree, max_layers, max_bytes
        self.granularity = granularity
        self._unlike = {name for calls in counts.values() for name in calls
                        if any(other.get(name, 0) != calls[name] for other in counts.values())}
        self._divided: dict[str, str] = {}
        self.forced = ForcedUnits(tree, overrides, self.why_no_function, apart or {})

    def why_not(self, module: str) -> str:
        """Why a module of several layers is not taken as a unit, or nothing."""
        if self.granularity == 'block' or (self.granularity == 'stage'
                                           and not self._is_stage(module)):
            return self._why_no_block(module)
        return self.why_no_function(module) or self.forced.why_not(module) \
            or self._why_too_many_bytes(module)

    def _why_no_block(self, module: str) -> str:
        return self.why_no_function(module) or self.forced.why_not(module) \
            or self._why_too_large(module) or self._why_divided(module)

    def _is_stage(self, module: str) -> bool:
        """Whether a module calls blocks and layers one after another and nothing else."""
        blocks = [name for name in self.tree.parts(module) if len(self.tree.layers(name)) > 1]
        return bool(blocks) and not any(map(self._why_no_block, blocks)) \
            and all(map(self._is_chain, self.tree.places(module)))

    def why_no_function(self, module: str) -> str:
        """Why a module is no function that every image calls alike, or nothing."""
        tree, places, layers = self.tree, self.tree.places(module), self.tree.layers(module)
        if not module:
            return 'is the model itself'
        problem = next((tree.call(place).problem for place in places
                        if tree.call(place).problem), '')
        if problem:
            return problem
        counts = tree.counts(module)
        if len(set(counts)) > 1:
            return f'is called {min(counts)} times in one batch and {max(counts)} times in another'
        unlike = next((name for name in layers if name in self._unlike), None)
        if unlike is not None:
            return f"holds '{unlike}', which some batches call more often than others"
        if any(tree.layers_of(place) != tree.layers_of(places[0]) for place in places):
            return 'does not call the same layers each time'
        elsewhere = next((name for name in layers for inner in tree.places(name)
                          if not any(tree.holds(outer, inner) for outer in places)), None)
        return '' if elsewhere is None else f"holds '{elsewhere}', which is called elsewhere too"

    def fits(self, modules: Sequence[str]) -> bool:
        """Whether modules are small enough to be one unit."""
        return sum(len(self.tree.layers(name)) for name in modules) <= self.max_layers \
            and self.fits_in_memory(modules)

    def fits_in_memory(self, modules: Sequence[str]) -> bool:
        """Whether modules together make few enough bytes in a call to be one unit."""
        return sum(map(self._bytes, modules)) <= self.max_bytes

    def _bytes(self, module: str) -> int:
        return max(self.tree.call(place).num_bytes for place in self.tree.places(module))

    def _why_too_large(self, module: str) -> str:
        size = len(self.tree.layers(module))
        if size > self.max_layers:
            return f'holds {size} layers, more than {self.max_layers}'
        return self._why_too_many_bytes(module)

    def _why_too_many_bytes(self, module: str) -> str:
        num_bytes = self._bytes(module)
        return '' if num_bytes <= self.max_bytes else \
            f'makes {num_bytes / 1e9:.3g} GB of tensors in a call, more than ' \
            f'{self.max_bytes / 1e9:.3g}'

    def _why_divided(self, module: str) -> str:
        """A module that only calls units one after another is left to them."""
        if module not in self._divided:
            inner = next((name for name in self.tree.parts(module)
                          if self._stands_alone(name, module)), None)
            chain = inner is not None and all(map(self._is_chain, self.tree.places(module)))
            self._divided[module] = \
                f"only calls parts one after another, and '{inner}' is a unit" if chain else ''
        return self._divided[module]

    def _stands_alone(self, name: str, module: str) -> bool:
        """Whether a part of a module is a unit of several layers, or holds some."""
        layers = self.tree.layers(name)
        if len(layers) == 1:
            return False
        problem = self._why_no_block(name)
        return problem == self._divided.get(name) if problem \
            else layers != self.tree.layers(module)

    def _is_chain(self, place: Place) -> bool:
        """Whether what a call takes passes through the parts with layers one by one."""
        tree = self.tree
        parts = [child for child in tree.within(place) if tree.layers_of(child)]
        inside = [reader for reader in tree.readers(place, tree.call(place).takes)
                  if reader is not None and tree.holds(place, reader)]
        return all(tree.next_part(one)[1] == other for one, other in zip(parts, parts[1:])) \
            and all(reader != place and (reader.number < parts[0].number
                                         or tree.holds(parts[0], reader)) for reader in inside)
