"""Source files joined into a few units that include them, so that headers are parsed a few times.

Each of onedl-mmcv's 78 files parses torch's headers for 10 to 15 seconds. Files that define the
same name at file level cannot share a unit; which do is read from the sources themselves.
"""

import re
from dataclasses import dataclass
from pathlib import Path

COMMENT_OR_LITERAL = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
DIRECTIVE = re.compile(r'^[ \t]*#(?:[^\n\\]|\\.|\\\n)*', re.MULTILINE | re.DOTALL)
DEFINE = re.compile(r'^[ \t]*#[ \t]*define[ \t]+(\w+)', re.MULTILINE)
USING_NAMESPACE = re.compile(r'\busing\s+namespace\b')
SCOPE = re.compile(r'^(?:inline\s+)?namespace\b[^()=]*$|^extern\s*(?:LITERAL)?$')
TYPE = re.compile(r'^(?:typedef\s+)?(?:struct|class|union|enum(?:\s+(?:class|struct))?)\b([^()]*)$')
FUNCTION = re.compile(r'([\w:~]+)\s*\(')
TYPEDEF = re.compile(r'^typedef\b.*?(\w+)\s*$', re.DOTALL)
ALIAS = re.compile(r'^using\s+(\w+)\s*=')
VARIABLE = re.compile(r'^[^()=]*?(\w+)\s*(?:\[[^\]]*\]\s*)?=')


@dataclass(frozen=True)
class Source:
    """What has to be known of a file to place it.

    Args:
        path: Where it lies, below the folder of all originals.
        size: Bytes; how long it takes to compile, roughly.
        names: What it defines at file level.
        macros: What it defines for the preprocessor.
        opens_namespace: Whether it says `using namespace`.
    """

    path: Path
    size: int
    names: frozenset[str]
    macros: tuple[str, ...] = ()
    opens_namespace: bool = False


def read_source(root: Path, path: Path) -> Source:
    """The file at `root / path`."""
    text = (root / path).read_text(encoding='utf-8', errors='replace')
    code = COMMENT_OR_LITERAL.sub(_blank, text)
    return Source(path, len(text), defined_names(text), tuple(dict.fromkeys(DEFINE.findall(code))),
                  bool(USING_NAMESPACE.search(code)))


def defined_names(text: str) -> frozenset[str]:
    """Types, functions, aliases and variables that a C++ file defines at file level.

    Namespaces count as file level, specializations as the type. A function has the number of its
    parameters after its name, as in "add/2": overloads of another number cannot clash.
    """
    code = DIRECTIVE.sub('', COMMENT_OR_LITERAL.sub(_blank, text))
    names: set[str] = set()
    head, depth, closes_head = '', 0, False
    for token in re.findall(r'[{};]|[^{};]+', code):
        if depth:  # inside a body
            depth += {'{': 1, '}': -1}.get(token, 0)
            if not depth and closes_head:
                head = ''
        elif token == '{':
            stated = _without_template(head)
            if SCOPE.match(stated):
                head = ''
                continue
            depth, closes_head = 1, not _names_of_statement(stated, names, has_body=True)
        elif token in ';}':
            _names_of_statement(_without_template(head), names, has_body=False)
            head = ''
        else:
            head += token
    return frozenset(names)


def deal(sources: list[Source], units: int) -> list[list[Source]]:
    """Spread the files over units of about equal size, no two that clash in one.

    Args:
        sources: All files.
        units: How many at least; more are made where files clash that often.

    Returns:
        The units, the one with the largest file first: it takes longest. A file that opens a
        namespace comes last in its unit, where nobody sees it.
    """
    dealt: list[list[Source]] = [[] for _ in range(min(units, len(sources)))]
    for source in sorted(sources, key=lambda source: (-source.size, str(source.path))):
        free = [unit for unit in dealt if not any(source.names & other.names for other in unit)]
        if not free:
            free = [[]]
            dealt += free
        min(free, key=lambda unit: sum(other.size for other in unit)).append(source)
    return [sorted(unit, key=lambda source: source.opens_namespace) for unit in dealt]


def unit_text(unit: list[Source], originals: str) -> str:
    """A file that includes the unit's files, each followed by taking its macros back.

    Args:
        unit: The files in order.
        originals: Path from the including file to the folder of the originals.
    """
    lines = []
    for source in unit:
        lines.append(f'#include "{originals}/{source.path.as_posix()}"')
        lines += [f'#undef {macro}' for macro in source.macros]
    return '\n'.join(lines) + '\n'


def _blank(found: re.Match) -> str:
    return ' LITERAL ' if found[0][0] in '"\'' else ' '


def _without_template(head: str) -> str:
    """`template <class T> struct A` as `struct A`."""
    head = head.strip()
    while head.startswith('template'):
        depth, start = 0, head.find('<')
        if start < 0:
            break
        for index in range(start, len(head)):
            depth += {'<': 1, '>': -1}.get(head[index], 0)
            if not depth:
                break
        head = head[index + 1:].strip()
    return head


def _count_parameters(text: str) -> int:
    """Parameters in what follows a function's opening parenthesis."""
    depth, commas, inside = 1, 0, ''
    for character in text:
        depth += {'(': 1, ')': -1}.get(character, 0)
        if not depth:
            break
        commas += character == ',' and depth == 1
        inside += character
    return commas + 1 if inside.strip() not in ('', 'void') else 0


def _names_of_statement(head: str, names: set[str], *, has_body: bool) -> bool:
    """Add what a statement defines; whether more of it may follow its body."""
    if has_body:
        kind = TYPE.match(head)
        if kind:
            name = kind[1].split(':', 1)[0] if '::' not in kind[1] else kind[1]
            words = re.findall(r'[\w:]+', name.split('<', 1)[0])
            names.update(words[-1:])
            return True
        function = FUNCTION.search(head)
        if function:
            names.add(f'{function[1]}/{_count_parameters(head[function.end():])}')
            return False
    for pattern in (TYPEDEF, ALIAS, VARIABLE):
        found = pattern.match(head)
        if found:
            names.add(found[1])
            break
    return True
