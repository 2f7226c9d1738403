"""Links to files of the repository that are no pages: shown as code instead of broken links.

Pages are read in two places, on the repository's host, where ``../configs`` opens a folder, and as
HTML, which holds the pages alone. Links that lead out of ``docs/`` must name a file that exists.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def outside_links(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces links that leave the folder of the pages by the path they name."""
    from sphinx.addnodes import download_reference, pending_xref

    source = Path(app.srcdir)
    page = Path(doctree['source'])
    for link in [*doctree.findall(pending_xref), *doctree.findall(download_reference),
                 *doctree.findall(nodes.reference)]:
        target = str(link.get('reftarget') or link.get('refuri') or '')
        if not target.startswith('../'):
            continue
        path = (page.parent / target.partition('#')[0]).resolve()
        if path.is_relative_to(source):
            continue
        if not path.exists():
            LOGGER.warning('%s links to %s, which does not exist', page, target)
        name = str(path.relative_to(source.parent)) if path.is_relative_to(source.parent) \
            else target
        text = link.astext()
        words = [nodes.literal(name, name)] if text in (name, target) else [
            nodes.inline(text, text), nodes.Text(' ('), nodes.literal(name, name), nodes.Text(')')]
        link.replace_self(words)


def setup(app: Sphinx) -> dict:
    """Replaces links as soon as a page is read."""
    app.connect('doctree-read', outside_links, priority=100)
    return {'parallel_read_safe': True}
