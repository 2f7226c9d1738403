"""Writes docs/llms.txt from the pages: what each is about and its sections, for coding agents.

    python docs/make_llms.py          # writes it
    python docs/make_llms.py --check  # says whether it is up to date
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
OUTPUT = DOCS / 'llms.txt'
TREE = re.compile(r'```\{toctree\}\n(.*?)```', re.DOTALL)
LINK = re.compile(r'!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])')


def llms_text(docs: Path = DOCS) -> str:
    """Returns the text: the index's own first paragraph, then its lists of pages."""
    index = (docs / 'index.md').read_text(encoding='utf-8')
    title, about = head_of(index)
    parts = [f'# {title}', f'> {about}']
    for body in TREE.findall(index):
        caption = re.search(r':caption: (.*)', body)[1]
        names = [line for line in body.splitlines() if line and not line.startswith(':')]
        parts.append('\n'.join([f'## {caption}', '', *(_line(docs, name) for name in names)]))
    return '\n\n'.join(parts) + '\n'


def head_of(page: str) -> tuple[str, str]:
    """Returns a page's title and its first sentences of plain text, empty where it has none."""
    _, _, rest = page.partition('# ')
    title, _, rest = rest.partition('\n')
    before = re.split(r'^## ', re.sub(r'```.*?```', '', rest, flags=re.DOTALL), maxsplit=1,
                      flags=re.MULTILINE)[0]
    for block in re.split(r'\n\s*\n', before):
        text = ' '.join(LINK.sub(r'\1', block).split())
        if text and text[0] not in '#|<-*`([0123456789>':
            return title.strip(), text
    return title.strip(), ''


def _line(docs: Path, name: str) -> str:
    page = (docs / f'{name}.md' if (docs / f'{name}.md').is_file() else docs / f'{name}.rst')
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.rst':
        return f'- [{text.splitlines()[0]}]({page.name})'
    title, about = head_of(text)
    plain = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    sections = [LINK.sub(r'\1', found) for found in re.findall(r'^## (.*)$', plain, re.MULTILINE)]
    said = [about] if about else []
    said += [f'Sections: {"; ".join(sections)}.'] if sections else []
    return f'- [{title}]({page.name}): {" ".join(said)}' if said else f'- [{title}]({page.name})'


def main() -> int:
    """Writes the file, or with ``--check`` compares it."""
    if '--check' in sys.argv[1:]:
        fresh = OUTPUT.is_file() and OUTPUT.read_text(encoding='utf-8') == llms_text()
        print('up to date' if fresh else f'{OUTPUT} is out of date: python docs/make_llms.py')
        return 0 if fresh else 1
    OUTPUT.write_text(llms_text(), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
