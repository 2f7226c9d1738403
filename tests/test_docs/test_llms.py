"""docs/llms.txt says what the pages say."""

import importlib.util
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / 'docs'
SPEC = importlib.util.spec_from_file_location('make_llms', DOCS / 'make_llms.py')
make_llms = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_llms)


def test_it_is_up_to_date():
    assert (DOCS / 'llms.txt').read_text(encoding='utf-8') == make_llms.llms_text(), \
        'run: python docs/make_llms.py'


def test_it_names_every_page_once_and_nothing_else():
    text = make_llms.llms_text()
    linked = re.findall(r'^- \[[^\]]+\]\(([^)]+)\)', text, re.MULTILINE)
    pages = {path.name for suffix in ('md', 'rst') for path in DOCS.glob(f'*.{suffix}')}
    assert sorted(linked) == sorted(pages - {'index.md'})


def test_a_page_is_told_by_title_first_sentences_and_sections(tmp_path):
    (tmp_path / 'index.md').write_text(
        '# name\n\nWhat it [is](a.md).\n\n```{toctree}\n:caption: Use\n\na\nb\n```\n')
    (tmp_path / 'b.md').write_text('# Other\n\n## First\n\nOf the section.\n')
    (tmp_path / 'a.md').write_text(
        '# A page\n\n```\n## no section\n```\n\n| a | table |\n\nIt says [this](b.md).\n\n'
        '## First\n\nMore.\n\n## `second`\n')
    assert make_llms.llms_text(tmp_path) == (
        '# name\n\n> What it is.\n\n## Use\n\n'
        '- [A page](a.md): It says this. Sections: First; `second`.\n'
        '- [Other](b.md): Sections: First.\n')
