import bz2
import codecs
import gzip
import lzma
import os

import pyarrow
import pytest

from sdsl_jax import user_files
from sdsl_jax.errors import SdslError

TEXT = "größer α\r\nsecond\rthird\n"


def compressed(kind: str, data: bytes) -> bytes:
    if kind == "zst":
        return pyarrow.compress(data, codec="zstd", asbytes=True)
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "txt": bytes}[kind](data)


@pytest.mark.parametrize("kind", ["txt", "gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_the_same_however_it_is_kept(tmp_path, monkeypatch, kind, encoding):
    monkeypatch.setattr(user_files, "_READ_BYTES", 5)  # pieces cut characters
    path = tmp_path / f"t.{kind}"
    path.write_bytes(compressed(kind, TEXT.encode(encoding)))
    assert user_files.read_text(path) == TEXT.replace("\r\n", "\n").replace("\r", "\n")
    assert user_files.read_text(path, newlines=False) == TEXT


@pytest.mark.parametrize("kind", ["txt", "gz", "zst"])
def test_what_comes_through_a_pipe_is_read_once(kind):
    data = compressed(kind, b"a,b\n" * 100)
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    assert user_files.read_text(f"/dev/fd/{read}") == "a,b\n" * 100
    os.close(read)


def test_compression_is_told_by_the_first_bytes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress(b"a,b\n"))
    assert user_files.read_text(path) == "a,b\n"
    path = tmp_path / "t.csv.gz"
    path.write_bytes(b"a,b\n")
    with pytest.raises(SdslError, match=r"t\.csv\.gz is not gzip, though its name says so"):
        user_files.read_text(path)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_damage_is_one_sentence(tmp_path, kind):
    whole = compressed(kind, TEXT.encode() * 500)
    path = tmp_path / f"t.{kind}"
    for broken in (
        whole[: len(whole) // 2],
        whole[:10] + bytes([whole[10] ^ 255]) + whole[11:],
        whole[:8],
    ):
        path.write_bytes(broken)
        with pytest.raises(SdslError, match=rf"^the table .*t\.{kind} .*[^.]\.$"):
            user_files.read_text(path, "table")


@pytest.mark.parametrize(
    "before", [b"", b"x" * 1000, codecs.BOM_UTF8 + b"x" * 1000, "é".encode() * 700]
)
def test_the_byte_that_is_no_text_is_named(tmp_path, monkeypatch, before):
    monkeypatch.setattr(user_files, "_READ_BYTES", 7)
    path = tmp_path / "t.txt"
    path.write_bytes(before + b"\xe9t\xe9 " + b"y" * 50)
    with pytest.raises(SdslError, match=rf"not valid UTF-8 \(byte {len(before)} is 0xe9"):
        user_files.read_text(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer",
        ),
        (b"PK\x03\x04" + b"\0" * 90, "an Excel workbook"),
        (b"PAR1" + b"\0" * 90, "a Parquet file"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(tmp_path, data, words):
    (path := tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(SdslError, match=words):
        user_files.read_text(path)


def test_a_few_bytes_do_not_become_gigabytes(tmp_path):
    (path := tmp_path / "t.gz").write_bytes(gzip.compress(b"0" * (3 << 20)))
    with pytest.raises(SdslError, match="holds more than 2,000,000 characters"):
        user_files.read_text(path, limit=2_000_000)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "1" * 5000, "{'a': 1}", ""])
def test_json_of_any_depth_is_one_sentence(tmp_path, text):
    with pytest.raises(SdslError, match=r"^line 1 is not valid JSON \(.+\)\.$"):
        user_files.parse_json(text, "line 1")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "1" * 5000, "a = 1\na = 2", "a = \x00"]
)
def test_toml_of_any_depth_is_one_sentence(tmp_path, text):
    (path := tmp_path / "t.toml").write_text(text)
    with pytest.raises(SdslError, match=r"^the study .*t\.toml is not valid TOML"):
        user_files.read_toml(path, "study")
