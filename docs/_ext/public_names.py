"""``public-names``: the documentation of every name in a package's ``__all__``, from docstrings."""

import importlib
import inspect

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def autodoc_lines(package: str) -> list[str]:
    """Returns an autodoc directive for each public name; names are imported when asked for.

    Raises:
        ValueError: A public class or function has no docstring.
    """
    module = importlib.import_module(package)
    lines = []
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value) or not callable(value):
            continue
        if not value.__doc__:
            raise ValueError(f'{package}.{name} is public and has no docstring.')
        kind = 'class' if inspect.isclass(value) else 'function'
        lines += [f'.. auto{kind}:: {package}.{name}',
                  *(['   :members:'] if kind == 'class' else []), '']
    return lines


class PublicNames(SphinxDirective):
    """``public-names``: documents a package; for reStructuredText pages."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns what autodoc makes of each name."""
        self.env.note_reread()  # autodoc notes the files of functions, not that of __all__
        try:
            lines = autodoc_lines(self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes('\n'.join(lines))


def setup(app: Sphinx) -> dict:
    """Registers the directive."""
    app.add_directive('public-names', PublicNames)
    return {'parallel_read_safe': True}
