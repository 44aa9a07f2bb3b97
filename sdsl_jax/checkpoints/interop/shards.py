"""The safetensors files of a published checkpoint, checked. Tensors are read a few rows at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from sdsl_jax.checkpoints.interop.settings import Fields, printable
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import other_kind, parse_json, read_bytes, read_json_object, reading

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Types that weights are read from, by their names in a file.
_READABLE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Ends of names of files that weights come in besides.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_WEIGHTS = {
    ".safetensors": f"of several files an index is needed, and a single one is called {WEIGHTS}",
    ".gguf": "give that file itself",
    ".h5": "weights of TensorFlow are not read",
    ".msgpack": "weights of Flax are not read",
    ".onnx": "weights of ONNX are not read",
}
# What is read at a time, at most: enough for the disk, and little beside the weights.
_CHUNK_BYTES, _CHUNK_ROWS = 2**23, 2**8


def chunk_rows(row_bytes: int) -> int:
    """Rows to read at a time: a power of two, so that few shapes have to be compiled."""
    return 2 ** int(math.log2(max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(row_bytes, 1)))))


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
      name: Name in the file.
      shape: Shape.
      file: Path to the file.
      kind: Type, as the file names it.
      offset: Where it begins in the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    file: Path
    kind: str
    offset: int

    def read(self, start: int, count: int) -> np.ndarray:
        """Some of its rows. They are read, not mapped into memory: pages of a mapped file would
        count as the process's own.
        """
        dtype, shape = np.dtype(_READABLE[self.kind]), self.shape[1:]
        size = dtype.itemsize * math.prod(shape)
        data = read_bytes(self.file, self.offset + start * size, count * size, self.name)
        return np.frombuffer(data, dtype).reshape(count, *shape)


class Readable(Protocol):
    """A tensor that can be read some rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` of its rows, from row `start` on."""


def spans(tensor: Readable, skip: int = 0) -> list[tuple[int, int]]:
    """First row and number of rows of each part to read, from row `skip` on."""
    # As if in float32, whatever the type in the file.
    step, rows = chunk_rows(4 * math.prod(tensor.shape[1:])), tensor.shape[0]
    return [(start, min(step, rows - start)) for start in range(skip, rows, step)]


def _headers(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `safe_open` has checked. The file holds 8 bytes of length, a JSON
    header of that length, then the data.
    """
    with reading(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length), f"the header of {path}")
        return {
            name: Tensor(
                name,
                tuple(about["shape"]),
                path,
                about["dtype"],
                8 + length + about["data_offsets"][0],
            )
            for name, about in header.items()
            if name != "__metadata__"
        }


def safe_open(path: Path) -> Any:
    """An open safetensors file.

    Raises:
      SdslError: The library is not installed, or the file is missing, truncated or of another
        format.
    """
    try:
        from safetensors import SafetensorError
        from safetensors import safe_open as opened
    except ImportError:
        raise SdslError(
            "safetensors is not installed; reading a published checkpoint needs it: pip install 'sdsl_jax[interop]'."
        ) from None
    require(path.is_file(), f"the file {path} is missing.")
    with reading(path), open(path, "rb") as file:
        is_ = other_kind(file.read(64))
    require(is_ is None, f"the file {path} is {is_}.")
    try:
        return opened(path, framework="np")
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise SdslError(f"the file {path} is truncated or no safetensors file ({error}).") from None


def shard_files(folder: Path) -> dict[str, list[str] | None]:
    """The files that hold a checkpoint's weights, each with the tensors that the index promises in
    it; None without an index.

    Raises:
      SdslError: There are no files, or only pickled ones, or the index is damaged.
    """
    require(
        not ((folder / INDEX).exists() and (folder / WEIGHTS).exists()),
        f"the folder {folder} holds both {WEIGHTS} and {INDEX}, which may be two models; remove one of them.",
    )
    if (folder / INDEX).exists():
        table = Fields(folder / INDEX, read_json_object(folder / INDEX, "index")).table(
            "weight_map"
        )
        require(
            table is not None and table.values,
            f"the file {folder / INDEX} has no weight_map.",
        )
        assert table is not None
        files: dict[str, list[str] | None] = {}
        for tensor, name in table.values.items():
            # A name with folders in it would lead out of the checkpoint.
            plain = isinstance(name, str) and name == printable(name) == Path(name).name
            if not plain or not name.endswith(".safetensors"):
                table.fail(tensor, "the name of a file beside it")
            files.setdefault(name, []).append(tensor)  # type: ignore[union-attr]
        return files
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    others = [p.name for p in sorted(folder.iterdir()) if p.is_file()]
    pickled = [
        n
        for n in others
        if n.endswith(_PICKLES) and n not in ("training_args.bin", "optimizer.pt", "scheduler.pt")
    ]
    if pickled:
        raise SdslError(
            f"the folder {folder} holds its weights only as {pickled[0]}, a pickle, which could run code when it "
            "is loaded and is never read; convert it to safetensors where you trust it."
        )
    for end, what in _OTHER_WEIGHTS.items():
        name = next((name for name in others if name.endswith(end)), None)
        require(
            name is None,
            f"the folder {folder} holds no {WEIGHTS} and no {INDEX}, but {name}: {what}.",
        )
    raise SdslError(
        f"the folder {folder} holds no weights: neither {WEIGHTS} nor {INDEX} is there."
    )


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name.

    Raises:
      SdslError: A file is missing or damaged, lacks a tensor that the index promises, or holds a
        tensor of another file.
    """
    tensors: dict[str, Tensor] = {}
    for name, promised in shard_files(folder).items():
        path = folder / name
        with safe_open(path):  # checks the whole header against the file
            in_file = _headers(path)
        for tensor in in_file:
            require(
                tensor not in tensors,
                f"the tensor {printable(tensor)} is in {path} and in {tensors[tensor].file if tensor in tensors else ''}; one of "
                "them is of another checkpoint.",
            )
            tensors[tensor] = in_file[tensor]
        lacking = sorted(set(promised or ()) - set(in_file))
        if lacking:
            raise SdslError(
                f"the file {path} lacks the tensor {printable(lacking[0])}, which {INDEX} says it holds."
            )
    return tensors


def require_readable(tensor: Tensor) -> None:
    """Raises `SdslError` unless a tensor has a type that weights can be read from."""
    require(
        tensor.kind in _READABLE,
        f"the tensor {tensor.name} in {tensor.file} is of type {tensor.kind}; weights must be one of {', '.join(_READABLE)}.",
    )
