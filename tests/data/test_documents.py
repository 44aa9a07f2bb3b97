import bz2
import codecs
import gzip
import json
import lzma

import pyarrow
import pytest
from pyarrow import parquet

from sdsl_jax.data import documents as module
from sdsl_jax.data.documents import documents
from sdsl_jax.errors import SdslError

TEXTS = ["größe of words", "second\nrow"]
ROWS = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()


def read(path, column="text"):
    return ["".join(pieces) for pieces in documents(path, column)]


def refused(path, message, column="text"):
    with pytest.raises(SdslError, match=message) as caught:
        read(path, column)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl", gzip.compress),
        ("a.JSONL.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.zst", lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)),
    ],
)
def test_compressed_rows_are_read(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(ROWS))
    assert read(tmp_path / name) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(TEXTS[0].encode(encoding))
    (tmp_path / "a.jsonl").write_bytes(ROWS.decode().encode(encoding))
    assert read(tmp_path / "a.txt") == TEXTS[:1]
    assert read(tmp_path / "a.jsonl") == TEXTS
    (tmp_path / "two.jsonl").write_bytes(
        (codecs.BOM_UTF8 + ROWS + b"\n") * 2
    )  # one file appended to another
    assert read(tmp_path / "two.jsonl") == TEXTS * 2


def test_nul_in_text_is_refused_with_its_number_and_first_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\0 and\0 more text of many words\n" + b"\0")
    refused(
        tmp_path / "a.txt", r"holds NUL \(U\+0000\) 3 times, first in line 2; NUL ends a document"
    )
    (tmp_path / "one.jsonl").write_bytes(b'{"text": "a\\u0000"}')
    refused(tmp_path / "one.jsonl", r"holds NUL \(U\+0000\) once, in line 1; NUL ends a document")
    (tmp_path / "a.jsonl").write_bytes(ROWS + b'\n\n{"text": "a \\u0000 of some more words"}\n')
    refused(tmp_path / "a.jsonl", r"holds NUL \(U\+0000\) once, in line 4;")
    parquet.write_table(
        pyarrow.table({"text": ["a", "b\0 and many other words"]}), tmp_path / "a.parquet"
    )
    refused(tmp_path / "a.parquet", "once, in row 2;")
    (tmp_path / "b.txt").write_bytes("words".encode("utf-16-le"))
    refused(
        tmp_path / "b.txt",
        "5 times, first in line 1 .so many say that it is UTF-16 without a byte-order mark",
    )
    (tmp_path / "b.jsonl").write_bytes(ROWS + b"\n\0\0\0\0")
    refused(tmp_path / "b.jsonl", "line 3 of the corpus file .* holds NUL .*: the file is damaged")


def test_nobody_waits_for_the_end_of_a_large_corpus_to_hear_of_nul(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_COUNTED", 20)
    (tmp_path / "a.jsonl").write_bytes(
        ROWS + b'\n{"text": "\\u0000 and some words"}' * 9 + b"\n{not read}"
    )
    refused(tmp_path / "a.jsonl", "at least 2 times, first in line 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, r"line 2 of the .* is not valid JSON \(it is nested too deeply\)"),
        (b'{"text": "a", }', r"line 2 .* \(.*, column 15\)"),
        (b'{"text": ' + b"9" * 5000 + b"}", r"line 2 .* is not valid JSON"),
        (b"<!DOCTYPE html><html>", r"line 2 .* begins like a web page"),
        (b'["text"]', "line 2 .* is not a JSON object"),
        (b'{"Text": "a", "id": 3}', r"line 2 .* \(text_column\); it has 'Text', 'id'\."),
        (
            b"{%s}" % b", ".join(b'"%s%d": 1' % (b"k" * 99, i) for i in range(9999)),
            r"line 2 .{,600}k…, …\.$",
        ),
        (b'{"text": null}', r"line 2 .* no text in the column 'text'"),
        (b'{"text": "\\ud800"}', r"line 2 .* half a surrogate pair"),
        (b'{"text": "caf\xe9"}', r"not valid UTF-8 \(byte \d+ is 0xe9; Latin-1"),
    ],
)
def test_a_row_that_is_none_is_one_sentence(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + content)
    refused(tmp_path / "a.jsonl", message)


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LINE", 2_000_000)
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "a"}\n{"text": "' + b"a" * 5_000_000)
    )
    refused(
        tmp_path / "a.jsonl.gz", "line 2 of the corpus file .* is longer than 2,000,000 characters"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.txt", b"PK\x03\x04" + b"\0" * 50, "a zip archive or an Excel workbook"),
        ("a.txt", b"PAR1" + b"\0" * 50, "a Parquet file"),
        ("a.txt.gz", b"plain", "not gzip, though its name says so"),
        ("a.txt.gz", gzip.compress(b"text" * 999, mtime=0)[:-20], "is truncated"),
        ("a.parquet", b"<html>" * 50, "is not a valid Parquet file"),
        ("a.parquet", gzip.compress(b"PAR1" * 9, mtime=0), "is not a valid Parquet file"),
        (
            "a.csv",
            b"a,b",
            "unknown kind; allowed are .txt, .jsonl, .parquet, and compressed text such as .jsonl.gz",
        ),
        ("a.gz", b"", "unknown kind"),
    ],
)
def test_what_is_something_else_is_called_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_columns_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    strings = {
        "large": pyarrow.array(TEXTS, pyarrow.large_string()),
        "coded": pyarrow.array(TEXTS).dictionary_encode(),
        "view": pyarrow.array(TEXTS, pyarrow.string_view()),
    }
    others = {
        "n": [1, 2],
        "list": [["a"], ["b"]],
        "bytes": [b"a", b"b"],
        "null": pyarrow.nulls(2),
        "gap": ["a", None],
    }
    parquet.write_table(pyarrow.table(strings | others), path)
    for column in strings:
        assert read(path, column) == TEXTS
    for column, kind in (
        ("n", "int64"),
        ("list", "list<.*>"),
        ("bytes", "binary"),
        ("null", "null"),
    ):
        refused(path, rf"the column '{column}' .* is of the type {kind}; it must hold text", column)
    refused(path, "row 2 of the corpus file .* has no text in the column 'gap'", "gap")
    refused(
        path,
        r"the table .* no text in the column 'txt' \(text_column\); it has 'large', 'coded'",
        "txt",
    )
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    parquet.write_table(table, path)
    refused(path, "has 2 columns called 'text'")


def test_damaged_parquet_is_one_sentence(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS * 50}), path)
    whole = path.read_bytes()
    for broken in (
        whole[:100],
        whole[:-9],
        b"",
        whole[:8] + b"\xff" * 30 + whole[38:],
        whole[:-60] + b"\xff" * 52 + whole[-8:],
    ):
        path.write_bytes(broken)
        refused(path, r"^the corpus file .*[^.\s]\.$")


def test_of_several_columns_each_row_gives_the_first_that_it_has(tmp_path):
    rows = [
        {"passage": "a", "question": "x"},
        {"question": "b"},
        {"passage": None, "question": "c"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = ("passage", "question")
    for name in ("a.jsonl", "a.parquet"):
        assert ["".join(d) for d in documents(tmp_path / name, columns)] == ["a", "b", "c"]
        assert ["".join(d) for d in documents(tmp_path / name, ("no", "question"))] == list("xbc")
        with pytest.raises(SdslError, match=r"no text in the column 'no' or 'nor' \(text_column\)"):
            list(documents(tmp_path / name, ("no", "nor")))
