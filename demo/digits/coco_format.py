"""Scenes as a COCO ground-truth dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from demo.digits.samples import CLASS_NAMES
from demo.digits.scenes import DigitInstance


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask as a run-length code that JSON can hold.

    Args:
        mask: (height, width) bool.

    Returns:
        ``{'size': [height, width], 'counts': str}``.
    """
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    height, width = (int(value) for value in encoded['size'])
    return {'size': [height, width], 'counts': encoded['counts'].decode('ascii')}


def coco_annotations(instances: Sequence[DigitInstance], image_id: int) -> list[dict[str, Any]]:
    """Writes the digits of one image as COCO annotations.

    Args:
        instances: The digits.
        image_id: COCO id of their image.

    Returns:
        A dictionary a digit, with a category id of digit + 1 and the extra key ``sample_id``; its
        ``id`` counts from 1 within the image and is to be made unique in the data set.
    """
    return [
        {
            'id': number,
            'image_id': image_id,
            'category_id': instance.label + 1,
            'bbox': list(instance.box),
            'area': instance.area,
            'segmentation': encode_mask(instance.mask),
            'iscrowd': 0,
            'sample_id': instance.sample_id,
        }
        for number, instance in enumerate(instances, start=1)
    ]


def coco_dictionary(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], description: str
) -> dict[str, Any]:
    """Joins images and annotations to a COCO ground truth with the ten digit categories.

    Args:
        images: COCO image entries.
        annotations: COCO annotation entries.
        description: One line for the ``info`` entry.

    Returns:
        What ``json.dump`` writes and pycocotools reads.
    """
    return {
        'info': {'description': description},
        'licenses': [],
        'images': list(images),
        'annotations': list(annotations),
        'categories': [
            {'id': label + 1, 'name': name, 'supercategory': 'digit'}
            for label, name in enumerate(CLASS_NAMES)
        ],
    }
