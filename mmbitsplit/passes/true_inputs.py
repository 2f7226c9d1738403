"""Which inputs of calls inside an owner are true, and not made of what is unknown yet."""

from collections.abc import Iterable

from torch import Tensor

from mmbitsplit.passes.known_outputs import Call
from mmbitsplit.passes.probes import Digest


class TrueInputs:
    """Compares inputs of runs by digests.

    Attributes:
        seen: Of the inputs that the last run took for true.
        mistaken: A layer that got something else later than was taken for true.
    """

    def __init__(self):
        self.seen: dict[Call, Digest] = {}
        self.mistaken: str | None = None
        self._trusted: dict[Call, Digest] = {}  # of all runs before
        self._confirmed: set[Call] = set()

    def note(self, call: Call, digest: Digest) -> None:
        """A run takes an input for true."""
        self.seen[call] = digest
        self.compare(call, digest)

    def trusts(self, call: Call) -> bool:
        """Whether a run before has taken a call's input for true."""
        return call in self._trusted

    def compare(self, call: Call, digest: Digest) -> None:
        """Sees whether an input is what runs before took for true."""
        if call in self._trusted and not self._trusted[call].agrees(digest):
            self.mistaken = self.mistaken or call[0]

    def confirms(self, call: Call, *inputs: Tensor) -> bool:
        """Whether an input is the same with numbers in place of NaN."""
        if not self.seen[call].agrees(Digest.of(*inputs)):
            return False
        self._confirmed.add(call)
        return True

    def begin_confirming(self) -> None:
        """A run with numbers in place of NaN begins."""
        self._confirmed = set()

    def reject_others(self, same_run: bool) -> list[Call]:
        """Takes back what that run has not confirmed; returns these calls.

        Args:
            same_run: It was the same run again, without numbers: nothing may differ.
        """
        rejected = [*(self.seen.keys() - self._confirmed)]
        for call in rejected:
            if same_run:
                self.mistaken = self.mistaken or call[0]
            del self.seen[call]
        return rejected

    def trust(self) -> None:
        """What the last run took for true stands."""
        self._trusted.update(self.seen)

    def renew(self, layers: Iterable[str]) -> None:
        """Inputs of layers are others now: a unit that they are in was solved anew."""
        names = set(layers)
        for digests in (self.seen, self._trusted):
            for call in [call for call in digests if call[0] in names]:
                del digests[call]
