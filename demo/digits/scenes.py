"""Pictures of digits: a scene of several with instance masks, and a crop of one."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from demo.digits.backgrounds import (
    contrasting_color,
    draw_clutter_,
    finish,
    make_background,
)
from demo.digits.samples import DigitSamples


@dataclass(frozen=True)
class SceneOptions:
    """How hard the scenes are.

    Args:
        image_size: Height and width of a scene, pixels.
        min_digits: Fewest digits tried in a scene.
        max_digits: Most digits in a scene.
        min_size: Smallest height of the handwriting grid, pixels.
        max_size: Largest height of the handwriting grid, pixels.
        min_visible: Share of a digit's own pixels that must stay visible; a digit that would take
            an earlier one below it is placed elsewhere or left out.
        min_area: Smallest visible area, pixels.
        min_contrast: Smallest difference of luma to what lies under a digit, grey levels of 255.
        max_rotation: Largest rotation either way, degrees.
        max_clutter: Most distractor shapes in a scene.
        max_noise: Largest standard deviation of the sensor noise, grey levels of 255.
    """

    image_size: int = 160
    min_digits: int = 2
    max_digits: int = 8
    min_size: float = 18.0
    max_size: float = 72.0
    min_visible: float = 0.7
    min_area: int = 20
    min_contrast: float = 45.0
    max_rotation: float = 15.0
    max_clutter: int = 10
    max_noise: float = 10.0


@dataclass(frozen=True)
class DigitInstance:
    """One digit of a scene.

    Args:
        label: The digit, 0 to 9.
        sample_id: Which handwriting sample, see ``DigitSamples.ids``.
        mask: Its visible pixels, (height, width) bool, never empty.
    """

    label: int
    sample_id: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Number of visible pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box of the visible pixels as (x, y, width, height), pixels, COCO's convention."""
        columns = np.flatnonzero(self.mask.any(axis=0))
        rows = np.flatnonzero(self.mask.any(axis=1))
        left, right = int(columns[0]), int(columns[-1])
        top, bottom = int(rows[0]), int(rows[-1])
        return left, top, right - left + 1, bottom - top + 1


@dataclass(frozen=True)
class Scene:
    """A picture with several digits.

    Args:
        image: RGB, (height, width, 3) uint8.
        instances: The digits, lowest first; their masks do not overlap.
    """

    image: np.ndarray
    instances: tuple[DigitInstance, ...]


@dataclass(frozen=True)
class Crop:
    """A picture of one digit.

    Args:
        image: RGB, (height, width, 3) uint8.
        label: The digit, 0 to 9.
        sample_id: Which handwriting sample, see ``DigitSamples.ids``.
    """

    image: np.ndarray
    label: int
    sample_id: int


def render_glyph(
    rng: np.random.Generator,
    ink: np.ndarray,
    size: float,
    center: tuple[float, float],
    image_size: int,
    max_rotation: float,
) -> np.ndarray:
    """Enlarges a handwriting sample smoothly and places it on an empty sheet.

    Args:
        rng: Source of randomness for rotation, slant, width and stroke thickness.
        ink: One sample, (8, 8) float32 in [0, 1].
        size: Height of the 8-pixel grid on the sheet, pixels.
        center: Where the middle of the grid goes, (x, y), pixels.
        image_size: Height and width of the sheet, pixels.
        max_rotation: Largest rotation either way, degrees.

    Returns:
        Coverage, (image_size, image_size) float32 in [0, 1]; the digit is where it exceeds 0.5.
    """
    zoom = size / ink.shape[0]  # sheet pixels a grid pixel
    angle = np.deg2rad(rng.uniform(-max_rotation, max_rotation))
    shear = rng.uniform(-0.2, 0.2)
    width = rng.uniform(0.8, 1.15)
    threshold = rng.uniform(0.38, 0.55)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = zoom * rotation @ np.array([[width, shear], [0.0, 1.0]])  # (2, 2)
    padded = np.pad(ink, 2)  # an empty border, so that no stroke ends at the edge
    middle = np.full(2, (padded.shape[0] - 1) / 2.0)
    offset = np.asarray(center) - linear @ middle
    matrix = np.concatenate([linear, offset[:, None]], axis=1)  # (2, 3)
    value = cv2.warpAffine(
        padded, matrix, (image_size, image_size), flags=cv2.INTER_CUBIC, borderValue=0.0
    )
    return np.clip((value - threshold) * zoom + 0.5, 0.0, 1.0)  # an edge about one pixel wide


