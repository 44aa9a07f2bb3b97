import codecs
import dataclasses
import errno
import fcntl
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset, source_digests, tokenised
from sdsl_jax.data.tokenised import MANIFEST, corpus_digest, corpus_folder, prepare, read_manifest
from sdsl_jax.data.tokenizer import BPETokenizer
from sdsl_jax.errors import SdslError


@pytest.fixture
def config(tmp_path):
    """Two hundred numbered documents."""
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"document {i} – of many words"}) + "\n" for i in range(200))
    )
    return DataConfig(source=str(path), sequence_length=16, shards=str(tmp_path / "shards"))


@settings(max_examples=12)
@given(
    texts=st.lists(st.text(st.sampled_from("abc é。😀\n"), max_size=60), min_size=3, max_size=12),
    shard_tokens=st.integers(1, 400),
    length=st.integers(8, 20),
)
def test_a_corpus_is_the_same_whatever_its_shards(tmp_path_factory, texts, shard_tokens, length):
    folder = tmp_path_factory.mktemp("corpus")
    texts = [*texts, "of words " * 60]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    one = DataConfig(
        source=str(folder / "a.jsonl"), sequence_length=length, shards=str(folder / "one")
    )
    many = dataclasses.replace(one, shards=str(folder / "many"))
    prepare(many, shard_tokens=shard_tokens)
    data, again = load_dataset(one), load_dataset(many)
    whole = np.concatenate([data.splits[name] for name in ("train", "validation", "test")])
    np.testing.assert_array_equal(whole, np.frombuffer("\0".join(texts).encode(), np.uint8))
    ids = {
        name: hashlib.sha256(np.asarray(split).astype("<i4").tobytes())
        for name, split in data.splits.items()
    }
    assert (
        data.digest
        == again.digest
        == corpus_digest({name: sha.hexdigest() for name, sha in ids.items()})
    )
    assert data.bytes_per_token == again.bytes_per_token == dict.fromkeys(data.splits, 1.0)
    for name in data.splits:
        np.testing.assert_array_equal(data.splits[name], again.splits[name])
        expected = np.asarray(data.splits[name])
        windows = again.text(name).windows(10**6)
        for i, window in enumerate(windows):
            np.testing.assert_array_equal(window, expected[i * length : (i + 1) * length + 1])
    for step in (0, 3, 17):
        np.testing.assert_array_equal(data.batches(5, 2)[step], again.batches(5, 2)[step])
        assert again.batches(5, 2)[step].dtype == np.int32


def test_the_next_start_reads_what_the_first_one_made(config, monkeypatch):
    notes = []
    data = load_dataset(config, note=notes.append)
    assert [note.split(" into ")[0] for note in notes] == [f"tokenising {config.source}"]
    monkeypatch.setattr(tokenised, "_make", None)  # would fail if it were called
    again = load_dataset(dataclasses.replace(config, sequence_length=24), note=notes.append)
    assert (data.digest, len(notes), again.sequence_length) == (again.digest, 1, 24)
    with open(config.source, "rb") as file:
        assert source_digests(config) == [hashlib.file_digest(file, "sha256").hexdigest()]


def test_a_bpe_is_kept_with_what_it_made(config, monkeypatch):
    config = dataclasses.replace(config, tokenizer="bpe", vocab_size=270)
    data = load_dataset(config)
    monkeypatch.setattr(tokenised, "_make", None)
    again = load_dataset(config)
    text = again.tokenizer.decode(data.splits["train"][:])
    assert text.startswith("document 0 – of many words\0document 1 – of")
    assert data.bytes_per_token["train"] > 1.2
    tokenizer = corpus_folder(config) / "tokenizer.json"
    BPETokenizer.train("other words of another text " * 9, 270).save(tokenizer)
    with pytest.raises(SdslError, match=r"tokenizer\.json is damaged"):
        load_dataset(config)


