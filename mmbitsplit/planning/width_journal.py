"""What a measurement of widths keeps, so that one that was killed goes on where it was."""

from collections.abc import Mapping

from mmbitsplit.planning.width_bank import Banked
from mmbitsplit.structures import Widths


class WidthJournal:
    """Keeps nothing; ``calibration.journal.WidthFiles`` keeps it on disk.

    With several processes the first has one, and tells the others.
    """

    def solved(self) -> dict[str, dict[Widths, Banked]]:
        """Returns layers that have been solved, by name."""
        return {}

    def keep_solved(self, name: str, row: Mapping[Widths, Banked]) -> None:
        """Keeps a layer's solutions."""

    def losses(self) -> dict[str, dict[Widths, list[float]]]:
        """Returns losses of layers that have been measured, by name and widths, one a batch."""
        return {}

    def keep_losses(self, name: str, row: Mapping[Widths, list[float]]) -> None:
        """Keeps a layer's losses."""
