"""COCO's average precision taken apart by class and size of the object."""

from collections.abc import Sequence

import numpy as np

SIZES = ('all', 'small', 'medium', 'large')  # COCO's order of area ranges


def precision_by_class(precision: np.ndarray, names: Sequence[str],
                       ) -> dict[str, dict[str, float | None]]:
    """Averages the precision of an evaluation, class by class and size by size.

    Args:
        precision: (thresholds, recalls, classes, areas, detections), -1 where nothing is to be
            found: ``COCOeval.eval['precision']``.
        names: Of the classes, in its order.

    Returns:
        By class and by size the average precision, 0 to 1; ``None`` without an object.
    """
    assert precision.shape[2] == len(names), (precision.shape, len(names))
    rows = {}
    for index, name in enumerate(names):
        most = precision[:, :, index, :, -1]  # most detections an image
        rows[name] = {size: _mean(most[..., area]) for area, size in
                      enumerate(SIZES[:precision.shape[3]])}
    return rows


def _mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None
