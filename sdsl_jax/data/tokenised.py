"""The tokenised corpus on disk: made once, and found again by every later start.

A corpus is a folder, named by a key of what it is made of, how it is split and how it is tokenised.
It holds the shards of each split, the tokenizer.json of a BPE, and manifest.json. It is made in a
private folder beside its place and then renamed, so it is never seen unfinished. Processes that
want the same corpus wait for the one that is making it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdsl_jax.cache_folders import corpora_folder, locked, maker_lock
from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import Span, identity, is_file, read_pieces, sources, write_text
from sdsl_jax.data.folders import listed
from sdsl_jax.data.shards import Shard, id_type, write_shards
from sdsl_jax.data.study_tokenizer import adopted_fingerprint, make_tokenizer
from sdsl_jax.data.tokenizer import Tokenizer, fingerprint
from sdsl_jax.digests import file_sha256, json_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.records import read_json, write_json

# Of how text is read and tokenised: a corpus that an earlier version made is not found, and is made
# anew.
FORMAT, VERSION = "sdsl-corpus", 3
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
# Bytes of a piece of which a vocabulary is learnt; the library holds a few hundred of them at a
# time.
_SAMPLE_BYTES = 1 << 16
# Ids of a shard.
_SHARD_TOKENS = 1 << 26


def corpus_folder(config: DataConfig) -> Path:
    """Where the corpus is, or will be.

    Raises:
      SdslError: A file of the corpus cannot be read.
    """
    parts = [FORMAT, VERSION, _settings(config), [identity(source) for source in sources(config)]]
    key = json_sha256(parts)[:20]
    return (Path(config.shards) if config.shards else corpora_folder()) / key


def source_digests(config: DataConfig) -> list[str]:
    """Identity of the text: the SHA-256 of every file, from the manifest if there is one; otherwise
    the name and version of a source.

    Raises:
      SdslError: A file of the corpus cannot be read.
    """
    manifest = corpus_folder(config) / MANIFEST
    if manifest.exists():
        return [
            source["sha256"] or source["identity"][0]
            for source in read_manifest(manifest.parent)["sources"]
        ]
    return [_digest(source) or str(identity(source)[0]) for source in sources(config)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus.

    Raises:
      SdslError: It is damaged, or of another version.
    """
    path, remedy = (
        folder / MANIFEST,
        f"delete the folder {folder} and the corpus is tokenised again.",
    )
    try:
        manifest = read_json(path, keys=("format", "version", "check"))
    except (SdslError, RecursionError):
        raise SdslError(f"the manifest {path} cannot be read or is damaged; {remedy}") from None
    require(
        (manifest["format"], manifest["version"]) == (FORMAT, VERSION),
        f"the corpus {folder} has the format {manifest['format']!r}, version {manifest['version']}; this version of sdsl_jax "
        f"reads {FORMAT!r}, version {VERSION}; {remedy}",
    )
    require(
        manifest["check"] == _check(manifest),
        f"the manifest {path} is damaged: it was changed; {remedy}",
    )
    return manifest


def _check(manifest: dict[str, Any]) -> str:
    """SHA-256 over a manifest except for itself. A manifest that passes was written by `_make` and
    needs no other check.
    """
    return json_sha256(manifest | {"check": ""})


