"""Bit-split for one layer exactly as published: the yardstick for ``functional.solve_bitsplit``.

Source: Wang et al., Towards Accurate Post-training Network Quantization via Bit-Split and
Stitching, ICML 2020: Eq. 2 to 9 and lines 10 to 20 of Algorithm 1, with the printed slips put
right (the sum of Eq. 6 weighs plane i with 2^(i-1); s enters Eq. 7 and 8 with a minus; Eq. 8
compares ``|r|``; line 11 means the largest absolute weight).

The elements of a plane are visited one after another, the M output channels together: what
NumPy can share out here, and how the authors' code goes over them. Nothing is carried from one
element to the next: every ``r_k`` is computed anew from row k of the gram and the whole plane.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PublishedSolution:
    """What the published algorithm found.

    Args:
        codes: (M, N) int8.
        scale: (M,), real units a code step.
        objective: (M,) sum of squared output errors.
        epochs: Rounds of scale and planes that were run.
        planes: (b-1, M, N) int8, the ternary planes that add up to the codes.
    """

    codes: np.ndarray
    scale: np.ndarray
    objective: np.ndarray
    epochs: int
    planes: np.ndarray


def solve_published(x: np.ndarray, y: np.ndarray, weight: np.ndarray, num_bits: int, *,
                    epochs: int = 100, start: tuple[np.ndarray, np.ndarray] | None = None,
                    stop_at_rest: bool = True,
                    on_epoch: Callable[[int, int], None] | None = None) -> PublishedSolution:
    """Minimises ``||y - a x q||^2`` over codes q and scale a of every output channel (Eq. 2).

    Everything is computed in the dtype of ``x``. Networks hand over float32, which is also what
    the authors' code computes in and halves the time of the memory-bound inner loop; float64
    serves where two implementations must agree to rounding.

    Args:
        x: (K, N) inputs, a sampled position a row.
        y: (K, M) float outputs at the same positions.
        weight: (M, N) float weight on the scale of x.
        num_bits: b, 2 to 8; codes lie in [-(2^(b-1)-1), 2^(b-1)-1].
        epochs: Most rounds.
        stop_at_rest: End when a whole round changes no element (Algorithm 1); the authors' code
            runs all of its 100 rounds.
        start: Codes (M, N) and scale (M,) to begin from instead of lines 10 to 12.
        on_epoch: Called after every round with its number and how many elements it changed.

    Differs from source: where Eq. 4 has no positive solution (a row of zeros, outputs opposite
    to the codes) the scale stays as it is; an input that is always 0 keeps its bits; the scale
    is fitted once more at the end, which a last round that changed nothing leaves as it was.
    """
    gram = x.T @ x  # (N, N)
    cross = x.T @ y  # (N, M)
    y_sq = np.einsum('km,km->m', y, y)
    codes, scale = rounding_start(weight, num_bits) if start is None else start
    # Transposed, so that what element k needs of all channels lies together.
    planes = split_planes(np.asarray(codes).T, num_bits).astype(gram.dtype)  # (b-1, N, M)
    scale = np.asarray(scale, dtype=gram.dtype)
    epoch = 0
    while epoch < epochs:  # line 14
        codes = stitch_planes(planes)
        scale = fit_scale(codes, gram @ codes, cross, scale)  # line 15
        moved = 0
        for m in range(num_bits - 1):  # lines 16 to 18; plane m weighs 2^m, counted from 0
            others = stitch_planes(planes) - 2 ** m * planes[m]
            moved += optimize_plane_(planes[m], others, gram, cross, scale, 2 ** m)
        epoch += 1
        if on_epoch is not None:
            on_epoch(epoch, moved)
        if moved == 0 and stop_at_rest:
            break
    codes = stitch_planes(planes)  # line 19
    product = gram @ codes
    scale = fit_scale(codes, product, cross, scale)
    objective = (y_sq - 2 * scale * (codes * cross).sum(0)
                 + scale ** 2 * (codes * product).sum(0))
    return PublishedSolution(codes.T.astype(np.int8), scale, objective, epoch,
                             planes.transpose(0, 2, 1).astype(np.int8))


def rounding_start(weight: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (M, N) and scale (M,) of lines 10 to 12."""
    largest = 2 ** (num_bits - 1) - 1  # line 10
    top = np.abs(weight).max(axis=1)
    scale = np.where(top > 0, top / largest, 1.0).astype(weight.dtype)  # line 11
    return np.rint(weight / scale[:, None]), scale  # line 12


def split_planes(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """Ternary planes (b-1, ...) that carry the sign of their code (Eq. 3, Figure 1)."""
    magnitude = np.abs(codes).astype(np.int64)
    return np.stack([np.sign(codes) * (magnitude >> m & 1) for m in range(num_bits - 1)])


def stitch_planes(planes: np.ndarray) -> np.ndarray:
    """Sum of the planes, each with its weight (Eq. 9)."""
    weights = 2 ** np.arange(len(planes))
    return np.tensordot(weights.astype(planes.dtype), planes, axes=1)


def fit_scale(codes: np.ndarray, product: np.ndarray, cross: np.ndarray,
              scale: np.ndarray) -> np.ndarray:
    """Closed-form scale (M,), Eq. 4; ``scale`` where that is not positive.

    Args:
        codes: (N, M).
        product: (N, M) ``gram @ codes``.
        cross: (N, M).
        scale: (M,).
    """
    correlation = (codes * cross).sum(0)
    energy = (codes * product).sum(0)
    usable = (energy > 0) & (correlation > 0)
    return np.where(usable, correlation / np.where(usable, energy, 1), scale)


def optimize_plane_(plane: np.ndarray, others: np.ndarray, gram: np.ndarray, cross: np.ndarray,
                    scale: np.ndarray, base: int) -> int:
    """One pass over a plane (line 17), in place; every element moves to its best value.

    With ``a_m = a * base`` (Eq. 6), both ``A`` and ``s`` of Eq. 7 are divided by ``a_m^2``,
    which changes neither sign nor comparison in Eq. 8 and leaves one gram for all channels.

    Args:
        plane: (N, M), -1, 0 or 1, changed in place.
        others: (N, M) sum of all the other planes with their weights.
        gram: (N, N).
        cross: (N, M).
        scale: (M,) positive.
        base: What the plane weighs, a power of 2.

    Returns:
        Number of elements that changed.
    """
    linear = 2 * (cross / scale - gram @ others) / base  # (N, M): s / a_m^2
    moved = 0
    for k in range(len(plane)):
        row, curvature = gram[k], gram[k, k]
        if curvature <= 0:
            continue
        old = plane[k].copy()
        r = 2 * (row @ plane - curvature * old) - linear[k]  # (M,): the sum leaves i = k out
        plane[k] = np.where(np.abs(r) > curvature, -np.sign(r), 0)  # Eq. 8
        moved += int(np.count_nonzero(plane[k] != old))
    return moved
