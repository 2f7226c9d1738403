"""A ``<picture>`` of a page becomes a light and a dark image."""

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / 'docs'


@pytest.fixture
def shades():
    return importlib.import_module('picture_shades')


def test_every_picture_of_a_page_has_both_shades(shades):
    pictures = [picture for page in DOCS.glob('*.md')
                for picture in re.findall(r'<picture>.*?</picture>', page.read_text(), re.DOTALL)]
    assert len(pictures) == 2
    for picture in pictures:
        light, dark = shades.both_shades(picture)
        assert light['classes'] == ['only-light'] and dark['classes'] == ['only-dark']
        assert light['uri'].replace('light', 'dark') == dark['uri']
        assert light['alt'] == dark['alt'] != ''
        assert (DOCS / light['uri']).is_file() and (DOCS / dark['uri']).is_file()


def test_a_picture_without_a_dark_shade_is_none(shades):
    assert shades.both_shades('<picture>\n<img src="a.svg" alt="a">\n</picture>') is None