def test_a_vocabulary_may_be_learnt_from_an_even_sample(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(
        "".join(
            f"{word} {word} {word}\n" * 40
            for word in ("first", "second", "third", "fourth", "fifth")
        )
    )
    monkeypatch.setattr(tokenised, "_SAMPLE_BYTES", 200)
    config = DataConfig(
        source=str(path),
        sequence_length=8,
        tokenizer="bpe",
        vocab_size=262,
        shards=str(tmp_path / "s"),
    )
    seen = []

    def spy(config, texts):
        texts = list(texts)
        seen.append(sum(map(len, texts)))
        assert all(word in "".join(texts) for word in ("first", "second", "third"))
        return original(config, texts)

    original = tokenised.make_tokenizer
    monkeypatch.setattr(tokenised, "make_tokenizer", spy)
    whole, sampled = (
        load_dataset(config),
        load_dataset(dataclasses.replace(config, tokenizer_sample_bytes=1000)),
    )
    size = len(path.read_text())
    assert seen[0] == round(size * 0.9)
    assert 600 < seen[1] <= 1000
    assert (
        "".join(sampled.tokenizer.decode(sampled.splits[s][:]) for s in sampled.splits)
        == path.read_text()
    )
    assert whole.digest != sampled.digest


def test_what_decides_the_ids_decides_the_folder(config, tmp_path):
    folder = corpus_folder(config)
    other = (
        {"tokenizer": "bpe", "vocab_size": 300},
        {"test_fraction": 0.2},
        {"text_column": "body"},
    )
    assert corpus_folder(dataclasses.replace(config, sequence_length=99)) == folder
    assert len({folder, *(corpus_folder(dataclasses.replace(config, **c)) for c in other)}) == 4
    made = load_dataset(config)
    with open(config.source, "a") as file:
        file.write(json.dumps({"text": "one more"}))
    assert corpus_folder(config) != folder
    assert load_dataset(config).digest != made.digest


def test_the_users_cache_is_the_default(config, cache, monkeypatch, tmp_path):
    assert corpus_folder(dataclasses.replace(config, shards="")).parent == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        corpus_folder(dataclasses.replace(config, shards="")).parent
        == tmp_path / ".cache/sdsl_jax/corpora"
    )


