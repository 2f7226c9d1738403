"""Every option of every dataclass has an explanation; one without is an error."""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from mmbitsplit import structures
from mmbitsplit.methods import METHODS

SPECS = [value for name, value in vars(structures).items() if name.endswith('Spec')]
ROWS = [structures.LayerReport, structures.FloatRemainder]


@pytest.fixture
def explained():
    return importlib.import_module('explained_options')


@pytest.fixture
def tables():
    return importlib.import_module('option_tables')


@pytest.mark.parametrize('cls', [*SPECS, *ROWS, *METHODS.values()], ids=lambda cls: cls.__name__)
def test_every_option_is_explained(cls, explained):
    options = explained.explained_options(cls)
    assert [option.name for option in options] == [item.name for item in dataclasses.fields(cls)]
    assert all(len(option.meaning) > 5 and option.type for option in options)


def test_a_key_without_explanation_is_refused(explained):
    @dataclass(frozen=True)
    class Half:
        """Half explained.

        Args:
            told: Something.
        """

        told: int = 1
        untold: int = 2

    with pytest.raises(ValueError, match='Half: untold not explained'):
        explained.explained_options(Half)


def test_an_explanation_without_key_is_refused(explained):
    @dataclass(frozen=True)
    class Stale:
        """Explains what is gone.

        Args:
            here: Something.
            gone: Nothing.
        """

        here: int = 1

    with pytest.raises(ValueError, match='gone explained but not there'):
        explained.explained_options(Stale)


def test_types_defaults_and_long_meanings(explained):
    @dataclass(frozen=True)
    class Many:
        """All sorts.

        Args:
            a, b: Two of
                a kind.
            c: Last.
        Raises:
            Nothing: Ever.
        """

        a: Annotated[int, structures.Range(0, 8)] | Literal['x', 'y'] | None = None
        b: Mapping[str, Any] = field(default_factory=dict)
        c: tuple[float, ...] = (1.0,)

    assert [dataclasses.astuple(option) for option in explained.explained_options(Many)] == [
        ('a', "int from 0 to 8 or `'x'`, `'y'` or None", 'None', 'Two of a kind.'),
        ('b', 'dict', '{}', 'Two of a kind.'),
        ('c', 'list of float', '[1.0]', 'Last.')]


def test_a_required_option_and_one_with_bars_make_a_whole_table_row(explained, tables):
    @dataclass(frozen=True)
    class Bars:
        """Bars.

        Args:
            match: One | other.
        """

        match: str

    lines = tables.markdown_table(explained.explained_options(Bars)).splitlines()
    assert lines[2] == r'| `match` | str | required | One \| other. |'


def test_the_page_of_methods_names_each_method_and_its_options(tables):
    page = tables.methods_page()
    for name, cls in METHODS.items():
        section = page.split(f'### {name}\n')[1].split('\n### ')[0]
        assert all(f'| `{item.name}` |' in section for item in dataclasses.fields(cls))
