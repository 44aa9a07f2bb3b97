"""Checkpoints on disk: the only module that knows Orbax.

A checkpoint is an Orbax folder with a manifest: size and SHA-256 of every file. It is written under
a temporary name and renamed once it is complete. A process killed at any moment therefore leaves
either a whole checkpoint or none, and two processes that write the same checkpoint do not touch
each other's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sdsl_jax.digests import file_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.processes import is_primary, raised_on_all
from sdsl_jax.records import read_json, write_json

MANIFEST = "manifest.json"
_NAME = "tree"
_DELETED = ".deleted-"
_PARTIAL = ".partial"
_COMMITTED = "commit_success.txt"


class Restored(NamedTuple):
    """A pytree and the plain values that were saved with it."""

    tree: Any
    metadata: dict[str, Any]


def save(path: Path, tree: Any, metadata: dict[str, Any]) -> None:
    """Writes a pytree of arrays to the folder `path`, which appears only once it is complete. An
    older one is replaced.

    All processes of a distributed program must call it; it fails on all of them or on none.

    Raises:
      SdslError: The folder cannot be written or the disk is full; whatever was at `path` is still
        there.
    """
    # The processes of one distributed program write one checkpoint together and must agree on its
    # name.
    own = secrets.token_hex(4) if jax.process_count() == 1 else "shared"
    partial = path.absolute().with_name(f".{path.name}.{own}{_PARTIAL}")
    with raised_on_all(
        f"cannot write the checkpoint {path}, as another process finds; that one says why."
    ):
        try:
            with _quiet():
                ocp.save_checkpointables(
                    partial, {_NAME: tree}, overwrite=True, custom_metadata=metadata
                )
            if is_primary():
                # Orbax looks for this file only, and writes to it where the checkpoint lay: a
                # matter of one machine.
                (partial / _COMMITTED).write_text("whole\n")
                write_json(partial / MANIFEST, _manifest(partial))
                _publish(partial, path)
        except Exception as error:
            # Orbax and TensorStore raise many kinds of errors for the same thing: the files could
            # not be written.
            for left in partial.parent.glob(f"{partial.name}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise SdslError(
                f"cannot write the checkpoint {path} ({_reason(error)}); the checkpoints before it are still there, and the "
                "same command continues from them."
            ) from None


def restore(path: Path, like: Any) -> Restored:
    """Reads the pytree in the folder `path`, after checking every file against the manifest.

    All processes of a distributed program must call it; it fails on all of them or on none.

    Args:
      path: Folder that `save` wrote.
      like: Pytree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and types that
        the checkpoint must have. Leaves with a sharding are placed by it, the others on the first
        device.

    Raises:
      SdslError: There is no checkpoint, it is damaged, or its arrays have other shapes.
    """
    elsewhere = f"the checkpoint {path} is damaged, as another process finds."
    with raised_on_all(elsewhere):
        problem = damage(path)
        require(problem is None, f"the checkpoint {path} is damaged: {problem}.")
    with raised_on_all(elsewhere):
        return _load(path, like)


def restore_params(path: Path, like: Any, expected: str) -> Any:
    """Reads parameters and checks them against the digest recorded when they were written.

    Raises:
      SdslError: There are none, they are damaged, or they are not those recorded.
    """
    require(path.is_dir(), f"there is no checkpoint in {path}.")
    params = restore(path, like).tree
    actual = digest(params)
    require(
        actual == expected,
        f"the checkpoint {path} is damaged: its digest is {actual[:12]}, and {expected[:12]} was recorded.",
    )
    return params


def damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint according to its manifest; None if nothing is."""
    if not path.is_dir():
        return "there is no such folder"
    if not (path / MANIFEST).exists():
        return f"it lacks {MANIFEST}"
    try:
        for name, recorded in read_json(path / MANIFEST, keys=("files",))["files"].items():
            file = path / name
            if not file.is_file():
                return f"it lacks {name}"
            if (size := file.stat().st_size) != recorded["bytes"]:
                return f"{name} has {size} bytes instead of {recorded['bytes']}"
            if file_sha256(file) != recorded["sha256"]:
                return f"{name} holds other bytes than were written"
    except (SdslError, OSError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def steps(folder: Path) -> list[int]:
    """The steps for which `folder` holds a checkpoint named by its step, ascending, damaged ones
    included.
    """
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())


def digest(params: Any) -> str:
    """SHA-256 over the parameters: path, shape, type and bytes of every array, sorted by path."""
    sha = hashlib.sha256()
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path in sorted(leaves):
        array = np.asarray(leaves[path])
        sha.update(f"{path} {array.shape} {array.dtype}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def delete(path: Path) -> None:
    """Removes a checkpoint. It disappears at once, by a rename, before its files are deleted."""
    doomed = path.with_name(f"{_DELETED}{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
    """Removes what killed processes left half-written or half-deleted anywhere in `folder`."""
    left = [p for p in folder.rglob(".*") if p.name.startswith(_DELETED) or _PARTIAL in p.name]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _load(path: Path, like: Any) -> Restored:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device
        )

    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore", UserWarning)
            tree = ocp.load_checkpointables(path.absolute(), {_NAME: jax.tree.map(target, like)})[
                _NAME
            ]
            metadata = ocp.checkpointables_metadata(path.absolute()).custom_metadata
            return Restored(tree, dict(metadata or {}))
    except Exception as error:
        raise SdslError(
            f"the checkpoint {path} is damaged or belongs to a model of another shape ({_reason(error)})."
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the log of Orbax, which describes an error at length before raising it."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        "files": {
            str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
            for p in files
        },
    }


def _publish(partial: Path, path: Path) -> None:
    """Gives a complete checkpoint its name. One with the same name, perhaps from another process,
    is deleted.
    """
    while True:
        try:
            os.rename(partial, path)
            return
        except OSError:
            if not path.exists():
                raise
            delete(path)


def _reason(error: Exception) -> str:
    """The first line of an error, shortened."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines()
    return lines[0][-200:] if lines else type(error).__name__
