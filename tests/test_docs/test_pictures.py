"""Pictures: words stay inside their boxes and inside the picture; both shades; same bytes twice."""

import importlib

import pytest


@pytest.fixture
def pictures():
    return importlib.import_module('draw_pictures').PICTURES


@pytest.fixture
def themes():
    return importlib.import_module('theme').THEMES


@pytest.mark.parametrize('name', ['flow', 'lockstep'])
def test_words_fit(name, pictures, themes):
    canvas = pictures[name](themes['light'])
    renderer = canvas.figure.canvas.get_renderer()
    whole = canvas.figure.bbox
    boxes = [patch.get_window_extent(renderer) for patch in canvas.axis.patches
             if type(patch).__name__ == 'FancyBboxPatch']
    texts = [text for text in canvas.axis.texts if text.get_text()]
    assert texts and boxes
    for text in texts:
        extent = text.get_window_extent(renderer)
        assert whole.x0 <= extent.x0 and extent.x1 <= whole.x1, text.get_text()
        assert whole.y0 <= extent.y0 and extent.y1 <= whole.y1, text.get_text()
        for box in boxes:
            if box.contains(*extent.get_points().mean(0)):
                assert box.x0 < extent.x0 and extent.x1 < box.x1, text.get_text()
                assert box.y0 < extent.y0 and extent.y1 < box.y1, text.get_text()


@pytest.mark.parametrize('name', ['flow', 'lockstep'])
def test_words_do_not_touch_each_other(name, pictures, themes):
    canvas = pictures[name](themes['light'])
    renderer = canvas.figure.canvas.get_renderer()
    extents = [(text.get_text(), text.get_window_extent(renderer)) for text in canvas.axis.texts
               if text.get_text()]
    for number, (words, extent) in enumerate(extents):
        for other_words, other in extents[:number]:
            assert not extent.overlaps(other), (words, other_words)


@pytest.mark.parametrize('shade', ['light', 'dark'])
def test_words_can_be_read(shade, themes):
    page = {'light': 1.0, 'dark': 0.006}[shade]  # luminance of furo's pages
    theme = themes[shade]
    for fill in (theme.plain, theme.float_pass, theme.quantized, theme.solve):
        assert _contrast(_luminance(theme.text), _luminance(fill)) > 4.5, fill
    assert _contrast(_luminance(theme.text), page) > 7
    assert _contrast(_luminance(theme.faint), page) > 4.5


def test_pictures_are_drawn_alike_twice(tmp_path):
    draw_all = importlib.import_module('draw_pictures').draw_all
    first, second = tmp_path / 'a', tmp_path / 'b'
    first.mkdir()
    second.mkdir()
    for one, other in zip(draw_all(first), draw_all(second)):
        assert one.read_bytes() == other.read_bytes()


def _luminance(colour: str) -> float:
    """Relative luminance of a colour, as WCAG 2 defines it."""
    from matplotlib.colors import to_rgb
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
                        for value in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)
