"""`sdsl cache`: what the program keeps under the user's cache folder, and how to delete it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sdsl_jax.cache_folders import Cache, Entry, caches, remove
from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.terminal import say, standard_console
from sdsl_jax.counts import parse_bytes, short_bytes
from sdsl_jax.errors import SdslError, require


def cache(
    clear: Flag = False,
    max: Annotated[str | None, arg(metavar="SIZE")] = None,
) -> None:
    """List the caches with their sizes, and empty them on request.

    They hold tokenised corpora and compiled programs, and are filled again when needed. They lie in
    $XDG_CACHE_HOME/sdsl_jax, or in ~/.cache/sdsl_jax if the variable is not set.

    Args:
        clear: Delete everything in the caches.
        max: Delete what was not used for the longest time, until the rest takes at most this much:
            2GB, 500MB.
    """
    require(not (clear and max), "--clear and --max were both given; give one of them.")
    limit = 0.0 if clear else None if max is None else parse_bytes(max, "--max")
    removed, busy = ([], []) if limit is None else _shrink(limit)
    _print(caches())
    console = standard_console()
    if limit is not None:
        console.print(
            f"deleted {len(removed)} {'entry' if len(removed) == 1 else 'entries'}, "
            f"{short_bytes(sum(entry.bytes for entry in removed))}.",
            highlight=False,
        )
    for entry in busy:
        say(console, f"kept {entry.paths[0]}, which another process is making.")


def _shrink(limit: float) -> tuple[list[Entry], list[Entry]]:
    """Deletes the entries that were not used for longest, until the rest has at most `limit` bytes.

    Returns:
      The entries that were deleted, and those that another process is making.

    Raises:
      SdslError: An entry may not be deleted.
    """
    entries = sorted((e for cache in caches() for e in cache.entries), key=lambda e: e.last_used)
    left = sum(entry.bytes for entry in entries)
    removed, busy = list[Entry](), list[Entry]()
    for entry in entries:
        # An entry without content counts for nothing, but is cleared with the others.
        if left <= limit and limit > 0:
            break
        try:
            done = remove(entry)
        except OSError as error:
            raise SdslError(f"cannot delete {entry.paths[0]} ({error.strerror}).") from None
        (removed if done else busy).append(entry)
        left -= entry.bytes if done else 0
    return removed, busy


def _print(listed: list[Cache]) -> None:
    console = standard_console()
    for cache in listed:
        entries = f"{len(cache.entries):,} {'entry' if len(cache.entries) == 1 else 'entries'}"
        say(console, f"{cache.contents}: {entries}, {short_bytes(cache.bytes)}\n  {cache.folder}")
    say(
        console,
        "Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR instead, and corpora in data.shards of a study, where these\n"
        f"are set. Matplotlib keeps a list of fonts of its own in {_matplotlib()}.",
    )


def _matplotlib() -> Path:
    """Where Matplotlib keeps its list of fonts; it is Matplotlib's own, and other programs use it too."""
    own = os.environ.get("MPLCONFIGDIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(own) if own else Path(home) / "matplotlib"