_CHILD = """
import os, sys
from sdsl_jax.config import DataConfig
from sdsl_jax.data import tokenised
where, source, shards = sys.argv[1:]
real, calls = getattr(tokenised, where), []
def dying(*arguments, **named):
    calls.append(1)
    found = real(*arguments, **named) if where != "write_json" else None
    if len(calls) == (2 if where == "write_shards" else 1):
        os.kill(os.getpid(), 9)
    return found
setattr(tokenised, where, dying)
tokenised.prepare(DataConfig(source=source, sequence_length=16, shards=shards), shard_tokens=100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["write_text", "write_shards", "write_json"])
def test_killed_while_tokenising(config, where):
    died = subprocess.run(
        [sys.executable, "-c", _CHILD, where, config.source, config.shards], env=os.environ
    )
    assert died.returncode == -signal.SIGKILL
    folder = corpus_folder(config)
    (left,) = folder.parent.glob(".*.partial")
    assert any(left.iterdir())
    assert not folder.exists()
    data = load_dataset(config)
    assert not left.exists()
    reference = load_dataset(dataclasses.replace(config, shards=config.shards + "-other"))
    assert data.digest == reference.digest


@pytest.mark.parametrize("locks", [True, False])
def test_several_that_start_at_once(config, monkeypatch, locks):
    together, made, make = threading.Barrier(4), [], tokenised._make

    def slow(config, folder, shard_tokens):
        make(config, folder, shard_tokens)
        made.append(folder)
        if not locks:
            together.wait(20)  # all four have made it before any one publishes it

    def refused(file, operation):
        raise OSError("no locks here")

    if not locks:
        monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(tokenised, "_make", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(prepare(config))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [corpus_folder(config)] * 4
    assert len(made) == (1 if locks else 4)
    assert not list(found[0].parent.glob(".*.partial"))
    load_dataset(config)


def test_a_damaged_corpus_is_not_used(config):
    folder = prepare(config, shard_tokens=1000)
    shard = folder / "train-00002.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    with pytest.raises(SdslError, match=r"train-00002\.bin is damaged"):
        load_dataset(config)
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 9'))
    with pytest.raises(
        SdslError, match=r"version 9; this version of sdsl_jax reads 'sdsl-corpus', version 3"
    ):
        load_dataset(config)


@pytest.mark.parametrize("key", ["dtype", "digest", "splits", "tokenizer", "tokens"])
def test_a_damaged_manifest_is_not_used(config, key):
    manifest = prepare(config) / MANIFEST
    for text in (
        "{",
        "[]",
        "[" * 100_000,
        manifest.read_text().replace(f'"{key}"', f'"not {key}"'),
    ):
        manifest.write_text(text)
        with pytest.raises(
            SdslError, match=r"manifest.json .*damaged.*; delete the folder .* tokenised again"
        ):
            load_dataset(config)


def test_rot_under_an_unchanged_time_is_found(config):
    shard = prepare(config) / "test-00000.bin"
    status, content = shard.stat(), shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SdslError, match=r"test-00000.bin is damaged: its SHA-256 is another"):
        load_dataset(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_fraction": 0.1},
        {"validation_fraction": 0.1},
        {"test_fraction": 0.1, "validation_fraction": 0.1},
    ],
)
def test_other_splits_of_the_same_ids_are_another_corpus(config, changes):
    other = load_dataset(dataclasses.replace(config, **changes))
    one = load_dataset(config)
    assert other.digest != one.digest
    joined = [
        np.concatenate([np.asarray(x) for x in data.splits.values()]) for data in (one, other)
    ]
    np.testing.assert_array_equal(*joined)


def test_a_manifest_tells_what_is_there(config):
    manifest = read_manifest(prepare(config, shard_tokens=1000))
    data = load_dataset(config)
    assert manifest["digest"] == data.digest
    for name, split in manifest["splits"].items():
        assert (
            split["tokens"] == sum(s["tokens"] for s in split["shards"]) == len(data.splits[name])
        )
    ((path, size, modified),) = [source["identity"] for source in manifest["sources"]]
    status = os.stat(config.source)
    assert (path, size, modified) == (config.source, status.st_size, status.st_mtime_ns)


def test_what_is_left_of_a_deleted_corpus_is_no_obstacle(config):
    folder = prepare(config, shard_tokens=1000)
    (folder / MANIFEST).unlink()
    assert prepare(config) == folder
    assert sorted(path.name for path in folder.iterdir())[-1] == "validation-00000.bin"
    assert not (folder / "train-00001.bin").exists()
    load_dataset(config)


def test_a_full_disk_leaves_nothing_behind(config, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokenised, "write_shards", full)
    with pytest.raises(
        SdslError,
        match=r"cannot be written to .* \(No space left on device\); choose another folder",
    ):
        load_dataset(config)
    assert [path.suffix for path in corpus_folder(config).parent.iterdir()] == [".lock"]


def test_where_nothing_can_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SdslError, match=r"cannot be written to .*file/.*choose another folder with data\.shards"
    ):
        load_dataset(dataclasses.replace(config, shards=str(tmp_path / "file" / "shards")))


def test_a_corpus_that_changes_while_it_is_read_is_refused(config, monkeypatch):
    make = tokenised.make_tokenizer

    def meanwhile(*arguments):
        with open(config.source, "a") as file:
            file.write("\n")
        return make(*arguments)

    monkeypatch.setattr(tokenised, "make_tokenizer", meanwhile)
    with pytest.raises(SdslError, match="has changed while it was read"):
        load_dataset(config)
    assert not list((corpus_folder(config).parent).glob("*/manifest.json"))


def text_file(path, text):
    path.write_text(text)
    return path


def test_the_symbol_spelled_out_is_text_and_only_nul_ends_a_document(tmp_path):
    texts = [f"page {i} says <|endoftext|> between the words of its text" for i in range(60)]
    path = text_file(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in texts))
    config = DataConfig(
        source=str(path),
        sequence_length=16,
        tokenizer="bpe",
        vocab_size=290,
        shards=str(tmp_path / "s"),
    )
    data = load_dataset(config)
    ids = np.concatenate([data.splits[name] for name in ("train", "validation", "test")])
    assert (ids == 0).sum() == 59
    assert data.tokenizer.decode(ids) == "\0".join(texts)
    again = BPETokenizer.load(corpus_folder(config) / "tokenizer.json")
    for text in (texts[0], "\0a\0\0", "", "<|endoftext|>\0<|endoftext|>"):
        assert again.decode(again.encode(text)) == text
        assert (again.encode(text) == 0).sum() == text.count("\0")


@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        ({}, "a1923d5a5f028c277649c9f0850ac5daa66c0b784eda03c6e5fb4aacc5ecfb6f"),
        (
            {"tokenizer": "bpe", "vocab_size": 270},
            "f5f8f2708d138eaeaea03dc12bdd269e8c745bedd4a9ddf2e7a01f6da2bab87e",
        ),
    ],
)
def test_the_digest_of_a_corpus_is_what_it_always_was(config, changes, digest):
    assert load_dataset(dataclasses.replace(config, **changes)).digest == digest


@pytest.mark.release
def test_the_digest_of_the_embedded_corpus_under_a_bpe_is_what_it_always_was():
    digest = "eb77dceac6b95df578bef09cc77b9172e12d1eb3c6e0106753d4caa6dfab27b7"
    assert load_dataset(DataConfig(tokenizer="bpe", vocab_size=300)).digest == digest


def test_what_may_not_be_meant_is_said_at_every_start(tmp_path):
    """By `note`, or as a warning where nobody takes notes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    text = "some words of a text\n" * 40
    for name in ("a.txt", "b.txt", "c.txt", ".hidden.txt"):
        text_file(folder / name, text)
    text_file(folder / "blank.txt", " \n")
    text_file(folder / "empty.txt", "")
    text_file(folder / "page.txt", "\n<!DOCTYPE html>\n<p>not found")
    config = DataConfig(
        source=(str(folder), str(folder / "a.txt")), sequence_length=8, shards=str(tmp_path / "s")
    )
    expected = [
        f"of the corpus folder {folder}, 6 files are read; left out: 1 hidden (.hidden.txt).",
        f"corpus sources that hold nothing but blanks: 2 of 7 ({folder}/blank.txt, {folder}/empty.txt).",
        f"corpus sources that begin like a web page: 1 of 7 ({folder}/page.txt); a download may have left it in place of the "
        "text.",
        f"corpus sources that repeat the text of another: 3 of 7 ({folder}/a.txt, {folder}/b.txt, {folder}/c.txt, …); text of "
        "the test split may be trained on.",
    ]
    for _ in range(2):
        notes = []
        load_dataset(config, note=notes.append)
        assert [note for note in notes if not note.startswith("tokenising")] == expected
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            load_dataset(config)
        assert [str(each.message) for each in warned] == expected
        assert {each.filename for each in warned} == {__file__}


