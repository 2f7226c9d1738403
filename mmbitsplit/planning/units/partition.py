"""Divides a model into reconstruction units: modules with one tensor in and one out.

From the outside in, a module is a unit if each of its calls is a function of one floating tensor
that gives one, and it is small enough. A module that only calls others one after another, one of
them a unit of several layers, is left to those: a stage of residual blocks is no unit, the blocks
are. Modules of one layer that are called one after another make one unit. What is left is a unit of
one layer. Larger units, if asked for: a stage of blocks (``'stage'``), or whatever is a function of
one tensor, with what comes after it (``'net'``).
"""

from collections.abc import Mapping, Sequence

from mmbitsplit.models import DataFlow
from mmbitsplit.planning.units.call_tree import CallTree
from mmbitsplit.planning.units.candidates import Candidates, Granularity
from mmbitsplit.planning.units.chains import cut, find_chains
from mmbitsplit.structures import BitPlan, OverrideSpec, Unit

MAX_LAYERS = 8
MAX_BYTES = 2 ** 31  # of tensors that are made in one call, for gradients to pass through


def find_units(flow: DataFlow, plan: BitPlan | Sequence[str], *, max_layers: int = MAX_LAYERS,
               max_bytes: int = MAX_BYTES, overrides: Sequence[OverrideSpec] = (),
               counts: Mapping[int, Mapping[str, int]] | None = None,
               granularity: Granularity = 'block', merge: int = 1) -> tuple[Unit, ...]:
    """Finds the units of a model.

    Args:
        flow: What the watched runs showed.
        plan: Its layers are divided; or names of layers, in execution order.
        max_layers: Most planned layers of a unit; those asked for by overrides may have more.
        max_bytes: Most bytes of tensors that a call may make.
        overrides: Those with ``unit`` say what is to be one, and what is not.
        counts: Calls of layers by batch, as far as known.
        granularity: ``'block'``; ``'stage'`` for modules that call blocks one after another,
            however many layers they hold; ``'net'`` for as much as is a function of one tensor,
            with what is called after it.
        merge: How many units of several layers are joined where the same module calls them one
            after another, nothing else reading between; of a chain of them the last may be fewer.
            Those that overrides ask for stay by themselves, and bytes limit it, layers do not.

    Returns:
        Units in execution order of their first layers; each planned layer stands in one.

    Raises:
        ValueError: An override asks for a unit that cannot be one.
    """
    layers = plan.layers if isinstance(plan, BitPlan) else ()
    planned = [layer.name for layer in layers] if isinstance(plan, BitPlan) else list(plan)
    tree = CallTree(flow.module_calls, planned)
    apart = {layer.name: f"embedding '{layer.codes_of}', whose codes it takes"
             for layer in layers if layer.codes_of}
    if granularity == 'net':
        max_layers = len(planned)
    search = _Search(tree, Candidates(tree, max_layers, max_bytes, overrides, counts or {},
                                      granularity, apart), merge)
    search.descend(None, '')
    search.keep_rest(planned)
    order = {name: place for place, name in enumerate(planned)}
    return tuple(sorted(search.units, key=lambda unit: order[unit.layers[0]]))


class _Search:
    """Goes through the calls from the outside in.

    Args:
        tree: The calls.
        candidates: What can be a unit.
        merge: See ``find_units``.

    Attributes:
        units: Found so far.
    """

    def __init__(self, tree: CallTree, candidates: Candidates, merge: int):
        self.tree, self.candidates, self.merge = tree, candidates, merge
        self.units: list[Unit] = []
        self._done: set[str] = set()

    def descend(self, module: str | None, reason: str) -> None:
        """Divides what a module calls.

        Args:
            module: Its name, ``None`` for the whole run.
            reason: Why it is no unit itself.
        """
        forced: Mapping[str, int] = self.candidates.forced.modules
        small: dict[str, str] = {}  # by layer, since several modules may call the same
        blocks: list[str] = []
        for name in self.tree.parts(module):
            layers = self.tree.layers(name)
            if self._done.issuperset(layers):
                continue
            problem = '' if name in forced else self.candidates.why_not(name)
            joins = len(layers) == 1 or (self.candidates.granularity == 'net' and not problem)
            if joins and name not in forced:
                small.setdefault(layers[0], name)
            elif problem:
                self.descend(name, f"'{name}' {problem}" if name else '')
            else:
                blocks.append(name)
                self._done.update(layers)
        self._add_blocks(blocks)
        for chain in find_chains(list(small.values()), self.tree, self.candidates):
            for piece in cut(chain, self.candidates):
                self._add(tuple(name for link in piece for name in (link.name, *link.tail)),
                          tuple(layer for link in piece for layer in self.tree.layers(link.name)),
                          reason)

    def _add_blocks(self, blocks: Sequence[str]) -> None:
        """Units of several layers, neighbours joined as asked for."""
        for chain in find_chains(blocks, self.tree, self.candidates):
            for first in range(0, len(chain), self.merge):
                piece = chain[first:first + self.merge]
                names = [link.name for link in piece]
                joined = [name for link in piece[:-1] for name in (link.name, *link.tail)]
                groups = [(*joined, names[-1])] if self.candidates.fits_in_memory(names) else \
                    [(name,) for name in names]
                for modules in groups:
                    self._add(modules, tuple(layer for name in modules
                                             for layer in self.tree.layers(name)), '')

    def keep_rest(self, planned: Sequence[str]) -> None:
        """Layers whose calls were not seen are units of their own."""
        for name in planned:
            if name not in self._done:
                self._add((name,), (name,), '')

    def _add(self, modules: tuple[str, ...], layers: tuple[str, ...], reason: str) -> None:
        if len(layers) == 1:
            who = self.candidates.forced.single.get(layers[0])
            self.units.append(Unit(layers[0], layers, layers, reason if who is None
                                   else f'set apart by {who}'))
        else:
            self.units.append(Unit(modules[0], modules, layers))
        self._done.update(layers)
