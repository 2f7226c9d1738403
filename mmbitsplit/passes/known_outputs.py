"""What calls inside an owner have given, as long as something may ask for it again."""

from collections.abc import Iterable, Mapping

from torch import Tensor

Call = tuple[str, int]  # a layer's name, and which of its calls


class KnownOutputs:
    """Outputs by call; an output is forgotten when all that read it have outputs of their own.

    Args:
        readers: See ``repeated_calls.Owner``.
        counts: Calls of each layer.

    Attributes:
        forgotten: Layers whose outputs have been dropped.
        unsettled: Layers whose codes may still change: those of units that are not solved yet.
    """

    def __init__(self, readers: Mapping[str, frozenset[str]], counts: Mapping[str, int]):
        self._readers, self._counts = readers, counts
        self._outputs: dict[Call, Tensor] = {}
        self._answered: dict[str, int] = {}  # calls whose output was computed
        self._forgets = True
        self.forgotten: set[str] = set()
        self.unsettled: set[str] = set()

    def __iter__(self):
        return iter(self._outputs)

    def get(self, call: Call) -> Tensor | None:
        """An output, if it is known."""
        return self._outputs.get(call)

    def take(self, call: Call) -> Tensor | None:
        """An output that nobody will ask for again."""
        return self._outputs.pop(call, None)

    def keep(self, call: Call, output: Tensor) -> None:
        """Notes what a call has given."""
        self._outputs[call] = output
        if self._forgets:
            self._answered[call[0]] = self._answered.get(call[0], 0) + 1

    def drop(self, call: Call) -> None:
        """Takes back what was computed from an input that was not true."""
        if self._outputs.pop(call, None) is not None and call[0] in self._answered:
            self._answered[call[0]] -= 1

    def forget(self) -> None:
        """Drops outputs whose readers all have outputs."""
        done = {name for name, count in self._answered.items() if count == self._counts[name]}
        for name, readers in self._readers.items():
            if self._forgets and name in done and name not in self.forgotten \
                    and readers <= done - self.unsettled:
                self.forgotten.add(name)
                self._drop_all(name)

    def remember_all(self) -> None:
        """Forgets no more: something reads outputs that was not seen."""
        self.forgotten.clear()
        self._forgets = False

    def renew(self, layers: Iterable[str]) -> None:
        """Layers have other codes now."""
        for name in layers:
            self._drop_all(name)
            self._answered.pop(name, None)
            self.forgotten.discard(name)

    def _drop_all(self, name: str) -> None:
        for index in range(self._counts[name]):
            self._outputs.pop((name, index), None)
