"""The picture is a picture."""

import numpy as np
import pytest

from demo.pictures import comparison_figure


def test_figure_is_a_png_that_shows_the_images(tmp_path):
    cv2 = pytest.importorskip('cv2')
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 255
    sizes = []
    for rows in ([(red, red)], [(red, red), (red, red)]):
        path = tmp_path / f'{len(rows)}.png'
        comparison_figure(rows, ('float', 'quantized'), ['demo'] * len(rows), str(path))
        assert path.read_bytes().startswith(b'\x89PNG')
        image = cv2.imread(str(path))
        sizes.append(image.shape)
        is_red = (image[..., 2] > 250) & (image[..., 1] < 5) & (image[..., 0] < 5)
        assert is_red.mean() > 0.2
    assert sizes[1][0] > sizes[0][0] and sizes[1][1] == sizes[0][1]
