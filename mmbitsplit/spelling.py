"""What a misspelled name may have meant: the one place that looks for names that are alike."""

import difflib
from collections.abc import Iterable


def close_names(name: str, known: Iterable[str], *, most: int = 1, alike: float = 0.6) -> list[str]:
    """Returns the known names that are spelled like ``name``, the nearest first.

    Args:
        name: What the user wrote.
        known: What is allowed.
        most: How many at most.
        alike: Least likeness, 1 for the same.
    """
    return difflib.get_close_matches(str(name), list(map(str, known)), n=most, cutoff=alike)


def did_you_mean(name: str, known: Iterable[str], *, alike: float = 0.6) -> str:
    """Returns ``"did you mean 'x'?"``, nothing where no known name is near."""
    close = close_names(name, known, alike=alike)
    return f"did you mean '{close[0]}'?" if close else ''


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a half sentence that names the known spelling nearest to ``name``.

    Args:
        name: What the user wrote.
        known: What is allowed.

    Returns:
        ``"did you mean 'x'? Allowed: ..."``, or only the allowed names when nothing is near.
    """
    known = sorted(map(str, known))
    hint = did_you_mean(name, known, alike=0.5)
    return f'{hint} Allowed: {", ".join(known)}'.lstrip()
