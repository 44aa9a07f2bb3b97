"""Folders for results: files that a user keeps there under names that we write are not overwritten."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sdsl_jax.errors import require
from sdsl_jax.records.files import write_text

SETTINGS, REPORT = "config.toml", "report.html"
_MARK = "# Written by sdsl_jax. SHA-256 of the lines below: "
# Studies of earlier versions wrote settings without a mark; some of these lies beside them.
_TRACES = ("stages.json", "checkpoints", "records/schema.json")
# Of the report, within its first bytes.
_TITLE = "speculative-decoding scaling laws</title>"
_HEAD_BYTES = 4096


def write_marked(path: Path, text: str) -> None:
    """Writes a TOML file that is recognised as ours as long as nobody changes it.

    Raises:
      SdslError: The file cannot be written.
    """
    write_text(path, f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def require_replaceable(path: Path) -> None:
    """Checks that a file does not exist yet, or is as `write_marked` wrote it.

    Raises:
      SdslError: There is another file.
    """
    require(
        not path.exists() or _is_marked(_text(path)),
        f"the file {path} exists, and was not written by sdsl or was changed since; name another file.",
    )


def require_study_folder(folder: Path) -> None:
    """Checks that a folder holds no settings and no report but those of a study.

    Args:
      folder: Folder for results; it may be missing.

    Raises:
      SdslError: Its config.toml or report.html is not as a study wrote it.
    """
    require(not folder.is_file(), f"cannot write {folder}: it is a file; results need a folder.")
    path = folder / SETTINGS
    require(
        not path.exists() or _is_own_settings(path),
        f"the file {path} was not written by a study, or was changed since, and would be overwritten; name another folder, or "
        "save the file under another name.",
    )
    path = folder / REPORT
    require(
        not path.exists() or _TITLE in _text(path, _HEAD_BYTES),
        f"the file {path} was not written by a study, and would be overwritten; name another folder.",
    )


def require_records_folder(folder: Path, names: Iterable[str], mark: str) -> None:
    """Checks that a folder holds no files of the names to be written, unless they are records of
    ours.

    Args:
      folder: Folder for records; it may be missing.
      names: Names of the files.
      mark: Name of a file that lies beside our own.

    Raises:
      SdslError: It holds other files of these names.
    """
    require_study_folder(folder)
    existing = [name for name in names if (folder / name).exists()]
    require(
        not existing or (folder / mark).exists(),
        f"the folder {folder} holds {existing[0] if existing else ''} and no {mark}: it was not written by sdsl, and would be "
        "overwritten; name another folder.",
    )


def _is_own_settings(path: Path) -> bool:
    text = _text(path)
    # TOML that a program writes has no comments.
    commented = any(line.lstrip().startswith("#") for line in text.splitlines())
    return _is_marked(text) or (
        not commented and any((path.parent / trace).exists() for trace in _TRACES)
    )


def _is_marked(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return first == f"{_MARK}{hashlib.sha256(rest.encode('utf-8', 'replace')).hexdigest()}"


def _text(path: Path, most: int = -1) -> str:
    """The beginning of a file; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""
