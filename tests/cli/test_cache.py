import fcntl
import os

import numpy as np
import pytest

from sdsl_jax.cache_folders import caches, corpora_folder, maker_lock, programs_folder
from sdsl_jax.config import DataConfig
from sdsl_jax.counts import parse_bytes, short_bytes
from sdsl_jax.data.tokenised import corpus_folder, prepare
from sdsl_jax.errors import SdslError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sdsl_jax"


def fill(home, *ages):
    """Compiled programs of 8 kB, last used so many days ago."""
    folder = programs_folder() / "x86_64-0"
    folder.mkdir(parents=True)
    for age in ages:
        path = folder / f"jit_f-{age}-cache"
        path.write_bytes(np.random.default_rng(age).bytes(8192))
        os.utime(path, (1.7e9 - 86_400 * age,) * 2)
    return folder


def corpus(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words and some more of them " * 100)
    return DataConfig(source=str(text), tokenizer="bytes", vocab_size=256, sequence_length=8)


def test_every_cache_is_listed_with_its_size(home, sdsl, tmp_path):
    fill(home, 1, 2)
    prepare(corpus(tmp_path))
    status, out, err = sdsl("cache")
    assert (status, err) == (0, "")
    assert f"  {home / 'corpora'}\n" in out
    programs, corpora = (
        next(line for line in out.splitlines() if words in line)
        for words in ("compiled programs", "tokenised corpora")
    )
    assert ": 2 entries, 16.4 kB" in programs
    assert ": 1 entry, " in corpora
    assert "deleted" not in out


def test_empty_caches_are_listed_too(home, sdsl):
    assert sdsl("cache")[1].count(": 0 entries, 0 bytes") == 4
    assert sdsl("cache", "--clear")[1].endswith("deleted 0 entries, 0 bytes.\n")


def test_clear_leaves_nothing_and_corpora_are_made_again(home, sdsl, tmp_path):
    folder, data = fill(home, 1, 2), corpus(tmp_path)
    made = prepare(data)
    (made.parent / ".0123456789abcdef0123.host.ab.partial").mkdir()
    other = made.parent / "notes.txt"
    other.write_text("not ours")
    assert "deleted 4 entries, " in sdsl("cache", "--clear")[1]
    assert not list(folder.iterdir())
    assert not made.exists()
    assert other.exists()
    assert sum(len(cache.entries) for cache in caches()) == 0
    assert (prepare(data) / "manifest.json").exists()


def test_what_was_not_used_for_longest_goes_first(home, sdsl):
    folder = fill(home, 1, 30, 5)
    assert "deleted 1 entry, 8.19 kB" in sdsl("cache", "--max", "17kB")[1]
    assert sorted(p.name for p in folder.iterdir()) == ["jit_f-1-cache", "jit_f-5-cache"]
    assert "deleted 0 entries" in sdsl("cache", "--max", "1 GB")[1]


def test_the_time_of_last_use_goes_with_its_program(home, sdsl):
    folder = fill(home, 1)
    (folder / "jit_f-1-atime").write_bytes(b"0" * 8)
    (folder / ".lockfile").touch()
    assert "deleted 1 entry" in sdsl("cache", "--clear")[1]
    assert [p.name for p in folder.iterdir()] == [".lockfile"]


def test_a_corpus_that_is_being_made_is_kept(home, sdsl, tmp_path):
    data = corpus(tmp_path)
    partial = corpora_folder() / f".{corpus_folder(data).name}.host.ab.partial"
    partial.mkdir(parents=True)
    with open(maker_lock(corpus_folder(data)), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, out, _ = sdsl("cache", "--clear")
        assert status == 0
        assert f"kept {partial}, which another process is making." in out.replace("\n", "")
        assert partial.exists()
    sdsl("cache", "--clear")
    assert not partial.exists()


def test_nothing_behind_a_link_is_deleted(home, sdsl, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").touch()
    folder = fill(home)
    (folder / "link").symlink_to(mine)
    (folder.parent / "other").symlink_to(mine)
    sdsl("cache", "--clear")
    assert (mine / "precious").exists()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max", "many"], "--max is 'many'; it must be a size such as 2GB, 500MB or 0."),
        (["--max", "-1GB"], "--max is '-1GB'"),
        (["--clear", "--max", "1GB"], "--clear and --max were both given"),
    ],
)
def test_wrong_options_are_one_sentence(home, sdsl, arguments, message):
    folder = fill(home, 1)
    status, out, err = sdsl("cache", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2e9), ("1.5 GiB", 1.5 * 2**30), ("500MB", 5e8), ("4k", 4e3), ("0", 0), ("1e6", 1e6)],
)
def test_sizes_in_bytes(text, size):
    assert parse_bytes(text, "--max") == size


def test_sizes_are_shown_in_three_digits():
    assert [short_bytes(size) for size in (0, 999, 12_345, 2e9)] == [
        "0 bytes",
        "999 bytes",
        "12.3 kB",
        "2 GB",
    ]


def test_what_is_no_size_is_refused():
    for text in ("", "B", "1,5 GB", "nan"):
        with pytest.raises(SdslError):
            parse_bytes(text, "--max")
