"""The safetensors files of a published checkpoint, opened and checked; tensors are read a few rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.interop.fields import Fields

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_READABLE = ("F64", "F32", "F16", "BF16")
# Bytes that are read at a time: enough for the disk, and little beside the weights.
_CHUNK = 2**23


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
      name: its name there.
      shape: its shape.
      file: the file.
      handle: the open file.
    """

    name: str
    shape: tuple[int, ...]
    file: Path
    handle: Any

    def chunks(self, skip: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The tensor from row `skip` on, some rows at a time, each time with the number of the first, counted from `skip`."""
        piece = self.handle.get_slice(self.name)
        rows, size = self.shape[0], int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, _CHUNK // (4 * max(size, 1)))
        for start in range(skip, rows, step):
            yield start - skip, piece[start : min(start + step, rows)]


def safe_open(path: Path) -> Any:
    """An open safetensors file.

    Raises:
      SdslError: the library is not installed, or the file is missing, truncated or something else.
    """
    try:
        from safetensors import SafetensorError
        from safetensors import safe_open as opened
    except ImportError:
        raise SdslError(
            "safetensors is not installed; reading a published checkpoint needs it: pip install 'sdsl_jax[interop]'."
        ) from None
    try:
        return opened(path, framework="np")
    except FileNotFoundError:
        raise SdslError(f"the file {path} is missing.") from None
    except (SafetensorError, OSError) as error:
        raise SdslError(f"the file {path} is truncated or no safetensors file ({error}).") from None


def shard_files(folder: Path) -> dict[str, list[str] | None]:
    """The files that hold a checkpoint's weights, each with the tensors that the index promises in it; None without an index.

    Raises:
      SdslError: there are none, or only pickled ones, or the index is damaged.
    """
    if (folder / INDEX).exists():
        table = Fields.read(folder / INDEX).table("weight_map")
        require(table is not None and bool(table.values), f"the file {folder / INDEX} has no weight_map.")
        assert table is not None
        files: dict[str, list[str] | None] = {}
        for tensor, name in table.values.items():
            # A name with folders in it would lead out of the checkpoint.
            if not isinstance(name, str) or Path(name).name != name:
                table.fail(tensor, "the name of a file beside it")
            files.setdefault(name, []).append(tensor)  # type: ignore[union-attr]
        return files
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    require(
        not pickled,
        f"the folder {folder} holds its weights only as {pickled[0] if pickled else ''}, a pickle, which could run code when it is "
        "loaded and is never read; convert it to safetensors where you trust it.",
    )
    raise SdslError(f"the folder {folder} holds no weights: neither {WEIGHTS} nor {INDEX} is there.")


@contextlib.contextmanager
def open_shards(folder: Path) -> Iterator[dict[str, Tensor]]:
    """All tensors of a checkpoint, by name, while its files are open.

    Raises:
      SdslError: a file is missing or damaged, lacks a tensor that the index promises, or holds one twice.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Tensor] = {}
        for name, promised in shard_files(folder).items():
            path = folder / name
            handle = stack.enter_context(safe_open(path))
            held = set(handle.keys())
            for tensor in held:
                require(
                    tensor not in found,
                    f"the tensor {tensor} is in {path} and in {found[tensor].file if tensor in found else ''}; one of them is of "
                    "another checkpoint.",
                )
                found[tensor] = Tensor(tensor, tuple(handle.get_slice(tensor).get_shape()), path, handle)
            lacking = sorted(set(promised or ()) - held)
            require(
                not lacking, f"the file {path} lacks the tensor {lacking[0] if lacking else ''}, which {INDEX} says it holds."
            )
        yield found


def require_readable(tensor: Tensor) -> None:
    """Raises `SdslError` where a tensor's numbers are none that weights are read from."""
    kind = tensor.handle.get_slice(tensor.name).get_dtype()
    require(
        kind in _READABLE,
        f"the tensor {tensor.name} in {tensor.file} is of type {kind}; weights must be one of {', '.join(_READABLE)}.",
    )
