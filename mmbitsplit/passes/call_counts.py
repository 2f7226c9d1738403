"""Which layers each batch calls, how often, and inside of which module calls."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

Stack = tuple[tuple[str, int], ...]  # module calls from the outside in: (name, which of its calls)
Stacks = dict[str, list[Stack]]  # by layer, one a call


@dataclass
class CallCounts:
    """What batches call; batches may differ in it.

    Args:
        counts: By batch, calls by layer name.
        patterns: The different ways of calling layers that batches have.
    """

    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    patterns: list[Stacks] = field(default_factory=list)

    @contextmanager
    def of(self, batch: int, model: nn.Module, layers: Collection[str]) -> Iterator[None]:
        """Counts calls of layers while the model runs on a batch.

        Args:
            batch: Its number.
            model: The model.
            layers: Names of the layers.
        """
        stack: list[tuple[str, int]] = []
        calls: dict[str, int] = {}
        found: Stacks = {}

        def enter(name: str):
            def hook(module, args):
                if name in layers:
                    found.setdefault(name, []).append(tuple(stack))
                calls[name] = calls.get(name, 0) + 1
                stack.append((name, calls[name]))
            return hook

        def leave(module, args, output):
            stack.pop()

        handles = []
        for name, module in model.named_modules():
            if name in layers or any(True for _ in module.children()):
                handles += [module.register_forward_pre_hook(enter(name)),
                            module.register_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.counts[batch] = {name: len(stacks) for name, stacks in found.items()}
        if found not in self.patterns:
            self.patterns.append(found)


def totals(counts: Mapping[int, Mapping[str, int]], layers: Collection[str]) -> dict[str, int]:
    """Returns the number of calls in all batches, of layers that batches call differently.

    Args:
        counts: Of all batches, calls by layer name.
        layers: Names to look at.
    """
    calls = {name: [batch.get(name, 0) for batch in counts.values()] for name in layers}
    return {name: sum(own) for name, own in calls.items() if len(set(own)) > 1}


def reached_by(counts: Mapping[int, Mapping[str, int]], layers: Collection[str],
               ) -> dict[str, list[int]]:
    """Returns the numbers of the batches that call a layer, of layers that not all of them call.

    Args:
        counts: Of all batches, calls by layer name.
        layers: Names to look at.
    """
    reached = {name: [batch for batch in sorted(counts) if counts[batch].get(name)]
               for name in layers}
    return {name: own for name, own in reached.items() if len(own) < len(counts)}


def batches_to_watch(counts: Mapping[int, Mapping[str, int]], known: Mapping[str, int],
                     layers: Collection[str]) -> list[int]:
    """Chooses batches that call a layer more often than was seen, those that do most for each.

    Args:
        counts: Of all batches, calls by layer name.
        known: Most calls in a batch that was watched.
        layers: Names that matter.
    """
    chosen: list[int] = []
    for name in layers:
        most = max((calls.get(name, 0) for calls in counts.values()), default=0)
        seen = max([known.get(name, 0), *(counts[batch].get(name, 0) for batch in chosen)])
        if most > seen:
            chosen.append(min(batch for batch, calls in counts.items()
                              if calls.get(name, 0) == most))
    return sorted(chosen)
