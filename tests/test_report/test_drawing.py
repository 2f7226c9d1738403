"""What is drawn is where it should be, in the colour it should have."""

import base64
import io

import numpy as np
import pytest

from mmbitsplit.report.detections import Detections

Image = pytest.importorskip('PIL.Image')
from mmbitsplit.report.drawing import (  # noqa: E402
    BOTH,
    LONGEST_SIDE,
    LOST,
    draw_detections,
    read_image,
    small_picture,
    to_data_uri,
)

GREY = Image.new('RGB', (200, 100), '#808080')


def share_of(picture, colour: str, tolerance: int = 3) -> float:
    wanted = np.array([int(colour[place:place + 2], 16) for place in (1, 3, 5)])
    return float((np.abs(np.asarray(picture).astype(int) - wanted).max(-1) <= tolerance).mean())


def test_special_detections_have_their_colour():
    found = Detections([[20, 20, 90, 80], [120, 20, 190, 80]], [0.9, 0.5], [0, 7])
    plain = draw_detections(GREY, found, set(), LOST, ['cat'])
    marked = draw_detections(GREY, found, {1}, LOST, ['cat'])
    assert plain.size == marked.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert share_of(plain, BOTH) > 0 and share_of(plain, LOST) == 0
    left, right = marked.crop((0, 0, LONGEST_SIDE // 2, 999)), marked.crop(
        (LONGEST_SIDE // 2, 0, LONGEST_SIDE, LONGEST_SIDE // 2))
    assert share_of(left, LOST) == 0 < share_of(right, LOST)


def test_boxes_are_in_the_original_image():
    found = Detections([[0, 0, 1000, 500]], [0.9], [0])
    half = Detections([[0, 0, 100, 50]], [0.9], [0])
    whole_of_large = draw_detections(GREY, found, set(), LOST, ['cat'], (500, 1000))
    half_of_own = draw_detections(GREY, half, set(), LOST, ['cat'])
    corner = (LONGEST_SIDE - 1, LONGEST_SIDE // 2 - 1)
    assert whole_of_large.getpixel(corner) != (128, 128, 128)
    assert half_of_own.getpixel(corner) == (128, 128, 128)


def test_a_mask_tints_its_pixels_only():
    mask_api = pytest.importorskip('pycocotools.mask')
    pixels = np.zeros((100, 200), np.uint8, order='F')
    pixels[:, :100] = 1
    mask = {'size': [100, 200], 'counts': mask_api.encode(pixels)['counts'].decode()}
    picture = draw_detections(GREY, Detections([[0, 0, 0, 0]], [0.9], [0], [mask]), set(), LOST,
                              ['cat'])
    middle = LONGEST_SIDE // 4
    assert picture.getpixel((LONGEST_SIDE // 3, middle)) != (128, 128, 128)
    assert picture.getpixel((LONGEST_SIDE * 3 // 4, middle)) == (128, 128, 128)


@pytest.mark.parametrize('box', [[5, 5, 5, 5], [50, 50, 40, 40], [-20, -20, 500, 500]])
def test_odd_boxes_are_drawn(box):
    draw_detections(GREY, Detections([box], [0.4], [0]), {0}, LOST, ['cat'])


def test_a_picture_in_text_is_the_picture(tmp_path):
    path = tmp_path / 'image.png'
    GREY.save(path)
    uri = to_data_uri(small_picture(read_image(path), 64))
    assert uri.startswith('data:image/webp;base64,')
    again = Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1])))
    assert again.size == (64, 32)
    assert share_of(again.convert('RGB'), '#808080', 4) == 1
