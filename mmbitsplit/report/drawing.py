"""Draws detections onto images, and packs images into a page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmbitsplit.report.detections import Detections

LONGEST_SIDE = 560  # pixels of a picture in the report
QUALITY = 72
# Told apart by people who see red and green alike, too (Okabe and Ito's palette).
BOTH, LOST, NEW = '#56b4e9', '#d55e00', '#f0e442'
MASK_STRENGTH = 0.4


def read_image(path: str | Path) -> Image.Image:
    """Reads an image the right way up, in RGB."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert('RGB')


def draw_detections(image: Image.Image, detections: Detections, special: set[int], colour: str,
                    classes: Sequence[str], size: tuple[int, int] | None = None) -> Image.Image:
    """Draws boxes, labels and masks onto a copy of the image at the size of the report.

    Args:
        image: RGB.
        detections: In pixels of the original image.
        special: Indices of detections to stress: those that the other model does not make.
        colour: What those are drawn in.
        classes: Names of the classes.
        size: (height, width) that the detections are in; the image's own when not given.
    """
    factor = LONGEST_SIDE / max(image.size)
    target = tuple(max(1, round(factor * side)) for side in image.size)
    picture = image.resize(target, Image.Resampling.LANCZOS)
    height, width = size or (image.height, image.width)
    stretch = np.array([target[0] / width, target[1] / height] * 2)
    # Those that are special last, so that nothing lies over them.
    order = sorted(range(len(detections.labels)), key=lambda index: index in special)
    if detections.masks is not None:
        for index in order:
            picture = _with_mask(picture, detections.masks[index],
                                 colour if index in special else BOTH)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    for index in order:
        box = (np.array(detections.boxes[index]) * stretch).tolist()
        mine = colour if index in special else BOTH
        _draw_box(draw, box, mine, 4 if index in special else 2)
        label = detections.labels[index]
        name = classes[label] if label < len(classes) else str(label)
        _draw_label(draw, box, f'{name} {detections.scores[index]:.2f}', mine, font, target)
    return picture


def small_picture(image: Image.Image, longest: int) -> Image.Image:
    """Returns the image at a given longest side, pixels; small ones keep sharp edges."""
    factor = longest / max(image.size)
    how = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    return image.resize(tuple(max(1, round(factor * side)) for side in image.size), how)


def to_data_uri(image: Image.Image) -> str:
    """Packs an image into text that a page can hold."""
    buffer = io.BytesIO()
    image.save(buffer, 'WEBP', quality=QUALITY, method=4)
    return 'data:image/webp;base64,' + base64.b64encode(buffer.getvalue()).decode()


def _with_mask(picture: Image.Image, rle: dict, colour: str) -> Image.Image:
    from pycocotools import mask  # comes with mmdet

    pixels = mask.decode({**rle, 'counts': rle['counts'].encode()})  # (H, W) uint8
    strength = Image.fromarray((255 * MASK_STRENGTH * pixels).astype(np.uint8))
    strength = strength.resize(picture.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new('RGB', picture.size, colour), picture, strength)


def _draw_box(draw: ImageDraw.ImageDraw, box: list[float], colour: str, width: int) -> None:
    left, top, right, bottom = box
    right, bottom = max(left, right), max(top, bottom)
    # A dark edge outside: light lines are seen on light images too.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline='#202020')
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)


def _draw_label(draw: ImageDraw.ImageDraw, box: list[float], text: str, colour: str,
                font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = right + 6, bottom + 4
    x = min(max(0, box[0]), max(0, size[0] - wide))
    y = box[1] - high if box[1] >= high else min(box[3], size[1] - high)
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 3, y + 1), text, fill='#101010' if colour != LOST else '#ffffff', font=font)
