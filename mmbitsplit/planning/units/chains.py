"""Modules that are called one after another, nothing else reading between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmbitsplit.planning.units.call_tree import CallTree
from mmbitsplit.planning.units.candidates import Candidates


@dataclass(frozen=True)
class Link:
    """A module in a chain.

    Args:
        name: It holds planned layers: one, unless units are as large as can be.
        tail: Modules without planned layers that are called after it, in order.
        after: The next module with one, ``None`` at the end of a chain.
    """

    name: str
    tail: tuple[str, ...]
    after: str | None


def find_chains(modules: Sequence[str], tree: CallTree, candidates: Candidates,
                ) -> list[list[Link]]:
    """Joins modules that are called by the same module.

    Args:
        modules: In the order of their first calls.
        tree: The calls.
        candidates: Says which can be part of a unit.

    Returns:
        Each module in one chain; one that has no neighbour is a chain of its own.
    """
    links = {name: _link(name, modules, tree, candidates) for name in modules}
    joined = {link.after for link in links.values()}
    chains, done = [], set()
    for name in [*(name for name in modules if name not in joined), *modules]:
        chain = []
        while name is not None and name not in done:
            done.add(name)
            chain.append(links[name])
            name = links[name].after
        if chain:
            chains.append(chain)
    return chains


def cut(chain: Sequence[Link], candidates: Candidates) -> list[list[Link]]:
    """Cuts a chain in as few pieces as are small enough, as equal as can be."""
    for number in range(1, len(chain)):
        ends = [len(chain) * piece // number for piece in range(number + 1)]
        pieces = [list(chain[start:end]) for start, end in zip(ends, ends[1:])]
        if all(candidates.fits([link.name for link in piece]) for piece in pieces):
            return pieces
    return [[link] for link in chain]


def _link(name: str, modules: Sequence[str], tree: CallTree, candidates: Candidates) -> Link:
    if not _joins(name, tree, candidates):
        return Link(name, (), None)
    found = {(tuple(tree.call(between).name for between in tail),
              None if after is None else tree.call(after).name)
             for tail, after in map(tree.next_part, tree.places(name))}
    if len(found) > 1:  # what comes after is not the same for all calls
        return Link(name, (), None)
    tail, after = found.pop()
    joined = after in modules and _joins(after, tree, candidates) \
        and len(tree.places(after)) == len(tree.places(name))
    return Link(name, tail, after if joined else None)


def _joins(name: str, tree: CallTree, candidates: Candidates) -> bool:
    """Whether a module may be in a unit with others."""
    return not candidates.why_no_function(name) and name not in candidates.forced.modules \
        and not any(layer in candidates.forced.single for layer in tree.layers(name))
