import json

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import Span, read_pieces, sources, write_text
from sdsl_jax.data.documents import documents
from sdsl_jax.data.tokenizer import BPETokenizer
from sdsl_jax.errors import SdslError


def split_texts(config, folder):
    spans = write_text(config, folder / "text")
    return {name: "".join(read_pieces(folder / "text", span)) for name, span in spans.items()}


def read_documents(path, column="text"):
    return ["".join(pieces) for pieces in documents(path, column)]


def test_later_years_of_the_embedded_corpus_are_the_test_split(tmp_path):
    texts = split_texts(DataConfig(), tmp_path)
    assert "Vice President Biden" in texts["test"]
    assert "Vice President Biden" not in texts["train"] + texts["validation"]
    assert texts["train"].startswith("Fellow-Citizens of the Senate and House of Representatives")
    earlier = split_texts(DataConfig(test_from_year=1990), tmp_path)
    assert texts["train"].startswith(earlier["train"][:-100])
    assert earlier["test"].endswith(texts["test"])


def test_validation_takes_whole_addresses_spread_over_time(tmp_path):
    texts = split_texts(DataConfig(validation_fraction=0.1), tmp_path)
    addresses = {name: text.split("\0") for name, text in texts.items()}
    everything = [address for split in addresses.values() for address in split]
    assert len(set(everything)) == len(everything)
    early = len(addresses["train"]) + len(addresses["validation"])
    assert abs(len(addresses["validation"]) - early / 10) < 1
    # The order of all, by time, without any split: validation addresses sit in it ten apart.
    ordered = split_texts(DataConfig(validation_fraction=0.4, test_from_year=1791), tmp_path)[
        "test"
    ].split("\0")
    places = [ordered.index(address) for address in addresses["validation"] if address in ordered]
    assert set(np.diff(places)) == {10}
    assert places[0] < 10
    assert places[-1] > early - 20


def test_own_files_of_every_kind(tmp_path):
    texts = ["first document " * 20, "second document é " * 20]
    (tmp_path / "a.txt").write_text(texts[0])
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    pandas.DataFrame({"other": [1, 2], "body": texts}).to_parquet(tmp_path / "c.parquet")
    assert read_documents(tmp_path / "a.txt") == texts[:1]
    assert read_documents(tmp_path / "b.jsonl") == texts
    assert read_documents(tmp_path / "c.parquet", "body") == texts
    (tmp_path / "out").mkdir()
    for source in ((str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")), str(tmp_path)):
        splits = split_texts(DataConfig(source=source), tmp_path / "out")
        assert "".join(splits.values()) == "\0".join([texts[0], *texts])
        (tmp_path / "c.parquet").unlink(missing_ok=True)


def test_a_folder_stands_for_its_files_in_order(tmp_path):
    (tmp_path / "later").mkdir()
    for name in ("b.txt", "a.jsonl", "later/a.txt", "notes.md"):
        (tmp_path / name).write_text("x")
    assert sources(DataConfig(source=str(tmp_path))) == [
        str(tmp_path / n) for n in ("a.jsonl", "b.txt", "later/a.txt")
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        SdslError, match=r"empty holds no file of the kinds \.txt, \.jsonl, \.parquet"
    ):
        sources(DataConfig(source=str(tmp_path / "empty")))


def test_ends_of_lines_become_newlines_wherever_the_reading_is_cut(tmp_path, monkeypatch):
    content = "one\r\ntwo\rthree – four\n\r\n五"
    (tmp_path / "a.txt").write_bytes(content.encode())
    (tmp_path / "b.jsonl").write_bytes(
        "\r\n".join(json.dumps({"text": t}) for t in content).encode()
    )
    for size in (1, 2, 3, 5, 1000):
        monkeypatch.setattr("sdsl_jax.user_files._READ_BYTES", size)
        assert read_documents(tmp_path / "a.txt") == ["one\ntwo\nthree – four\n\n五"]
        assert read_documents(tmp_path / "b.jsonl") == list(content)
        (tmp_path / "bad.txt").write_bytes("é".encode() * 9 + b"\xffabc")
        with pytest.raises(SdslError, match=r"not valid UTF-8 \(byte 18 is 0xff"):
            read_documents(tmp_path / "bad.txt")


@given(
    text=st.text(st.sampled_from("ab é。😀\n"), min_size=1),
    validation=st.floats(0.01, 0.4),
    test=st.floats(0.01, 0.4),
)
def test_a_cut_by_position_loses_nothing_and_divides_no_character(
    tmp_path_factory, text, validation, test
):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.txt").write_text(text)
    config = DataConfig(
        source=str(folder / "a.txt"), validation_fraction=validation, test_fraction=test
    )
    if not text.strip():
        with pytest.raises(SdslError, match="is empty"):
            split_texts(config, folder)
        return
    splits = split_texts(config, folder)
    assert "".join(splits.values()) == text
    size = len(text.encode())
    assert 0 <= len(splits["train"].encode()) - round(size * (1 - test - validation)) < 4
    assert -4 < len(splits["test"].encode()) - size * test <= 0.5


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for kind in ("txt", "jsonl", "parquet"):
        with pytest.raises(SdslError, match=rf"gone\.{kind} cannot be read \(No such file"):
            read_documents(tmp_path / f"gone.{kind}")
    (tmp_path / "cut.txt").write_bytes("abcé".encode()[:-1])
    with pytest.raises(SdslError, match=r"cut\.txt is not valid UTF-8 \(byte 3 is 0xc3"):
        read_documents(tmp_path / "cut.txt")
    pandas.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "a.parquet")
    for column, where in (("text", "row 2"), ("body", "the table")):
        with pytest.raises(
            SdslError, match=rf"{where} of the corpus file .* no text in the column '{column}'"
        ):
            read_documents(tmp_path / "a.parquet", column)


WORDS = st.lists(
    st.tuples(
        st.text(st.sampled_from("abtheis'29.,é。-"), min_size=1, max_size=8),
        st.sampled_from([" ", "\n", "  ", " \n", "\0", "\u00a0 ", "\t ", " \n\n "]),
    ),
    min_size=1,
    max_size=120,
)


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train(
        "the thesis states that 29 bees 's isn't 。é, \n\n it's  hers. " * 30, 290
    )


@given(words=WORDS, size=st.integers(64, 300))
def test_text_tokenised_in_pieces_is_text_tokenised_whole(tmp_path_factory, bpe, words, size):
    text = "".join(word + blank for word, blank in words)
    path = tmp_path_factory.mktemp("pieces") / "text"
    path.write_text(text)
    pieces = list(read_pieces(path, Span(0, path.stat().st_size), size))
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= size
    np.testing.assert_array_equal(
        np.concatenate([bpe.encode(piece) for piece in pieces]), bpe.encode(text)
    )


def test_text_without_blanks_is_cut_between_characters(tmp_path):
    path = tmp_path / "text"
    path.write_text("語😀é" * 50)
    for size in (4, 5, 6, 7, 100):
        assert "".join(read_pieces(path, Span(0, path.stat().st_size), size)) == "語😀é" * 50
