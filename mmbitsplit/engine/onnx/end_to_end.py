"""Single-stage detectors from the image to candidates for non-maximum suppression.

What ``predict_by_feat`` of mmdet's heads does with images one by one and lists of any length, done
with tensors of fixed shapes: where mmdet leaves a candidate out, its score is 0 here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.engine.onnx.export_targets import (
    IMAGE,
    IMAGE_DYNAMIC,
    SINGLE_STAGE,
    architecture,
)
from mmbitsplit.export.onnx.trace import GraphRequest

NAME = 'end2end'
MOST = 300  # detections an image, where the config says nothing


def end_to_end_request(model: nn.Module, shape: tuple[int, int], dynamic: bool = False,
                       ) -> GraphRequest:
    """Returns the request of a graph from the normalised image to candidates.

    Args:
        model: A single-stage detector of mmdet in eval mode.
        shape: Height and width of the image.
        dynamic: Whether the batch may vary; height and width are fixed, as priors are.

    Raises:
        ValueError: The detector's post-processing is not known here; says what is.
    """
    check_end_to_end(model)
    parameter = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(2 if dynamic else 1, 3, *shape, device=parameter.device)
    varying = {IMAGE: {0: IMAGE_DYNAMIC[0]}} if dynamic else {}
    return GraphRequest(NAME, Candidates(model).eval(), (image,), (IMAGE,), varying)


def suppression(model: nn.Module) -> dict[str, Any]:
    """Returns ``threshold`` and ``most`` of ``append_nms`` from the config of a detector."""
    cfg = _test_cfg(model)
    return {'threshold': float(cfg['nms']['iou_threshold']),
            'most': int(cfg.get('max_per_img', MOST))}


def check_end_to_end(model: nn.Module) -> None:
    """Raises ``ValueError`` for a model whose post-processing cannot be part of the graph."""
    allowed = ('allowed are single-stage detectors of mmdet whose head keeps the post-processing '
               'of BaseDenseHead (RetinaNet, FCOS, ATSS, ...) or is YOLOX\'s, with plain NMS by '
               'class. Export the raw outputs, without end2end.')
    if architecture(model) != SINGLE_STAGE:
        raise ValueError(f'end2end=True is not supported for {type(model).__name__}; {allowed}')
    head, cfg = model.bbox_head, _test_cfg(model)
    if _kind(head) is None:
        raise ValueError(f'end2end=True is not supported for the head {type(head).__name__}; '
                         f'{allowed}')
    nms = cfg.get('nms') or {}
    if nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic') or 'iou_threshold' not in nms:
        raise ValueError(f'end2end=True is not supported with test_cfg.nms={dict(nms)}; {allowed}')


class Candidates(nn.Module):
    """Normalised image to boxes, the same moved apart by class, scores and labels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (N, B, 4), (N, B, 4), (N, B) and (N, B) int64; see ``append_nms``."""
        head, cfg = self.model.bbox_head, _test_cfg(self.model)
        outputs = head(self.model.extract_feat(image))
        find = _yolox if _kind(head) == 'yolox' else _dense
        boxes, scores, labels = find(head, outputs, cfg, tuple(image.shape[-2:]))
        # As batched_nms of mmcv does, of the boxes that it would get.
        inside = torch.where((scores > 0)[..., None], boxes, 0)
        step = inside.flatten(1).amax(1)[:, None] + 1
        return boxes, boxes + (labels.to(boxes) * step)[..., None], scores, labels


def _test_cfg(model: nn.Module) -> Mapping[str, Any]:
    return model.bbox_head.test_cfg or {}


def _kind(head: nn.Module) -> str | None:
    from mmdet.models.dense_heads import YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    def keeps(base: type, *names: str) -> bool:
        return isinstance(head, base) and all(
            getattr(type(head), name) is getattr(base, name) for name in names)

    if keeps(YOLOXHead, 'predict_by_feat', '_bbox_decode', '_bbox_post_process'):
        return 'yolox'
    if keeps(BaseDenseHead, 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'):
        return 'dense'
    return None


def _rows(value: Tensor, width: int) -> Tensor:
    """(N, A * width, H, W) to (N, H * W * A, width)."""
    return value.permute(0, 2, 3, 1).reshape(value.shape[0], -1, width)


def _priors(head: nn.Module, maps: Sequence[Tensor], **options: Any) -> list[Tensor]:
    return head.prior_generator.grid_priors([value.shape[-2:] for value in maps],
                                            dtype=maps[0].dtype, device=maps[0].device, **options)


def _dense(head: nn.Module, outputs: Sequence[Sequence[Tensor]], cfg: Mapping[str, Any],
           shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair of place and class is a candidate; the best of each level."""
    classes, parts = head.cls_out_channels, []
    factors = outputs[2] if len(outputs) > 2 else [None] * len(outputs[0])
    for priors, scores, deltas, factor in zip(_priors(head, outputs[0]), *outputs[:2], factors):
        scores = _rows(scores, classes)
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
        columns = scores.shape[-1]
        scores = torch.where(scores > cfg.get('score_thr', 0), scores, 0).flatten(1)
        most = cfg.get('nms_pre', -1)
        count = scores.shape[1] if most <= 0 else min(most, scores.shape[1])
        scores, index = scores.topk(count)  # (N, count)
        place = index // columns
        deltas = _rows(deltas, 4).gather(1, place[..., None].expand(-1, -1, 4))
        if factor is not None:
            scores = scores * _rows(factor, 1)[..., 0].gather(1, place).sigmoid()
        parts.append((priors[place], deltas, scores, index % columns))
    priors, deltas, scores, labels = (torch.cat(values, 1) for values in zip(*parts))
    coder = head.bbox_coder
    boxes = coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1)).view(*scores.shape, 4)
    if getattr(coder, 'clip_border', True):
        height, width = shape
        boxes = torch.stack([boxes[..., 0].clamp(0, width), boxes[..., 1].clamp(0, height),
                             boxes[..., 2].clamp(0, width), boxes[..., 3].clamp(0, height)], -1)
    least = cfg.get('min_bbox_size', -1)
    if least >= 0:
        large = ((boxes[..., 2] - boxes[..., 0]) > least) & ((boxes[..., 3] - boxes[..., 1])
                                                            > least)
        scores = torch.where(large, scores, 0)
    return boxes, scores, labels


def _yolox(head: nn.Module, outputs: Sequence[Sequence[Tensor]], cfg: Mapping[str, Any],
           shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Each place is a candidate, of its best class."""
    priors = torch.cat(_priors(head, outputs[0], with_stride=True))
    scores, deltas, objects = (torch.cat([_rows(level, width) for level in levels], 1)
                               for levels, width in zip(outputs, (head.cls_out_channels, 4, 1)))
    scores, labels = scores.sigmoid().max(-1)
    scores = scores * objects[..., 0].sigmoid()
    return (head._bbox_decode(priors, deltas),
            torch.where(scores >= cfg.get('score_thr', 0), scores, 0), labels)
