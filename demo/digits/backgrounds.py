"""Procedural backgrounds: gradients, textures, noise, and clutter that is not a digit."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def random_color(rng: np.random.Generator) -> np.ndarray:
    """Draws a colour, uniform in RGB.

    Args:
        rng: Source of randomness.

    Returns:
        RGB, (3,) float32 in [0, 255].
    """
    return rng.uniform(0.0, 255.0, 3).astype(np.float32)


def contrasting_color(
    rng: np.random.Generator, background: np.ndarray, min_contrast: float
) -> np.ndarray:
    """Draws a colour that stands out from a background, lighter or darker than it.

    Args:
        rng: Source of randomness.
        background: RGB to stand out from, (3,) float in [0, 255].
        min_contrast: Smallest difference of luma, in grey levels of 255, at most 127.

    Returns:
        RGB, (3,) float32 in [0, 255].
    """
    base = float(background @ LUMA)
    for _ in range(12):
        color = random_color(rng)
        if abs(float(color @ LUMA) - base) >= min_contrast:
            return color
    return np.full(3, 0.0 if base > 127.5 else 255.0, dtype=np.float32)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    angle = rng.uniform(0.0, 2.0 * np.pi)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    weight = ramp[None, :] * np.cos(angle) + ramp[:, None] * np.sin(angle) + 0.5  # (S, S)
    return np.clip(weight, 0.0, 1.0)


def _blotches(rng: np.random.Generator, size: int) -> np.ndarray:
    cells = int(rng.integers(3, 10))
    coarse = rng.uniform(0.0, 1.0, (cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0.0, 1.0)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    angle = rng.uniform(0.0, np.pi)
    period = rng.uniform(6.0, 40.0)
    axis = np.arange(size, dtype=np.float32)
    phase = (axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)) / period
    wave = 0.5 + 0.5 * np.sin(2.0 * np.pi * phase + rng.uniform(0.0, 2.0 * np.pi))
    return wave.astype(np.float32)


def _tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    cells = int(rng.integers(4, 14))
    coarse = rng.uniform(0.0, 1.0, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_NEAREST)


_PATTERNS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _gradient,
    _blotches,
    _stripes,
    _tiles,
)


def make_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Blends two colours by one or two procedural patterns.

    Args:
        rng: Source of randomness.
        size: Height and width, pixels.

    Returns:
        RGB image, (size, size, 3) uint8.
    """
    first = random_color(rng)
    span = rng.uniform(0.15, 0.6)  # full-range colour pairs would bury the digits
    second = first + span * (random_color(rng) - first)
    weight = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, size)
    if rng.random() < 0.5:
        other = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, size)
        weight = 0.6 * weight + 0.4 * other
    image = first + weight[:, :, None] * (second - first)  # (S, S, 3)
    return np.clip(image, 0.0, 255.0).astype(np.uint8)


def draw_clutter_(rng: np.random.Generator, image: np.ndarray, max_shapes: int) -> None:
    """Draws strokes, arcs, polygons and boxes that no class covers.

    Args:
        rng: Source of randomness.
        image: RGB, (size, size, 3) uint8, drawn into in place.
        max_shapes: Upper limit of how many.
    """
    size = image.shape[0]
    for _ in range(int(rng.integers(0, max_shapes + 1))):
        color = [int(value) for value in random_color(rng)]
        x, y = (int(value) for value in rng.integers(0, size, 2))
        reach = max(4, int(size * rng.uniform(0.06, 0.35)))
        thickness = int(rng.integers(1, 5))
        kind = int(rng.integers(4))
        if kind == 0:  # stroke
            dx, dy = (int(value) for value in rng.integers(-reach, reach + 1, 2))
            cv2.line(image, (x, y), (x + dx, y + dy), color, thickness, cv2.LINE_AA)
        elif kind == 1:  # arc
            axes = (reach, max(3, int(reach * rng.uniform(0.3, 1.0))))
            start = int(rng.integers(0, 360))
            sweep = int(rng.integers(40, 200))
            tilt = int(rng.integers(0, 180))
            cv2.ellipse(
                image, (x, y), axes, tilt, start, start + sweep, color, thickness, cv2.LINE_AA
            )
        elif kind == 2:  # polygon
            corners = int(rng.integers(3, 6))
            points = np.array([x, y]) + rng.integers(-reach, reach + 1, (corners, 2)) // 2
            cv2.fillPoly(image, [points.astype(np.int32)], color, cv2.LINE_AA)
        else:  # box
            width, height = (int(value) for value in rng.integers(3, reach + 1, 2))
            line = -1 if rng.random() < 0.6 else thickness
            cv2.rectangle(image, (x, y), (x + width, y + height), color, line, cv2.LINE_AA)


def finish(rng: np.random.Generator, image: np.ndarray, max_noise: float) -> np.ndarray:
    """Adds what a camera adds: sometimes a slight blur, and sensor noise.

    Args:
        rng: Source of randomness.
        image: RGB, (size, size, 3) uint8.
        max_noise: Upper limit of the noise's standard deviation, grey levels of 255.

    Returns:
        A new image of the same shape and type.
    """
    result = image
    if rng.random() < 0.3:
        result = cv2.GaussianBlur(result, (3, 3), rng.uniform(0.4, 0.8))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.0, max_noise)
    return np.clip(result + noise + 0.5, 0.0, 255.0).astype(np.uint8)
