"""Which files a folder stands for, and which of its files are left out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sdsl_jax.errors import require
from sdsl_jax.user_files import SUFFIXES, reading

# Why something in a folder is left out, as the note says it: how many, and the names of a few.
_LEFT_OUT = {
    "compressed": "{} compressed ({}; name the file itself to read it)",
    "hidden": "{} hidden ({})",
    "link": "{} behind a symbolic link to a folder ({})",
    "special": "{} neither file nor folder ({})",
    "other": "{} of another kind ({})",
}


class Folder(NamedTuple):
    """What is read of a folder.

    Attributes:
      files: Files that are read, in the order of their paths.
      note: One sentence that counts and names what is left out; empty if nothing is.
    """

    files: list[Path]
    note: str


def kind_of(path: Path) -> str:
    """What a file is read as: the end of its name in lower case, such as ".jsonl" for both a.jsonl
    and a.JSONL.gz.
    """
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in SUFFIXES else suffix


def read_folder(folder: Path, kinds: Collection[str], what: str) -> Folder:
    """The files of some kinds in a folder and in the folders below it.

    It leaves out hidden files, files in hidden folders, compressed files, and folders behind
    symbolic links, which may lead round in a circle.

    Args:
      folder: Folder to look into.
      kinds: Kinds to read, such as ".txt".
      what: What messages call the folder, such as "corpus folder".

    Raises:
      SdslError: A folder cannot be read, or holds nothing to read.
    """

    def stop(error: OSError) -> None:
        raise error

    files: list[Path] = []
    left: dict[str, list[str]] = {why: [] for why in _LEFT_OUT}
    with reading(folder, what):
        for place, folders, names in os.walk(folder, onerror=stop):
            for path in (Path(place, name) for name in sorted(folders)):
                if path.name.startswith(".") or path.is_symlink():
                    folders.remove(path.name)
                    left["hidden" if path.name.startswith(".") else "link"].append(
                        f"{path.relative_to(folder)}/"
                    )
            for path in (Path(place, name) for name in names):
                if why := _why_left_out(path, kinds):
                    left[why].append(str(path.relative_to(folder)))
                else:
                    files.append(path)
    parts = [
        _LEFT_OUT[why].format(f"{len(names):,}", listed(sorted(names)))
        for why, names in left.items()
        if names
    ]
    left_out = f"; left out: {', '.join(parts)}" if parts else ""
    require(
        files,
        f"the {what} {folder} holds no file of the kinds {', '.join(dict.fromkeys(kinds))}{left_out}.",
    )
    count = "1 file is" if len(files) == 1 else f"{len(files):,} files are"
    return Folder(
        sorted(files, key=str),
        f"of the {what} {folder}, {count} read{left_out}." if left_out else "",
    )


def _why_left_out(path: Path, kinds: Collection[str]) -> str:
    if path.name.startswith("."):
        return "hidden"
    if kind_of(path) not in kinds:
        return "other"
    if path.suffix.lower() in SUFFIXES:
        return "compressed"
    return "special" if path.exists() and not path.is_file() else ""


def listed(names: Collection[str], most: int = 3) -> str:
    """The first few of some names, for a message. Unprintable characters are replaced, and … stands
    for the rest.
    """
    few = ", ".join([*itertools.islice(names, most), *["…"] * (len(names) > most)])
    return "".join(character if character.isprintable() else "?" for character in few)
