"""Which steps of OpenMMLab models depend on the data in jumps, told by method name.

mmdet's heads decode and select boxes in ``predict_by_feat``: dense heads, region proposals and
box heads return boxes, whose replay keeps RoI features aligned row by row; mask heads paste
masks into images, and panoptic heads lay those over each other, which no layer comes after.
Two-stage transformers pick the best positions of their encoder in ``pre_decoder``, which holds
layers: which positions is replayed, what is there is not. So is which level of a pyramid serves a
box that the stage before has refined (Cascade R-CNN, Sparse R-CNN).
"""

import sys
from typing import Any

from torch import nn

from mmbitsplit.calibration import ReplayPoint


def replay_points(model: nn.Module) -> list[ReplayPoint]:
    """Lists the replay points of a model of mmdet; mmpretrain classifiers have none.

    Args:
        model: A model as its registry builds it.
    """
    points = []
    for module in model.modules():
        if callable(getattr(module, 'predict_by_feat', None)):
            pastes = hasattr(module, '_predict_by_feat_single') and hasattr(module, 'conv_logits')
            points.append(ReplayPoint(module, 'predict_by_feat',
                                      instead=_without_masks if pastes else None))
        if callable(getattr(module, '_lay_masks', None)):
            points.append(ReplayPoint(module, 'predict', instead=_nothing_fused))
        for method in _selecting_methods(module):
            points.append(ReplayPoint(module, method, indices_only=True))
            # Suppression of overlapping boxes is compiled, its decisions are seen by nobody.
            space = sys.modules[getattr(type(module), method).__module__]
            if callable(getattr(space, 'batched_nms', None)):
                points.append(ReplayPoint(space, 'batched_nms'))
    return points


def _selecting_methods(module: nn.Module) -> list[str]:
    """Names methods that pick rows by scores and hold layers, or masks that layers follow."""
    methods = []
    if getattr(module, 'as_two_stage', False) and callable(getattr(module, 'pre_decoder', None)):
        methods.append('pre_decoder')  # Deformable DETR, DINO, Grounding DINO, DDQ
    if callable(getattr(module, 'select_distinct_queries', None)):
        methods.append('select_distinct_queries')  # the decoder of DDQ
    if callable(getattr(module, 'map_roi_levels', None)):
        methods.append('map_roi_levels')  # which map a box refined by the stage before is cut from
    return methods


def _without_masks(mask_preds: Any, results_list: list, *args: Any, **kwargs: Any) -> list:
    return results_list


def _nothing_fused(mask_results_list: list, seg_preds_list: Any, **kwargs: Any) -> list:
    return []
