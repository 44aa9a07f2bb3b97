"""What the program keeps under the user's cache folder: where each cache lies, and how to empty it.

    $XDG_CACHE_HOME/sdsl_jax/       ~/.cache/sdsl_jax where the variable is not set
      corpora/<key>/                tokenised corpora, see `data.tokenised`
      teachers/<key>/               probabilities of teachers, see `training.teacher`
      xla/<processor>/              compiled programs, see `compilation`
      kernels/<digest>.so           compiled kernels, see `models.small_matmul`

Everything in it can be deleted at any time and is made again when it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_DELETED = ".deleted-"
# A corpus, or what a teacher says of one, is named by its key; the latter also by the blocks whose
# features it has, and a corpus that is being made by its host and a random number.
_KEYED = re.compile(r"\.?(?P<key>[0-9a-f]{20}(-\d+)*)(\..+\.partial)?")
# JAX writes the time of an entry's last use beside it.
_PROGRAM_TIME = "-atime"


class Entry(NamedTuple):
    """What can be deleted as a whole: a corpus, a teacher's probabilities, or a compiled program.

    Attributes:
      paths: Files and folders it consists of.
      bytes: Size on disk.
      last_used: When it was last read or written, in seconds since 1970.
      lock: File that whoever is making it holds a lock on; None if nothing of the kind exists.
    """

    paths: tuple[Path, ...]
    bytes: int
    last_used: float
    lock: Path | None = None


class Cache(NamedTuple):
    """One cache.

    Attributes:
      folder: Folder of its entries.
      contents: What it holds, in a few words.
      entries: Its entries, the least recently used first.
    """

    folder: Path
    contents: str
    entries: list[Entry]

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(entry.bytes for entry in self.entries)


def cache_home(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds all caches of this package."""
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "sdsl_jax"


def corpora_folder() -> Path:
    """The folder of tokenised corpora, unless a study names another one with `data.shards`."""
    return cache_home() / "corpora"


def teachers_folder() -> Path:
    """The folder of teachers' probabilities, unless a study names another one with `distil.cache`."""
    return cache_home() / "teachers"


def programs_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of compiled programs, with a folder for each kind of processor."""
    return cache_home(environment) / "xla"


def kernels_folder() -> Path:
    """The folder of kernels that the machine's compiler made."""
    return cache_home() / "kernels"


def processor() -> str:
    """The kind of processor: machine code for another one could stop the process, where a home is
    shared between machines.

    JAX's own keys hold the processor's features too, in the versions looked at, but that is nowhere
    promised.
    """
    kind = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n")
        # "flags" on x86, "Features" on ARM; the same for all cores.
        kind += next(([line] for line in lines if line.startswith(("flags", "Features"))), [])
    except OSError:
        pass  # not Linux
    return f"{platform.machine()}-{hashlib.sha256(repr(kind).encode()).hexdigest()[:8]}"


def maker_lock(folder: Path) -> Path:
    """The file that a process locks while it makes what a folder named by a key is to hold."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool | None]:
    """Holds a lock on a file, which the kernel takes back from a process that dies.

    Args:
      path: File to lock; made if missing.
      wait: Whether to wait for a process that holds the lock.

    Yields:
      True with the lock, False while another process holds it, None where the file system has no
      locks.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        except OSError:
            yield None
        else:
            yield True


def caches() -> list[Cache]:
    """All caches with what they hold. A cache that was never used is empty."""
    return [
        Cache(corpora_folder(), "tokenised corpora", _oldest_first(_keyed(corpora_folder()))),
        Cache(
            teachers_folder(), "probabilities of teachers", _oldest_first(_keyed(teachers_folder()))
        ),
        Cache(programs_folder(), "compiled programs", _oldest_first(_programs())),
        Cache(kernels_folder(), "compiled kernels", _oldest_first(map(_entry, _kernels()))),
    ]


def remove(entry: Entry) -> bool:
    """Deletes an entry, unless a process is making it; returns whether it was deleted.

    It disappears at once by a rename, so that no reader finds half of it.

    Raises:
      OSError: The entry may not be deleted.
    """
    if entry.lock is None or not entry.lock.exists():
        return _delete(entry)
    with locked(entry.lock, wait=False) as free:
        return free is not False and _delete(entry)


def _delete(entry: Entry) -> bool:
    for path in entry.paths:
        doomed = path.with_name(f"{_DELETED}{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink(missing_ok=True)
    return True


def _keyed(folder: Path) -> Iterator[Entry]:
    for path in _within(folder):
        if (match := _KEYED.fullmatch(path.name)) and path.is_dir():
            yield _entry(path, lock=maker_lock(folder / match["key"]))
        elif path.name.startswith(_DELETED):
            yield _entry(path)


def _programs() -> Iterator[Entry]:
    for processor in _within(programs_folder()):
        if processor.is_dir() and not processor.is_symlink():
            for path in _within(processor):
                if not path.name.endswith((_PROGRAM_TIME, ".lockfile")):
                    time = path.with_name(path.name.removesuffix("-cache") + _PROGRAM_TIME)
                    yield _entry(path, *([time] if time.exists() else []))


def _kernels() -> list[Path]:
    return [path for path in _within(kernels_folder()) if path.suffix in (".so", ".partial")]


def _within(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _entry(*paths: Path, lock: Path | None = None) -> Entry:
    size, last_used = 0, 0.0
    for file in (file for path in paths for file in (path, *path.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
            status = file.lstat()
            size += status.st_blocks * 512
            last_used = max(last_used, status.st_atime, status.st_mtime)
    return Entry(paths, size, last_used, lock)


def _oldest_first(entries: Iterator[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.last_used)
