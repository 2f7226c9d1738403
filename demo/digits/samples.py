"""The handwriting: scikit-learn's 8x8 digits, and their division into training and validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLASS_NAMES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class DigitSamples:
    """Handwriting samples.

    Args:
        images: Ink, (num_samples, 8, 8) float32 in [0, 1], 1 where the pen was.
        labels: The digit written, (num_samples,) int64 in [0, 9].
        ids: Position in scikit-learn's list, (num_samples,) int64; the same through every subset.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def subset(self, index: np.ndarray) -> DigitSamples:
        """The samples at some positions.

        Args:
            index: Positions, (num_chosen,) int64.

        Returns:
            Those samples, in the order of ``index``.
        """
        return DigitSamples(self.images[index], self.labels[index], self.ids[index])


def load_samples() -> DigitSamples:
    """Loads the 1797 handwritten digits that scikit-learn carries in its package.

    Returns:
        All samples, each scaled so that its darkest pixel is 1.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.float32)  # (1797, 8, 8), 0..16
    images /= images.max(axis=(1, 2), keepdims=True)
    labels = digits.target.astype(np.int64)
    return DigitSamples(images, labels, np.arange(len(labels)))


def split_samples(
    samples: DigitSamples, seed: int, val_fraction: float = 0.2
) -> tuple[DigitSamples, DigitSamples]:
    """Divides handwriting samples into two disjoint sets, every class in the same proportion.

    Args:
        samples: What to divide.
        seed: Which division.
        val_fraction: Share of every class that goes to validation, between 0 and 1, both excluded.

    Returns:
        Training samples and validation samples.

    Raises:
        ValueError: If ``val_fraction`` is out of range, or would leave a side without some class.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f'val_fraction is {val_fraction}, but must lie between 0 and 1, excluded')
    rng = np.random.default_rng([seed, 0])
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    for label in np.unique(samples.labels):
        index = rng.permutation(np.flatnonzero(samples.labels == label))
        num_val = round(len(index) * val_fraction)
        if not 0 < num_val < len(index):
            raise ValueError(
                f'val_fraction {val_fraction} puts {num_val} of {len(index)} samples of class '
                f'{label} into validation; choose it so that both sides keep at least one'
            )
        val.append(index[:num_val])
        train.append(index[num_val:])
    return (
        samples.subset(np.sort(np.concatenate(train))),
        samples.subset(np.sort(np.concatenate(val))),
    )
