import gzip
import json
import sys

import numpy as np
import pytest

from sdsl_jax.config import DataConfig, DomainConfig
from sdsl_jax.data import domains, load_dataset
from sdsl_jax.data.domains import SourceMissing, domain_files, domain_identity, load_domain
from sdsl_jax.errors import SdslError


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(DataConfig(sequence_length=16))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that must not be imported."""
    folder = tmp_path / "site" / "some_texts"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "data" / "b.py").write_text("x = 1\n" * 40)
    (folder / "data" / "a.md").write_text("# Title\n" * 40)
    (folder / "data" / "deep" / "c.jsonl").write_text(
        json.dumps({"passage": "prose é " * 40}) + "\n"
    )
    (folder / "data" / "picture.png").write_bytes(b"\x89PNG")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def text_of(source, dataset, **settings):
    found = load_domain(DomainConfig("some", str(source), **settings), dataset, 4)
    return dataset.tokenizer.decode(found.ids), found


def test_the_validation_split_is_that_of_the_corpus(dataset):
    found = load_domain(DomainConfig("same years", "validation"), dataset, 4)
    np.testing.assert_array_equal(found.windows(9), dataset.text("validation").windows(9))
    assert found.bytes_per_token == dataset.bytes_per_token["validation"]
    assert domain_identity(DomainConfig("same years", "validation")) == []


def test_files_and_folders(dataset, tmp_path):
    (tmp_path / "a.txt").write_text("first text " * 30)
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"body": f"row {i} " * 9}) for i in range(3))
    )
    text, found = text_of(tmp_path / "a.txt", dataset)
    assert text == "first text " * 30
    assert found.windows(5).shape == (5, 17)
    assert found.bytes_per_token == 1
    joined, _ = text_of(tmp_path, dataset, text_column="body")
    assert joined.split("\0") == ["first text " * 30, *(f"row {i} " * 9 for i in range(3))]


def test_what_a_folder_leaves_out_is_noted(dataset, tmp_path):
    for name in ("a.txt", ".b.txt", "c.txt.gz"):
        (tmp_path / name).write_text("first text " * 30)
    notes = []
    load_domain(DomainConfig("some", str(tmp_path)), dataset, 4, notes.append)
    assert notes == [
        f"of the 'some' domain folder {tmp_path}, 1 file is read; left out: 1 compressed (c.txt.gz; name the file itself to "
        "read it), 1 hidden (.b.txt)."
    ]


def test_a_small_file_that_stands_for_very_much_text_is_not_read_into_memory(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(domains, "LARGEST_TEXT", 1_500_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * 3_000_000))
    with pytest.raises(
        SdslError, match="'some' cannot be read: it holds more than 1,500,000 characters"
    ):
        load_domain(DomainConfig("some", str(tmp_path / "a.txt.gz")), dataset, 4)


def test_a_package_is_read_without_importing_it(dataset, package):
    text, _ = text_of("package:some_texts/data/**/*", dataset, text_column="passage")
    assert text.split("\0") == ["# Title\n" * 40, "x = 1\n" * 40, "prose é " * 40]
    text, _ = text_of("package:some_texts/data/*.py", dataset)
    assert text == "x = 1\n" * 40
    assert "some_texts" not in sys.modules
    domain = DomainConfig("some", "package:some_texts/data/*.py")
    before = domain_identity(domain)
    (package / "data" / "d.py").write_text("y = 2\n")
    assert len(before) == 1
    assert len(domain_identity(domain)) == 2


def test_of_a_large_text_every_kth_piece_is_taken(dataset, tmp_path, monkeypatch):
    """Ten letters of 1,000 each; 3,000 bytes are allowed, so that every fourth piece of 1,000 is taken."""
    (tmp_path / "a.txt").write_text("".join(letter * 1000 for letter in "abcdefghij"))
    monkeypatch.setattr(domains, "MOST_BYTES", 3000)
    monkeypatch.setattr(domains, "_PIECE_CHARACTERS", 1000)
    text, _ = text_of(tmp_path / "a.txt", dataset)
    assert text == "\0".join(letter * 1000 for letter in "aei")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "package:no_such_texts/a.txt",
            "no_such_texts, which is not installed; `pip install --no-deps no_such_texts`",
        ),
        ("nowhere.txt", "'some' names nowhere.txt, which does not exist"),
    ],
)
def test_what_is_not_there_is_told_from_what_is_wrong(dataset, source, message):
    domain = DomainConfig("some", source)
    with pytest.raises(SourceMissing, match=message):
        load_domain(domain, dataset, 4)
    assert domain_identity(domain) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:some_texts", "it must read package:NAME/PATH"),
        ("package:some_texts/../other/*.py", "it must read package:NAME/PATH"),
        ("package:some.texts/a.py", "it must read package:NAME/PATH"),
        ("package:some_texts/**py", "is no pattern"),
        ("package:some_texts/*.rst", "holds no file of the kinds .txt, .py, .md, .jsonl, .parquet"),
        (
            "package:some_texts/data/deep/c.jsonl",
            r"'some' cannot be read: line 1 .* no text in the column 'text' \(text_column",
        ),
        (
            "package:some_texts/__init__.py",
            "holds 31 tokens, 1 sequences of 16; it must hold at least 4",
        ),
    ],
)
@pytest.mark.usefixtures("package")
def test_wrong_sources_are_one_sentence(dataset, source, message):
    with pytest.raises(SdslError, match=message) as caught:
        load_domain(DomainConfig("some", source), dataset, 4)
    assert not isinstance(caught.value, SourceMissing)
    assert str(caught.value).count("\n") == 0


def test_unreadable_characters_are_named(dataset, tmp_path):
    domain = DomainConfig("some", str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(
        SdslError, match=r"'some' cannot be read: .* is not valid UTF-8 \(byte 3 is 0xff"
    ):
        load_domain(domain, dataset, 4)
    assert domain_files(domain) == [tmp_path / "a.txt"]
