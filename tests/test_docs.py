"""The documentation, without building it: nothing undescribed, unreachable, or long without contents."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import yaml
from reference_pages import DOCUMENTS, KINDS, PAGES, allowed
from site_pages import changelog, with_contents

from sdsl_jax.cli.commands import GROUPS
from sdsl_jax.config import StudyConfig, from_dict
from sdsl_jax.records.documents import schema_of
from sdsl_jax.records.tables import TABLES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# A name and its kind, and on the next line what it means.
ENTRY = r"^`([\w.]+)` <small>.+</small>\n: {3}(.*)$"
WRITTEN = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: make() for name, make in PAGES.items()}


def _settings(form: type) -> typing.Iterator[str]:
    """Keys of a file, those within sections by their names there."""
    hints = typing.get_type_hints(form)
    for f in dataclasses.fields(form):
        inner = hints[f.name]
        inner = typing.get_args(inner)[0] if typing.get_origin(inner) is tuple else inner
        if dataclasses.is_dataclass(inner):
            yield from _settings(inner)
        else:
            yield f.name


def _keys(schema: dict) -> typing.Iterator[str]:
    for name, entry in schema.items():
        yield name
        yield from _keys(entry.get("keys", {}))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix)
def test_every_setting_is_described(pages, kind):
    part = re.split(r"^## .*\{ #", pages["reference/settings.md"], flags=re.MULTILINE)
    (section,) = [text for text in part if text.startswith(f"{kind.prefix} }}")]
    found = re.findall(ENTRY, section, re.MULTILINE)
    assert sorted(name for name, _ in found) == sorted(_settings(kind.form))
    assert [name for name, meaning in found if not meaning] == []


def test_ranges_are_those_that_are_checked():
    limits = allowed(from_dict(StudyConfig, KINDS[0].example))
    assert limits["data.validation_fraction"] == "must lie in (0, 0.4]"
    assert limits["training.batch_size"] == "must be at least 1"
    assert limits["measure.temperature"] == "must not be negative"


def test_every_column_is_described(pages):
    page = pages["reference/records.md"]
    described = {name for name, meaning in re.findall(ENTRY, page, re.MULTILINE) if meaning}
    assert {f.name for form in TABLES.values() for f in dataclasses.fields(form)} == described
    assert re.findall(r"^## (\w+)\.csv", page, re.MULTILINE) == list(TABLES)


def test_every_key_of_a_document_is_described(pages):
    page = pages["reference/documents.md"]
    rows = re.findall(ENTRY, page, re.MULTILINE)
    shown = {name.rpartition(".")[2] for name, _ in rows}
    shown |= set(re.findall(r"^### (\w+)", page, re.MULTILINE))
    assert {key for form, _ in DOCUMENTS.values() for key in _keys(schema_of(form))} == shown
    assert [name for name, meaning in rows if not meaning] == []


def test_every_command_shows_its_help(pages):
    page = pages["reference/cli.md"]
    for name in (name for group in GROUPS.values() for name in group):
        assert f"\n### sdsl {name}\n" in page
        assert f"\n```text\nusage: sdsl {name} " in page
    assert "\x1b" not in page
    assert max(map(len, re.findall(r"```text\n(.*?)```", page, re.DOTALL)[0].splitlines())) <= 80


def test_long_pages_begin_with_their_contents(pages):
    written = {name: (DOCS / name).read_text("utf-8") for name in WRITTEN}
    changes = {"changelog.md": changelog(ROOT)}
    for name, text in (written | pages | changes).items():
        if len(text.split()) > 1500:
            assert "\n    [TOC]\n" in with_contents(text), name
    assert "[TOC]" not in with_contents("# Short\n\n## One\n\nA word.\n")


@pytest.mark.parametrize("name", WRITTEN)
def test_every_figure_says_what_it_shows(name):
    for text in re.findall(r"!\[(.*?)\]\(", (DOCS / name).read_text("utf-8")):
        assert len(text.split()) >= 3, text


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Reads what MkDocs writes as tags."""

    Loader.add_multi_constructor("", lambda loader, suffix, node: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]

    def files(entry) -> typing.Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for item in entry if isinstance(entry, list) else ():
            yield from files(item)
        for item in entry.values() if isinstance(entry, dict) else ():
            yield from files(item)

    tutorials = [f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.py")]
    assert sorted(files(nav)) == sorted([*WRITTEN, *PAGES, *tutorials, "changelog.md"])
