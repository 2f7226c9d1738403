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
              'option_tables', 'public_names', 'repository_links']
exclude_patterns = ['_build']
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
myst_heading_anchors = 3
myst_enable_extensions = ['colon_fence', 'dollarmath']

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'mmbitsplit {release}'
html_static_path = []
html_show_copyright = False
