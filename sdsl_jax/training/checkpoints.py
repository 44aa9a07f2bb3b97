"""Checkpoints: the only place that knows Orbax."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sdsl_jax.errors import SdslError

Tree = TypeVar("Tree")
_NAME = "tree"


class Restored(NamedTuple):
    """A pytree and the plain values that were saved beside it."""

    tree: Any
    metadata: dict[str, Any]


def save(path: Path, tree: Any, metadata: dict[str, Any]) -> None:
    """Writes a pytree of arrays to the folder `path`, which appears only when it is complete.

    Raises:
      SdslError: the folder cannot be written to.
    """
    try:
        ocp.save_checkpointables(path.absolute(), {_NAME: tree}, overwrite=True, custom_metadata=metadata)
    except OSError as error:
        raise SdslError(f"cannot write the checkpoint {path} ({error.strerror or error}).") from None


def restore(path: Path, like: Any) -> Restored:
    """Reads the pytree in the folder `path`.

    Args:
      path: a folder that `save` wrote.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s, whose structure, shapes and types the checkpoint must have.

    Raises:
      SdslError: there is no checkpoint, it is damaged, or it holds arrays of other shapes.
    """
    if not path.is_dir():
        raise SdslError(f"there is no checkpoint in {path}.")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            tree = ocp.load_checkpointables(path.absolute(), {_NAME: like})[_NAME]
            metadata = ocp.checkpointables_metadata(path.absolute()).custom_metadata
    except Exception as error:
        # Orbax and TensorStore raise many kinds of errors for the same thing: the folder is not what was saved.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise SdslError(
            f"the checkpoint {path} is damaged or belongs to a model of another shape; delete it to train again ({reason})."
        ) from None
    return Restored(tree, dict(metadata or {}))


def steps(folder: Path) -> list[int]:
    """The steps for which `folder` holds a complete checkpoint named by its step, ascending."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit() and ocp.is_orbax_checkpoint(p))


def digest(params: Any) -> str:
    """SHA-256 over the parameters: path, shape, type and bytes of every array, in the order of their paths."""
    sha = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(leaves):
        array = np.asarray(leaves[path])
        sha.update(f"{path} {array.shape} {array.dtype}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def delete(path: Path) -> None:
    """Removes a checkpoint; it disappears at once, by a rename, before its files are deleted."""
    doomed = path.with_name(f".deleted-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def verify(path: Path, params: Any, expected: str) -> None:
    """Checks that parameters read from `path` have the digest that was recorded when they were written.

    Raises:
      SdslError: they have not.
    """
    found = digest(params)
    if found != expected:
        raise SdslError(
            f"the checkpoint {path} is damaged: its digest is {found[:12]}, and {expected[:12]} was recorded."
        )
