"""Commands and links of the pages are those of the repository."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
READMES = [PROJECT / 'README.md', PROJECT / 'README_zh-CN.md']
PAGES = [*READMES, *sorted((PROJECT / 'docs').glob('*.md'))]
COMMAND = re.compile(r'python ((?:tools|benchmarks)/[\w/]+\.py)((?:[^`\n#]|\\\n)*)')
LINK = re.compile(r'\]\((?!https?:)([^)#\s]+)(?:#([^)]*))?\)')


def commands() -> list:
    """Scripts and the options that some page gives them."""
    found = {}
    for page in PAGES:
        for script, rest in COMMAND.findall(page.read_text(encoding='utf-8')):
            found.setdefault(script, set()).update(re.findall(r'(?<!\w)--[a-z-]+', rest))
    return [pytest.param(script, options, id=script) for script, options in found.items()]


@pytest.mark.parametrize(('script', 'options'), commands())
def test_scripts_exist_and_know_the_options(script, options):
    path = PROJECT / script
    assert path.is_file()
    sources = [path, PROJECT / 'mmbitsplit/cli' / path.name,
               *(PROJECT / 'mmbitsplit/cli').glob('co*.py')]  # what commands share
    text = '\n'.join(source.read_text(encoding='utf-8') for source in sources if source.is_file())
    unknown = {option for option in options if f"'{option}'" not in text}
    assert not unknown


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = [target for target, _ in LINK.findall(page.read_text(encoding='utf-8'))
              if not (page.parent / target).exists()]
    assert not broken


def test_both_readmes_hold_the_same_commands_and_links():
    one, other = (path.read_text(encoding='utf-8') for path in READMES)
    assert COMMAND.findall(one) == COMMAND.findall(other)
    links = [sorted(link for link in LINK.findall(text) if 'README' not in link[0])
             for text in (one, other)]
    assert links[0] == links[1]
    figures = [sorted(re.findall(r'\d+\.\d+', text)) for text in (one, other)]
    assert figures[0] == figures[1]


def test_the_readme_is_short():
    for path in READMES:
        assert len(path.read_text(encoding='utf-8').splitlines()) < 200
