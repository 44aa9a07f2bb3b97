import inspect
import re
from pathlib import Path

import pytest

import sdsl_jax


@pytest.mark.parametrize("name", sdsl_jax.__all__)
def test_public_names_are_there_and_documented(name):
    value = getattr(sdsl_jax, name)
    assert callable(value)
    assert inspect.getdoc(value)
    assert f"`{name}`" in sdsl_jax.__doc__
    assert name in dir(sdsl_jax)


def test_the_documentation_lists_the_public_names():
    """In Markdown too, for readers of the repository, where nothing is made from docstrings."""
    page = (Path(__file__).parent.parent / "docs/api.md").read_text("utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\([\w.#-]+\) +\| \w[^|]+\|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(sdsl_jax.__all__)


def test_what_completion_offers():
    assert [name for name in dir(sdsl_jax) if not name.startswith("__")] == sdsl_jax.__all__


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'speculates'"):
        sdsl_jax.speculates  # noqa: B018
