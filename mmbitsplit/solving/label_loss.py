"""Cross-entropy of class scores to labels, where calibration batches have any."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.passes.raw_outputs import RawOutput, RawOutputs

_KEYS = ('gt_label', 'gt_labels', 'label', 'labels', 'target', 'targets')


def class_labels(batch: Any) -> Tensor | None:
    """Returns the classes (rows,) of a batch, ``None`` where it shows none.

    Known are mappings that name them (``labels``, ``gt_label``, ...) or hold ``data_samples`` with
    a ``gt_label`` each, as mmpretrain has them, and pairs of inputs and classes.
    """
    if isinstance(batch, Mapping):
        samples = batch.get('data_samples') or ()
        found = [getattr(sample, 'gt_label', None) for sample in samples]
        if found and all(one is not None for one in found):
            return torch.cat([torch.as_tensor(one).flatten() for one in found])
        return next((_whole(batch[key]) for key in _KEYS if key in batch), None)
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _whole(batch[1])
    return None


def _whole(value: Any) -> Tensor | None:
    """Classes as a row of whole numbers, ``None`` where it is something else."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dim() != 1:
        return None
    return value


@dataclass
class LabelLoss:
    """Cross-entropy of the scores of the last layer, used as ``solving.tuning.OutputLoss``.

    Args:
        raw: What runs the model.
        classes: See ``class_labels``.

    Attributes:
        wanted: By batch, the classes, as a list of one.
    """

    raw: RawOutputs
    classes: Callable[[Any], Tensor | None] = class_labels
    kind: str = 'cross_entropy'
    wanted: dict[int, list[Tensor]] = field(default_factory=dict)
    _per_batch: float = 1.0

    def add(self, batch: int, outputs: Sequence[RawOutput]) -> None:
        """Keeps the labels of a batch on which the float model gave these outputs.

        Raises:
            ValueError: The batch has no labels, or the model does not end in class scores.
        """
        where = "quantization.budget.loss='cross_entropy'"
        if len(outputs) != 1 or outputs[0][1].dim() != 2:
            raise ValueError(f'{where} is for a model that ends in one layer of class scores, '
                             f"(rows, classes); this one ends in {', '.join(self.raw.modules)}. "
                             "Use 'raw' or 'auto'.")
        labels = self.classes(self.raw.forwards.batches[batch])
        rows, count = outputs[0][1].shape
        if labels is None or labels.shape != (rows,) or bool((labels < 0).any()) \
                or bool((labels >= count).any()):
            found = 'no labels' if labels is None else f'labels of shape {tuple(labels.shape)}'
            raise ValueError(
                f'{where} needs the class of each image, whole numbers from 0 to {count - 1}, and '
                f'{self.raw.forwards.labels[batch]} of {rows} image(s) has {found}. Use '
                "loss='kl' (no labels), or give batches with data_samples or (images, classes).")
        self.wanted[batch] = [labels.long()]

    def settle(self) -> None:
        """Every batch has been added."""
        rows = [len(labels) for part in self.raw.forwards.team.gather(
            {batch: labels[0] for batch, labels in self.wanted.items()})
            for labels in part.values()]
        self._per_batch = sum(rows) / len(rows)

    def __call__(self, batch: int, outputs: Sequence[RawOutput]) -> Tensor:
        """The loss of a batch, in parts of what a batch has of rows; float64."""
        (_, scores), = outputs
        labels = self.wanted[batch][0].to(scores.device)
        return torch.nn.functional.cross_entropy(
            scores.double(), labels, reduction='sum').cpu() / self._per_batch
