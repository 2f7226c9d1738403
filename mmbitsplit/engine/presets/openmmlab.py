"""Which steps of OpenMMLab models depend on the data in jumps, told by method name.

mmdet's heads decode and select boxes in ``predict_by_feat``: dense heads, region proposals and
box heads return boxes, whose replay keeps RoI features aligned row by row; mask heads paste
masks into images, and panoptic heads lay those over each other, which no layer comes after.
"""

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
    return points


def _without_masks(mask_preds: Any, results_list: list, *args: Any, **kwargs: Any) -> list:
    return results_list


def _nothing_fused(mask_results_list: list, seg_preds_list: Any, **kwargs: Any) -> list:
    return []
