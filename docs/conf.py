"""Sphinx settings; ``make docs`` builds the pages into docs/_build/html."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / '_ext')]

from mmbitsplit.version import __version__  # noqa: E402

project = 'mmbitsplit'
author = 'the mmbitsplit authors'
copyright = author
version = release = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'docstring_sources',
              'option_tables', 'picture_shades', 'public_names', 'repository_links']
exclude_patterns = ['_build']
html_extra_path = ['llms.txt']  # for coding agents; made by make_llms.py
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
myst_heading_anchors = 3
myst_enable_extensions = ['colon_fence']
highlight_language = 'none'  # a block that names no language is a command

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True  # a lambda as it is written, not as it is printed
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'mmbitsplit {release}'
html_static_path = ['_static']
html_css_files = ['pages.css']
html_show_copyright = False
