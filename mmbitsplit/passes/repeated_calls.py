"""Module calls that must be repeated, because layers inside are called several times.

Such a layer can be solved only when the inputs of all its calls are known, and the later ones
come after outputs that need the solved layer. ``owner_runs`` repeats the smallest module call
around all of them, its owner.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmbitsplit.models import DataFlow
from mmbitsplit.passes.call_counts import Stack, Stacks

RUN = '<run>'  # names as owner the run itself, when no module call is around all calls


@dataclass(frozen=True)
class Owner:
    """A module call that must be repeated.

    Args:
        layers: Names of the planned layers called inside it.
        readers: For each of them whose output only layers among them read: those layers.
    """

    layers: frozenset[str]
    readers: dict[str, frozenset[str]]


def find_owners(flow: DataFlow, planned: set[str], patterns: Sequence[Stacks] = (),
                ) -> dict[str, Owner]:
    """Finds the module calls that must be repeated.

    Args:
        flow: What was seen of the model.
        planned: Names of the layers that are quantized.
        patterns: Ways in which batches call layers, where they differ.

    Returns:
        By owner's module name (or ``RUN``). Owners of a batch do not overlap.
    """
    owners: dict[str, set[str]] = {}
    paths: set[tuple[str, ...]] = set()
    for stacks in patterns or [flow.stacks]:
        for call in _outermost(stacks, planned):
            paths.add(tuple(name for name, _ in call))
            inside = {name for name in planned
                      if any(stack[:len(call)] == call for stack in stacks.get(name, ()))}
            owners.setdefault(call[-1][0] if call else RUN, set()).update(inside)
    if len(patterns) > 1:  # what a batch repeats, another may call within something larger
        for path in paths:
            owners[path[-1] if path else RUN].update(
                name for stacks in patterns for name in planned for stack in stacks.get(name, ())
                if tuple(part for part, _ in stack[:len(path)]) == path)
    return {name: Owner(frozenset(inside), _readers(name, inside, flow))
            for name, inside in owners.items()}


def _outermost(stacks: Stacks, planned: set[str]) -> list[Stack]:
    """Module calls around all calls of a layer that is called more than once."""
    calls = set()
    for name in planned:
        own = stacks.get(name, [])
        if len(own) > 1:
            shared = 0
            while all(len(stack) > shared and stack[shared] == own[0][shared] for stack in own):
                shared += 1
            calls.add(own[0][:shared])
    return [call for call in calls
            if not any(other != call and call[:len(other)] == other for other in calls)]


def _readers(owner: str, inside: set[str], flow: DataFlow) -> dict[str, frozenset[str]]:
    # What the whole run returns was not seen, only what the model's call did.
    return {} if owner == RUN else {
        name: frozenset(flow.feeds[name]) for name in inside
        if flow.feeds.get(name) and flow.feeds[name] <= inside
        and name not in flow.deciding and name not in flow.returned.get(owner, inside)}
