"""Commands and links of the pages are those of the repository."""

import re
from pathlib import Path

import pytest

from mmbitsplit.cli.command import make_parser
from mmbitsplit.cli.main import COMMANDS

PROJECT = Path(__file__).resolve().parents[2]
READMES = [PROJECT / 'README.md', PROJECT / 'README_zh-CN.md']
PAGES = [*READMES, PROJECT / 'CONTRIBUTING.md', PROJECT / 'CHANGELOG.md',
         *sorted((PROJECT / 'docs').glob('*.md')), *sorted((PROJECT / 'configs').rglob('*.md')),
         PROJECT / 'results/README.md']
COMMAND = re.compile(r'python ((?:tools|benchmarks)/[\w/]+\.py)((?:[^`\n#]|\\\n)*)')
CODE = re.compile(r'^```\w*\n(.*?)^```|`([^`]+)`', re.DOTALL | re.MULTILINE)
SUBCOMMAND = re.compile(r'^mmbitsplit ([a-z-]+)((?:[^\n#]|\\\n)*)', re.MULTILINE)
TARGETS = re.compile(r'^make ((?:[a-z-]+ ?)+)', re.MULTILINE)
LINK = re.compile(r'\]\((?!https?:)([^)#\s]+)(?:#([^)]*))?\)')


def commands() -> list:
    """Scripts and the options that some page gives them."""
    found = {}
    for page in PAGES:
        for script, rest in COMMAND.findall(page.read_text(encoding='utf-8')):
            found.setdefault(script, set()).update(re.findall(r'(?<!\w)--[a-z0-9-]+', rest))
    return [pytest.param(script, options, id=script) for script, options in found.items()]


@pytest.mark.parametrize(('script', 'options'), commands())
def test_scripts_exist_and_know_the_options(script, options):
    path = PROJECT / script
    assert path.is_file()
    sources = [path, PROJECT / 'mmbitsplit/cli' / path.name, PROJECT / 'bench/commands' / path.name,
               *(PROJECT / 'mmbitsplit/cli').glob('co*.py'),  # what commands share
               PROJECT / 'mmbitsplit/cli/budget_arguments.py',
               PROJECT / 'benchmarks/method_names.py']
    text = '\n'.join(source.read_text(encoding='utf-8') for source in sources if source.is_file())
    unknown = {option for option in options if f"'{option}'" not in text}
    assert not unknown


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_subcommands_and_targets_exist(page):
    text = '\n'.join(block or inline for block, inline in CODE.findall(
        page.read_text(encoding='utf-8')))
    for name, rest in SUBCOMMAND.findall(text):
        parser = make_parser(COMMANDS[name].load(), 'mmbitsplit')
        unknown = set(re.findall(r'(?<!\w)--[a-z0-9-]+', rest)) - set(parser._option_string_actions)
        assert not unknown, name
    makefile = (PROJECT / 'Makefile').read_text()
    for targets in TARGETS.findall(text):
        assert all(f'\n{target}:' in makefile for target in targets.split()), targets


def test_the_table_of_commands_is_that_of_the_command():
    rows = re.findall(r'^\| `([a-z-]+)` \| .* \| `(tools/[\w/]+)\.py` \|',
                      (PROJECT / 'docs/command_line.md').read_text(), re.MULTILINE)
    assert {name: Path(script).name for name, script in rows} \
        == {name: command.module for name, command in COMMANDS.items()}
    assert all((PROJECT / f'{script}.py').is_file() for _, script in rows)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding='utf-8')):
        linked = page.parent / target
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), f'{target}#{anchor}'


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as the repository's host makes them."""
    text = re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'),
                  flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)$', text, re.MULTILINE)}


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
