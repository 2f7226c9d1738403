"""``<picture>`` with a dark ``<source>``: as the repository's host shows it, and as the theme does.

In HTML the reader chooses a shade, which no media query knows. So both pictures go into the page
with the theme's classes, in a box that scrolls sideways where the page is narrow.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PICTURE = re.compile(r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" '
                     r'srcset="(?P<dark>[^"]+)">\s*<img src="(?P<light>[^"]+)" '
                     r'alt="(?P<alt>[^"]+)">\s*</picture>\s*')


def both_shades(html: str) -> nodes.container | None:
    """Returns the two images of a ``<picture>``, ``None`` where it is written otherwise."""
    found = PICTURE.fullmatch(html)
    if not found:
        return None
    return nodes.container('', *(
        nodes.image(uri=found[shade], alt=found['alt'], classes=[f'only-{shade}'])
        for shade in ('light', 'dark')), classes=['picture'])


def replace_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces raw HTML pictures, before Sphinx looks for images to copy."""
    for raw in list(doctree.findall(nodes.raw)):
        if '<picture' not in raw.astext():
            continue
        box = both_shades(raw.astext())
        if box is None:
            LOGGER.warning('a <picture> needs a dark <source> and an <img> with src and alt',
                           location=raw)
            continue
        raw.replace_self(box)


def setup(app: Sphinx) -> dict:
    """Replaces pictures as soon as a page is read."""
    app.connect('doctree-read', replace_pictures, priority=100)
    return {'parallel_read_safe': True}
