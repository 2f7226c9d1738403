"""What two detectors find on one image: which of it both find, and how much differs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEAST_SCORE = 0.3  # detections below it are neither drawn nor compared
SAME_IOU = 0.5


@dataclass(frozen=True)
class Detections:
    """Detections of one image, those of the highest scores first; plain values, for JSON.

    Args:
        boxes: x1, y1, x2, y2 in pixels of the original image.
        scores: 0 to 1.
        labels: Numbers of classes.
        masks: One in COCO's run-length form a box, ``counts`` as text; ``None`` without.
    """

    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    masks: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'Detections':
        """Inverse of ``to_dict``."""
        return cls(**values)


def match_detections(ours: Detections, theirs: Detections) -> list[tuple[int, int, float]]:
    """Pairs detections of the same class that lie on the same thing.

    Pairs of the largest overlap first, each detection once, an intersection over union of
    ``SAME_IOU`` at least; of the masks where both have them, else of the boxes.

    Returns:
        (index in ours, index in theirs, intersection over union) a pair.
    """
    if not ours.labels or not theirs.labels:
        return []
    iou = _iou(ours, theirs)
    iou[np.not_equal.outer(np.array(ours.labels), np.array(theirs.labels))] = 0
    pairs = []
    for index in np.argsort(-iou, axis=None, kind='stable'):
        left, right = (int(part) for part in np.unravel_index(index, iou.shape))
        if left in (i for i, _, _ in pairs) or right in (j for _, j, _ in pairs):
            continue
        if iou[left, right] < SAME_IOU:
            break
        pairs.append((left, right, float(iou[left, right])))
    return pairs


def change(ours: Detections, theirs: Detections) -> float:
    """Says how much two models differ on an image; 0 for equal detections, symmetric.

    A detection that only one model makes counts with its score. One of both counts with the
    squares of what its scores differ by and of what its overlap lacks to 1, the latter times
    the smaller score: many small differences are not what an eye sees.
    """
    pairs = match_detections(ours, theirs)
    left, right = (set(range(len(side.labels))) for side in (ours, theirs))
    total = 0.0
    for i, j, overlap in pairs:
        scores = ours.scores[i], theirs.scores[j]
        total += (scores[0] - scores[1]) ** 2 + (1 - overlap) ** 2 * min(scores)
    total += sum(ours.scores[i] for i in left - {i for i, _, _ in pairs})
    return total + sum(theirs.scores[j] for j in right - {j for _, j, _ in pairs})


def unmatched(ours: Detections, theirs: Detections) -> tuple[set[int], set[int]]:
    """Returns the indices of detections that only one of the two models makes."""
    pairs = match_detections(ours, theirs)
    return (set(range(len(ours.labels))) - {i for i, _, _ in pairs},
            set(range(len(theirs.labels))) - {j for _, j, _ in pairs})


def _iou(ours: Detections, theirs: Detections) -> np.ndarray:
    """Intersection over union of every pair, (len(ours), len(theirs))."""
    from pycocotools import mask  # comes with mmdet

    if ours.masks is not None and theirs.masks is not None:
        sides = [[{**rle, 'counts': rle['counts'].encode()} for rle in side.masks]
                 for side in (ours, theirs)]
    else:
        corners = [np.array(side.boxes, dtype=float) for side in (ours, theirs)]
        sides = [np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], 1) for box in corners]
    return np.array(mask.iou(*sides, [0] * len(theirs.labels)))

