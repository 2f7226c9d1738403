"""Notes what a model says of each image while it is evaluated; the evaluation is untouched.

Kept are plain values, so that the float model's record outlives an interrupted run as JSON.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmbitsplit.calibration import Team
from mmbitsplit.report.average_precision import precision_by_class
from mmbitsplit.report.classification import TOP, Answer
from mmbitsplit.report.detections import LEAST_SCORE, Detections

MOST_IMAGES = 1000  # whose detections are kept; masks of more would take minutes and memory
MOST_DETECTIONS = 50  # of an image


@dataclass
class EvaluationRecord:
    """What an evaluation showed of single images and classes; plain values.

    Args:
        kind: ``'detection'``, ``'classification'``, or ``None`` when nothing was understood.
        images: By file, ``Detections`` or ``Answer`` as a dict; detections with ``size``, the
            (height, width) of the image.
        total: Images evaluated, watched or not.
        precision: By kind of result (``'bbox'``, ``'segm'``), see ``precision_by_class``.
        problems: What could not be noted, a line each.
    """

    kind: str | None = None
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    total: int = 0
    precision: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'EvaluationRecord':
        """Inverse of ``to_dict``."""
        return cls(**values)

    @contextmanager
    def unharmed(self, what: str) -> Iterator[None]:
        """Logs and notes whatever goes wrong inside: a record is worth no failed evaluation."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  see above
            self.problems.append(f'{what}: {type(error).__name__}: {error}')
            print_log(f'mmbitsplit: {self.problems[-1]} (only the report lacks it)\n'
                      f'{traceback.format_exc()}', logger='current', level=30)


class RecordingHook(Hook):
    """Notes the predictions of every test batch.

    Args:
        record: Where to.
        most: Images of this process whose detections are kept.
    """

    def __init__(self, record: EvaluationRecord, most: int = MOST_IMAGES):
        self.record, self.most = record, most
        self.failed = False

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[Any] | None = None) -> None:
        self.record.total += len(outputs or ())
        if self.failed:
            return
        before = len(self.record.problems)
        with self.record.unharmed('Predictions of single images could not be noted'):
            for sample in outputs or ():
                self._note(sample)
        self.failed = len(self.record.problems) > before

    def _note(self, sample: Any) -> None:
        path = sample.get('img_path')
        if path is None:
            raise ValueError("data samples have no 'img_path'; add it to the meta_keys of the "
                             "test pipeline's last step")
        if 'pred_instances' in sample:
            self.record.kind = 'detection'
            if len(self.record.images) < self.most:
                self.record.images[str(path)] = {
                    **note_detections(sample.pred_instances).to_dict(),
                    'size': [int(side) for side in sample.ori_shape[:2]]}
        elif 'pred_score' in sample:
            self.record.kind = 'classification'
            self.record.images[str(path)] = note_answer(sample).to_dict()
        else:
            raise ValueError(f'{type(sample).__name__} holds neither detections nor class scores')


@contextmanager
def recording_evaluation(runner: Runner, team: Team) -> Iterator[EvaluationRecord]:
    """Notes predictions and precision of evaluations in the context; whole when it ends.

    Args:
        runner: Whose test loop is about to run.
        team: The processes that share the images; the first one has all in the end.
    """
    record = EvaluationRecord()
    hook = RecordingHook(record, -(-MOST_IMAGES // team.size))
    with ExitStack() as stack:
        stack.enter_context(_noted_precision(record))
        runner.register_hook(hook, priority='VERY_LOW')
        stack.callback(runner._hooks.remove, hook)
        yield record
    # Collective, hence whatever happened before; the first process's own come first.
    parts = team.gather((record.kind, record.images, record.total, record.problems))
    record.kind = next((kind for kind, *_ in parts if kind), None)
    record.images = {path: image for _, images, _, _ in reversed(parts)
                     for path, image in images.items()}
    record.total = sum(total for _, _, total, _ in parts)
    record.problems = list(dict.fromkeys(line for *_, problems in parts for line in problems))


def note_detections(instances: Any) -> Detections:
    """Takes from mmdet's ``pred_instances`` what the report shows.

    Raises:
        ValueError: The boxes are not upright rectangles.
    """
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    if boxes.shape[-1] != 4:
        raise ValueError(f'boxes of {boxes.shape[-1]} numbers are not upright rectangles')
    scores = instances.scores.float()
    chosen = torch.argsort(scores, descending=True, stable=True)[:MOST_DETECTIONS]
    chosen = chosen[scores[chosen] >= LEAST_SCORE].cpu()
    masks = [_run_lengths(instances.masks[index]) for index in chosen.tolist()] \
        if 'masks' in instances else None
    return Detections(
        [[round(side, 1) for side in box] for box in boxes.cpu()[chosen].tolist()],
        [round(score, 4) for score in scores.cpu()[chosen].tolist()],
        instances.labels.cpu()[chosen].tolist(), masks)


def note_answer(sample: Any) -> Answer:
    """Takes from mmpretrain's data sample what the report shows.

    Raises:
        ValueError: The image has several true classes.
    """
    truth = sample.get('gt_label')
    if truth is not None:
        if truth.numel() != 1:
            raise ValueError(f'an image has {truth.numel()} true classes, not one')
        truth = int(truth)
    scores = sample.pred_score.detach().float().flatten()
    best = scores.topk(min(TOP, scores.numel()))
    return Answer(best.indices.tolist(), [round(score, 4) for score in best.values.tolist()],
                  truth)


def _run_lengths(mask: Any) -> dict[str, Any]:
    """A mask in COCO's run-length form, from pixels or from that form."""
    if not isinstance(mask, Mapping):
        from pycocotools import mask as coder
        pixels = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask
        mask = coder.encode(pixels.astype('uint8', order='F'))
    counts = mask['counts']
    return {'size': [int(side) for side in mask['size']],
            'counts': counts.decode() if isinstance(counts, bytes) else counts}


@contextmanager
def _noted_precision(record: EvaluationRecord) -> Iterator[None]:
    """Notes every COCO evaluation's precision by class, computed anyway and then dropped.

    ``CocoMetric(classwise=True)`` would tell it too, but adds its figures to the user's.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError:  # no detector without it
        yield
        return
    accumulate = COCOeval.accumulate

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = accumulate(self, *args, **kwargs)
        with record.unharmed('AP by class could not be noted'):
            params = self.params
            if params.useCats and params.iouType in ('bbox', 'segm'):
                names = [self.cocoGt.cats[number]['name'] for number in params.catIds]
                record.precision[params.iouType] = precision_by_class(
                    self.eval['precision'], names)
        return result

    COCOeval.accumulate = noting
    try:
        yield
    finally:
        COCOeval.accumulate = accumulate