def prepare(
    config: DataConfig,
    *,
    shard_tokens: int = _SHARD_TOKENS,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """The folder of the tokenised corpus, which is made if it is missing.

    Args:
      config: What the corpus is made of, and how.
      shard_tokens: Ids in a shard. The ids and their digest are the same whatever it is.
      note: Receives a sentence before a corpus is made.

    Raises:
      SdslError: The corpus cannot be read, or the folder cannot be written.
    """
    folder = corpus_folder(config)
    if (folder / MANIFEST).exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _turn(maker_lock(folder), note) as alone:
            if not (folder / MANIFEST).exists():
                mine = f".{folder.name}.{socket.gethostname()}."
                if alone:  # whoever left these behind would hold the lock if it were alive
                    for left in folder.parent.glob(glob.escape(mine) + "*.partial"):
                        shutil.rmtree(left)
                private = folder.with_name(f"{mine}{secrets.token_hex(4)}.partial")
                source = (
                    config.source if isinstance(config.source, str) else ", ".join(config.source)
                )
                note(f"tokenising {source} into {folder}")
                try:
                    private.mkdir()
                    _make(config, private, shard_tokens)
                    _publish(private, folder)
                finally:
                    shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        raise SdslError(
            f"the tokenised corpus cannot be written to {folder.parent} ({error.strerror or error}); "
            "choose another folder with data.shards."
        ) from None
    return folder


@contextlib.contextmanager
def _turn(path: Path, note: Callable[[str], None]) -> Iterator[bool | None]:
    """Waits until no other process makes the same corpus; yields whether it holds the lock now.

    Without locks several processes may make the same corpus, each in a folder of its own.
    """
    with locked(path, wait=False) as mine:
        if mine is not False:
            yield mine
            return
    note("waiting for another process that is tokenising the same corpus")
    with locked(path) as mine:
        yield mine


def _publish(private: Path, folder: Path) -> None:
    try:
        private.rename(folder)
    except OSError:
        if (folder / MANIFEST).exists():
            return  # another host was first, with the same corpus
        shutil.rmtree(
            folder, ignore_errors=True
        )  # the rest of a corpus that somebody has begun to delete
        private.rename(folder)


def _make(config: DataConfig, folder: Path, shard_tokens: int) -> None:
    made_of = _describe_sources(config)
    text = folder / "text"
    notes: list[str] = []
    spans = write_text(config, text, notes.append)
    tokenizer = make_tokenizer(config, _sample(text, spans["train"], config.tokenizer_sample_bytes))
    if tokenizer.text() is not None:
        tokenizer.save(folder / TOKENIZER)
    dtype, splits = id_type(tokenizer.vocab_size), dict[str, Any]()
    for name, span in spans.items():
        digest = hashlib.sha256()
        shards = write_shards(
            folder, name, _encoded(tokenizer, text, span, digest.update), dtype, shard_tokens
        )
        splits[name] = {
            "tokens": sum(shard.tokens for shard in shards),
            "text_bytes": span.end - span.start,
            "sha256": digest.hexdigest(),
            "shards": [shard._asdict() for shard in shards],
        }
    text.unlink()
    described = [{"identity": about, "sha256": _digest(source)} for source, about in made_of]
    require(
        made_of == _describe_sources(config),
        f"the corpus {config.source} has changed while it was read; start again.",
    )
    notes += _repeated(made_of, described)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "digest": corpus_digest({name: split["sha256"] for name, split in splits.items()}),
        "dtype": dtype.str,
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": fingerprint(tokenizer)},
        "settings": _settings(config),
        "sources": described,
        "notes": notes,
        "splits": splits,
    }
    write_json(folder / MANIFEST, manifest | {"check": _check(manifest)})


def _repeated(
    made_of: list[tuple[str, list[str | int]]], described: list[dict[str, Any]]
) -> list[str]:
    """A sentence on texts that are named more than once, by one name or several; empty if there are
    none.
    """
    same: dict[str, list[str]] = {}
    for (source, _), about in zip(made_of, described):
        if about["identity"][1:2] != [0]:  # an empty file
            same.setdefault(about["sha256"] or about["identity"][0], []).append(source)
    groups = [listed(names) for names in same.values() if len(names) > 1]
    if not groups:
        return []
    count = sum(len(names) - 1 for names in same.values())
    return [
        f"corpus sources that repeat the text of another: {count} of {len(made_of)} ({listed(groups)}); text of the test split "
        "may be trained on."
    ]


def corpus_digest(splits: dict[str, str]) -> str:
    """Identity of a tokenised corpus. The same ids cut into other splits are another corpus.

    Args:
      splits: SHA-256 of the ids of each split, as int32, by name.
    """
    return json_sha256(splits)


def _encoded(
    tokenizer: Tokenizer, text: Path, span: Span, seen: Callable[[bytes], None]
) -> Iterator[np.ndarray]:
    for piece in read_pieces(text, span):
        ids = tokenizer.encode(piece)
        seen(ids.astype("<i4").tobytes())
        yield ids


def _sample(text: Path, span: Span, limit: int) -> Iterator[str]:
    """Every k-th piece of a split, with the smallest k that keeps within the limit; all of a
    smaller split.
    """
    every = max(1, -(-(span.end - span.start) // limit))
    return itertools.islice(read_pieces(text, span, _SAMPLE_BYTES), 0, None, every)


def _settings(config: DataConfig) -> dict[str, Any]:
    """The settings that decide the ids: all but where they are kept and how they are cut into
    sequences. A published tokenizer is known by its fingerprint, wherever it lies.
    """
    settings = {
        k: v
        for k, v in dataclasses.asdict(config).items()
        if k not in ("source", "shards", "sequence_length")
    }
    if config.adopts_tokenizer:
        settings["tokenizer"] = adopted_fingerprint(config)
        del settings["vocab_size"]
    return settings


def _describe_sources(config: DataConfig) -> list[tuple[str, list[str | int]]]:
    return [(source, identity(source)) for source in sources(config)]


def _digest(source: str) -> str | None:
    if not is_file(source):
        return None
    try:
        return file_sha256(Path(source))
    except OSError as error:
        raise SdslError(f"the corpus file {source} cannot be read ({error.strerror}).") from None


def shards_of(split: dict[str, Any]) -> list[Shard]:
    """The shards of one split of a manifest."""
    return [Shard(**shard) for shard in split["shards"]]