def paint(
    rng: np.random.Generator, image: np.ndarray, coverage: np.ndarray, min_contrast: float
) -> np.ndarray:
    """Paints a digit in a colour that stands out from what lies under it.

    Args:
        rng: Source of randomness.
        image: RGB, (size, size, 3) uint8.
        coverage: Where the digit is, (size, size) float32 in [0, 1].
        min_contrast: Smallest difference of luma, grey levels of 255.

    Returns:
        A new image of the same shape and type.
    """
    under = image[coverage > 0.5].mean(axis=0)  # (3,)
    color = contrasting_color(rng, under, min_contrast)
    touched = coverage > 0.0  # (size, size)
    weight = coverage[touched][:, None] * rng.uniform(0.85, 1.0)  # (num_touched, 1)
    before = image[touched]  # (num_touched, 3)
    result = image.copy()
    result[touched] = (before + weight * (color - before) + 0.5).astype(np.uint8)
    return result


def render_scene(
    rng: np.random.Generator, samples: DigitSamples, options: SceneOptions | None = None
) -> Scene:
    """Renders several digits over a cluttered background, later ones over earlier ones.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        samples: Handwriting to draw from, at least one.
        options: How hard, the defaults where None.

    Returns:
        The picture and its digits, at least one.
    """
    options = options or SceneOptions()
    size = options.image_size
    image = make_background(rng, size)
    draw_clutter_(rng, image, options.max_clutter)
    wanted = int(rng.integers(options.min_digits, options.max_digits + 1))
    chosen: list[int] = []
    masks: list[np.ndarray] = []  # visible, each (size, size) bool
    full_areas: list[int] = []
    for _ in range(wanted):
        index = int(rng.integers(len(samples)))
        for _ in range(6):  # attempts to find room
            height = float(np.exp(rng.uniform(np.log(options.min_size), np.log(options.max_size))))
            margin = 0.45 * height
            center = tuple(rng.uniform(margin, size - margin, 2))
            coverage = render_glyph(
                rng, samples.images[index], height, center, size, options.max_rotation
            )
            mask = coverage > 0.5
            area = int(mask.sum())
            left = [int((earlier & ~mask).sum()) for earlier in masks]
            if area < options.min_area or any(
                visible < max(options.min_area, options.min_visible * full)
                for visible, full in zip(left, full_areas, strict=True)
            ):
                continue
            masks = [earlier & ~mask for earlier in masks]
            chosen.append(index)
            masks.append(mask)
            full_areas.append(area)
            image = paint(rng, image, coverage, options.min_contrast)
            break
    if not chosen:  # every attempt was too small: draw again from where the generator stands
        return render_scene(rng, samples, options)
    instances = tuple(
        DigitInstance(int(samples.labels[index]), int(samples.ids[index]), mask)
        for index, mask in zip(chosen, masks, strict=True)
    )
    return Scene(finish(rng, image, options.max_noise), instances)


def render_crop(
    rng: np.random.Generator,
    samples: DigitSamples,
    label: int,
    image_size: int = 32,
    options: SceneOptions | None = None,
) -> Crop:
    """Renders one digit, often with a piece of another beside or under it.

    Args:
        rng: Source of randomness; the same state gives the same crop.
        samples: Handwriting to draw from, with at least one sample of ``label``.
        label: The digit, 0 to 9.
        image_size: Height and width, pixels.
        options: Contrast, rotation, clutter and noise, the defaults where None.

    Returns:
        The picture and its class.

    Raises:
        ValueError: If there is no sample of ``label``.
    """
    options = options or SceneOptions()
    candidates = np.flatnonzero(samples.labels == label)
    if not len(candidates):
        raise ValueError(f'label is {label}, but the samples hold {np.unique(samples.labels)}')
    image = make_background(rng, image_size)
    draw_clutter_(rng, image, options.max_clutter // 2)
    half = image_size / 2.0
    if rng.random() < 0.5:  # an intruder, its centre near the border
        other = int(rng.integers(len(samples)))
        angle = rng.uniform(0.0, 2.0 * np.pi)
        reach = half * rng.uniform(0.9, 1.2)
        center = (half + reach * np.cos(angle), half + reach * np.sin(angle))
        height = image_size * rng.uniform(0.5, 0.9)
        coverage = render_glyph(
            rng, samples.images[other], height, center, image_size, options.max_rotation
        )
        if (coverage > 0.5).any():
            image = paint(rng, image, coverage, options.min_contrast)
    index = int(rng.choice(candidates))
    height = image_size * rng.uniform(0.55, 0.95)
    center = tuple(half + rng.uniform(-0.08, 0.08, 2) * image_size)
    coverage = render_glyph(
        rng, samples.images[index], height, center, image_size, options.max_rotation
    )
    image = paint(rng, image, coverage, options.min_contrast)
    return Crop(finish(rng, image, options.max_noise), label, int(samples.ids[index]))
