import gzip
import json

import numpy as np
import pytest

from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.data.prompts import load_prompts, read_prompts
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer
from sdsl_jax.errors import SdslError

BYTES = ByteTokenizer()


def load(path, **changes):
    return load_prompts(
        str(path), BYTES, **{"count": 64, "max_tokens": 16, "data": DataConfig(), **changes}
    )


def rows(prompts):
    return [BYTES.decode(ids[:n]) for ids, n in zip(prompts.tokens, prompts.lengths)]


def jsonl(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_a_line_is_a_prompt_and_its_end_is_kept(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("short\r\n\n  \nthe last sixteen bytes stay\nÜber\n")
    found = load(path)
    assert rows(found) == ["short", "xteen bytes stay", "Über"]
    assert found.lengths.tolist() == [5, 16, 5]
    assert found.tokens.shape == (3, 16)
    assert (found.tokens[0, 5:] == 0).all()
    assert (found.cut, found.available, found.domain) == (1, 3, "p.txt")


def test_prompts_are_spread_over_a_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"{i}" for i in range(101)))
    assert rows(load(path, count=5)) == ["0", "25", "50", "75", "100"]
    assert rows(load(path, count=1)) == ["0"]


def test_rows_of_json(tmp_path):
    path = tmp_path / "p.jsonl"
    hellaswag = [
        {
            "ind": 4,
            "activity_label": "Roofing",
            "ctx_a": "A man sits.",
            "ctx_b": "he",
            "ctx": "A man sits. he",
            "endings": [],
        },
        {"activity_label": "Roofing", "ctx_a": "A man sits.", "ctx_b": "he"},
        {"ctx_a": "A man sits.", "ctx_b": ""},
        {"ctx": "A man sits."},
    ]
    jsonl(path, {"prompt": "a", "text": "b"}, {"text": "b"}, *hellaswag)
    assert read_prompts(path) == ["a", "b", *["Roofing: A man sits. he"] * 2, *["A man sits."] * 2]
    jsonl(path, *hellaswag[:1])
    assert read_prompts(path, "ctx") == ["A man sits. he"]
    assert read_prompts(path, "ctx_b") == ["he"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, encoding):
    (tmp_path / "p.txt").write_bytes("first\nsecond".encode(encoding))
    (tmp_path / "p.jsonl").write_bytes('{"text": "first"}\n{"text": "second"}'.encode(encoding))
    for name in ("p.txt", "p.jsonl"):
        assert read_prompts(tmp_path / name) == ["first", "second"]
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert read_prompts(packed) == ["first", "second"]


def test_the_end_symbol_spelled_in_a_prompt_is_text(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"text": "what does <|endoftext|> mean?"})
    tokenizer = BPETokenizer.train("what does it mean? " * 20, 262)
    found = load_prompts(str(path), tokenizer, count=1, max_tokens=64, data=None)
    assert (found.tokens != 0).all()
    assert tokenizer.decode(found.tokens[0]) == "what does <|endoftext|> mean?"


def test_held_out_text_is_what_a_study_takes():
    data = DataConfig(sequence_length=64)
    dataset = load_dataset(data)
    found = load("heldout", count=7, data=data)
    np.testing.assert_array_equal(found.tokens, dataset.text("test").windows(7)[:, :16])
    assert (found.lengths == 16).all()
    assert found.domain == "sotu since 2009"
    assert load("heldout", count=2, data=data, max_tokens=1000).tokens.shape == (2, 64)


def test_held_out_text_of_files_is_their_end(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("a" * 900 + "b" * 100)
    data = DataConfig(source=str(path), sequence_length=16, test_fraction=0.1)
    assert rows(load("heldout", data=data, max_tokens=4)) == ["bbbb"] * 6
    assert "own.txt" in load("heldout", data=data).domain
    assert load("sotu", count=3, data=data).domain == "sotu since 2009"


def test_held_out_text_in_the_ids_of_any_tokenizer(tmp_path):
    text = "".join(f"number {i} – of many\n" for i in range(400))
    (tmp_path / "own.txt").write_text(text)
    data = DataConfig(
        source=str(tmp_path / "own.txt"), sequence_length=16, tokenizer="bpe", vocab_size=270
    )
    dataset = load_dataset(data)
    own = load_prompts("heldout", dataset.tokenizer, count=5, max_tokens=9, data=data)
    np.testing.assert_array_equal(own.tokens, dataset.text("test").windows(5)[:, :9])
    other = BPETokenizer.train("many other words of another text " * 20, 272)
    found = load_prompts("heldout", other, count=5, max_tokens=9, data=data)
    expected = other.encode(dataset.tokenizer.decode(dataset.splits["test"][:]))
    np.testing.assert_array_equal(found.tokens[0], expected[:9])
    assert found.available == (len(expected) - 1) // 16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"x", "unknown kind"),
        ("p.txt", None, "cannot be read"),
        ("p.txt", b" \n\n", "is empty"),
        ("p.txt", b"a\xff\xfe", r"not valid UTF-8 \(byte 1 is 0xff"),
        ("p.jsonl", b'{"text": "a"}\n{', "line 2 .*is not valid JSON"),
        (
            "p.txt",
            b"one\n\ntwo\0 and some other words\n\0",
            "holds NUL .* 2 times, first in line 3",
        ),
        ("p.jsonl", b'{"text": "some words \\u0000"}', "holds NUL .* once, in line 1"),
        ("p.jsonl", b"[" * 100_000, "line 1 .*is not valid JSON .it is nested too deeply"),
        ("p.jsonl.gz", b"\x1f\x8b\x08\0", "is truncated"),
        ("p.jsonl", b"<html>", "begins like a web page"),
        ("p.jsonl", b"[1]", "line 1 .*is not a JSON object"),
        (
            "p.jsonl",
            b'{"q": "a"}',
            "does not have any of the fields prompt, text, ctx, ctx_a, question; it has 'q'",
        ),
        ("p.jsonl", b'{"text": 3}', "no text in the field 'text'"),
        ("p.jsonl", b'{"text": " "}', "no text in the field 'text'"),
        ("p.jsonl", b'{"ctx_a": 3, "ctx_b": "x"}', "no text in the field 'ctx_a'"),
        ("p.jsonl", b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SdslError, match=message):
        load(tmp_path / name)


def test_wrong_arguments(tmp_path):
    jsonl(tmp_path / "p.jsonl", {"text": "a"})
    (tmp_path / "p.txt").write_text("a")
    for path, changes, message in (
        (tmp_path / "p.jsonl", {"field": "q"}, "does not have the field 'q'"),
        (tmp_path / "p.txt", {"field": "q"}, "has no field 'q'"),
        ("sotu", {"field": "q"}, "has no field 'q'"),
        ("sotu", {"count": 0}, "number of prompts is 0"),
        ("sotu", {"max_tokens": 0}, "length of a prompt is 0"),
        ("sotu", {"data": DataConfig(sequence_length=10**7)}, "must have more than one sequence"),
    ):
        with pytest.raises(SdslError, match=message):
            load(path, **changes)
