"""The package gives functions, also after their files were imported."""

import inspect

import pytest

import mmbitsplit.apis


@pytest.mark.parametrize('name', mmbitsplit.apis.__all__)
def test_every_name_is_a_function(name):
    for _ in range(2):
        assert inspect.isfunction(getattr(mmbitsplit.apis, name))


def test_an_unknown_name():
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = mmbitsplit.apis.no_such_name
