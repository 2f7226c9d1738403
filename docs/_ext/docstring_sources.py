"""Keeps the lines of a ``Source: ...`` paragraph of a docstring together.

In the project's docstrings its second line is indented, which reStructuredText would take for a
list of definitions.
"""

import re

from sphinx.application import Sphinx

OPENING = re.compile(r'(Source|Differs from source): \S')


def joined(lines: list[str]) -> list[str]:
    """Returns lines with the indented ones after ``Source: ...`` at its level."""
    result, inside = [], False
    for line in lines:
        inside = bool(OPENING.match(line)) or (inside and line.startswith(' '))
        result.append(line.strip() if inside else line)
    return result


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = joined(lines)


def setup(app: Sphinx) -> dict:
    """Joins lines before anything else reads them."""
    app.connect('autodoc-process-docstring', _process, priority=1)
    return {'parallel_read_safe': True}
