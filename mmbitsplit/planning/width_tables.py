"""From losses of the base model with one layer at other widths to sensitivities."""

from collections.abc import Mapping

from mmbitsplit.structures import Widths, WidthTable

LEAST = 1e-6  # of a sensitivity, in parts of the largest in the table


def sensitivities(losses: WidthTable, base: Mapping[str, Widths], monotone: bool = False,
                  ) -> WidthTable:
    """Losses less those of the base model; see ``WidthSensitivity.measure``.

    Args:
        losses: By layer and widths.
        base: Widths of the base model.
        monotone: Whether a width loses at least what more bits lose.
    """
    risen = {name: {widths: loss - row[base[name]] for widths, loss in row.items()}
             for name, row in losses.layers.items()}
    least = LEAST * max([abs(value) for row in risen.values() for value in row.values()],
                        default=0.0)
    return WidthTable({name: {
        widths: 0.0 if widths == base[name] else max(least, *(
            row[other] for other in row if other == widths or monotone and covers(other, widths)))
        for widths in row} for name, row in risen.items()})


def noise_in(losses: WidthTable, base: Mapping[str, Widths]) -> dict[str, list[Widths]]:
    """Widths at which layers lose more than at some with fewer bits, by layer."""
    found = {name: [widths for widths in row if any(
        loss < row[widths] for other, loss in row.items()
        if other != widths and covers(widths, other))] for name, row in losses.layers.items()}
    return {name: row for name, row in found.items() if row}


def covers(one: Widths, other: Widths) -> bool:
    """Whether it has at least the bits of another, of both kinds."""
    return one.weight >= other.weight and (one.activation or 0) >= (other.activation or 0)