def test_a_file_that_is_named_twice_is_said_to_be(tmp_path):
    path = str(text_file(tmp_path / "a.txt", "some words of a text\n" * 40))
    with pytest.warns(
        UserWarning,
        match=r"repeat the text of another: 1 of 2 \(.*a\.txt, .*a\.txt\)",
    ):
        load_dataset(DataConfig(source=(path, path), sequence_length=8, shards=str(tmp_path / "s")))


def test_hidden_and_compressed_files_are_read_where_they_are_named(tmp_path):
    text = "some words of a text\n" * 40
    plain, hidden, packed = tmp_path / "a.txt", tmp_path / ".a.txt", tmp_path / "a.txt.gz"
    text_file(plain, text)
    hidden.write_bytes(codecs.BOM_UTF8 + text.encode())
    packed.write_bytes(gzip.compress(text.encode()))
    digests = {
        load_dataset(
            DataConfig(source=str(path), sequence_length=8, shards=str(tmp_path / "s"))
        ).digest
        for path in (plain, hidden, packed)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("",), "with an empty name in it"),
        (("sotu", "a.txt"), "the embedded corpus is named alone, as 'sotu', and not in a list"),
        (("a\0b.txt",), "cannot be read|damaged or of another format"),
        (("x" * 5000 + ".txt",), r"cannot be read \(File name too long\)"),
        (("loop.txt",), r"cannot be read \(Too many levels of symbolic links\)"),
        (("pipe.txt",), "is a pipe or a device"),
        (("bad\udcff.txt",), "a name that is not valid UTF-8"),
    ],
)
def test_names_that_lead_to_no_text(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SdslError, match=message):
        load_dataset(DataConfig(source=source, shards=str(tmp_path / "s")))


_FRUGAL = """
import resource, sys
from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset
source, shards, small = sys.argv[1:]
def run(source):
    data = load_dataset(DataConfig(source=source, sequence_length=128, shards=shards))
    batches = data.batches(0, 8)
    for step in range(50):
        batches[step]
    data.text("test").windows(64)
    return len(data.splits["train"])
run(small)  # whatever the first use of every library takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = run(source)
print(tokens, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(
    "kind",
    [pytest.param("jsonl", marks=pytest.mark.slow)]
    + [pytest.param(kind, marks=pytest.mark.release) for kind in ("txt", "parquet")],
)
def test_memory_stays_far_below_the_size_of_a_corpus(tmp_path, kind):
    import pandas

    rng, size = np.random.default_rng(0), 60_000_000
    paths = {}
    for name, rows in (("small", 50), ("large", 6000)):
        texts = ["".join(map(chr, rng.integers(97, 123, size // 6000))) for _ in range(rows)]
        paths[name] = path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            pandas.DataFrame({"text": texts}).to_parquet(path, row_group_size=500)
        else:
            path.write_text(
                "\n".join(texts if kind == "txt" else (json.dumps({"text": t}) for t in texts))
            )
    out = subprocess.run(
        [sys.executable, "-c", _FRUGAL, paths["large"], tmp_path / "shards", paths["small"]],
        check=True,
        capture_output=True,
        text=True,
    )
    tokens, grown = map(int, out.stdout.split())
    assert tokens > 0.85 * size
    assert grown < 0.6 * size
