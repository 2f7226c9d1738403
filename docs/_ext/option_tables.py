"""Directives that make tables of options from the dataclasses that define them.

``options`` takes the dotted name of a dataclass; with ``:fields:`` the table has no defaults (rows
of a file are no options), with ``:without: NAME`` that field is left out. ``methods`` makes a
section of every registered method.
"""

import importlib
import inspect
from collections.abc import Sequence

from docutils import nodes
from docutils.parsers.rst import directives
from explained_options import Option, explained_options
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def markdown_table(rows: Sequence[Option], with_defaults: bool = True) -> str:
    """Returns options as a Markdown table."""
    head = ['Key', 'Type', *(['Default'] if with_defaults else []), 'Meaning']
    lines = [head, ['---'] * len(head)]
    for row in rows:
        default = [_code(row.default) if row.default else 'see below'] if with_defaults else []
        lines.append([_code(row.name), row.type.replace('|', r'\|'), *default,
                      row.meaning.replace('|', r'\|')])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def methods_page() -> str:
    """Returns a section of each method, the default first: what it is, sets and takes."""
    from mmbitsplit.methods import METHODS
    from mmbitsplit.structures import QuantSpec

    parts = []
    default = QuantSpec().method['type']
    for name in sorted(METHODS, key=lambda name: (name != default, name.lower())):
        cls = METHODS[name]
        about = inspect.cleandoc(cls.__doc__ or '').split('Args:')[0].strip()
        parts += [f'### {name}', *(['The default.'] if name == default else []), about]
        if cls().defaults():
            parts.append('Unless the config says otherwise it sets '
                         + ' and '.join(f'`{part}={_dict_words(options)}`'
                                        for part, options in cls().defaults().items()) + '.')
        rows = explained_options(cls)
        parts.append(markdown_table(rows) if rows else 'No options.')
    return '\n\n'.join(parts)


def _code(text: str) -> str:
    return f'`{text}`' if text != 'required' else text


def _dict_words(options) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in options.items())})'


class OptionsDirective(SphinxDirective):
    """``options``: a table of the fields of a dataclass."""

    required_arguments = 1
    option_spec = {'fields': directives.flag, 'without': directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Returns the table."""
        module, _, name = self.arguments[0].rpartition('.')
        cls = getattr(importlib.import_module(module), name)
        self.env.note_dependency(inspect.getsourcefile(cls))
        try:
            rows = explained_options(cls)
        except ValueError as error:
            raise self.error(str(error)) from error
        left_out = self.options.get('without')
        if left_out and left_out not in {row.name for row in rows}:
            raise self.error(f'{self.arguments[0]} has no field {left_out} to leave out.')
        rows = [row for row in rows if row.name != left_out]
        return self.parse_text_to_nodes(markdown_table(rows, 'fields' not in self.options))


class MethodsDirective(SphinxDirective):
    """``methods``: a section of each registered method."""

    def run(self) -> list[nodes.Node]:
        """Returns the sections."""
        self.env.note_reread()
        try:
            text = methods_page()
        except ValueError as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict:
    """Registers both directives."""
    app.add_directive('options', OptionsDirective)
    app.add_directive('methods', MethodsDirective)
    return {'parallel_read_safe': True}
