"""What two classifiers say of the same images: accuracy by class, and where they differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOP = 3  # answers of an image that are kept


@dataclass(frozen=True)
class Answer:
    """A classifier's answer to one image; plain values, for JSON.

    Args:
        labels: Numbers of the likeliest classes, the first one first, ``TOP`` at most.
        scores: Their scores, 0 to 1.
        truth: Number of the true class, ``None`` where nobody knows.
    """

    labels: list[int]
    scores: list[float]
    truth: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'Answer':
        """Inverse of ``to_dict``."""
        return cls(**values)


def change(ours: Answer, theirs: Answer) -> tuple[bool, float]:
    """Says how much two classifiers differ on an image; what sorts higher differs more.

    Returns:
        Whether the first labels differ, and half the sum of the differences of all kept scores
        (0 for equal answers, 1 where what is kept has nothing in common).
    """
    left, right = (dict(zip(side.labels, side.scores)) for side in (ours, theirs))
    total = sum(abs(left.get(label, 0.0) - right.get(label, 0.0)) for label in left | right)
    return ours.labels[:1] != theirs.labels[:1], total / 2


def accuracy_by_class(answers: Sequence[Answer]) -> dict[int, tuple[float, int]]:
    """Returns, by number of the class, the part of its images told right and their number."""
    counts: dict[int, list[int]] = {}
    for answer in answers:
        if answer.truth is not None and answer.labels:
            count = counts.setdefault(answer.truth, [0, 0])
            count[0] += answer.labels[0] == answer.truth
            count[1] += 1
    return {label: (right / total, total) for label, (right, total) in sorted(counts.items())}
