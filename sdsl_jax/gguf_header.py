"""Reads the header of a GGUF file: its settings, and where its tensors are.

The file may come from anybody. Every length and count in it is compared with what is left of the
file before anything is read or allocated for it.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from reprlib import repr as shown
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import other_kind, read_bytes, reading

SUFFIX, MAGIC = ".gguf", b"GGUF"
_VERSIONS = (2, 3)
# struct's letters for the types of numbers, by their ids in a file.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# Entries of all lists together; the largest vocabularies have 256 thousand, and twice as many
# merges.
_MOST_ENTRIES = 2**23
_MOST_AXES, _LONGEST_NAME = 4, 256
_ALIGNMENT = 32
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)


class GGUFTensor(NamedTuple):
    """A tensor of a GGUF file; rows are dequantised as they are read.

    Attributes:
      name: Name in the file.
      shape: Shape, outermost axis first.
      file: Path to the file.
      kind: Type, a `gguf.GGMLQuantizationType`.
      offset: Where it begins in the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    file: Path
    kind: Any
    offset: int

    def size(self, elements: int) -> int:
        """Bytes that some of its elements take, in whole blocks."""
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.kind]
        return elements // block * size

    def read(self, start: int, count: int) -> np.ndarray:
        """Some of its rows, float32."""
        from gguf import dequantize

        row = math.prod(self.shape[1:])
        raw = np.frombuffer(
            read_bytes(
                self.file, self.offset + self.size(start * row), self.size(count * row), self.name
            ),
            np.uint8,
        )
        return dequantize(raw.reshape(1, -1), self.kind).reshape(count, *self.shape[1:])


class Header(NamedTuple):
    """The header of a GGUF file.

    Attributes:
      settings: Settings by name: numbers, truth values, strings, or lists of these.
      tensors: Tensors by name.
    """

    settings: dict[str, Any]
    tensors: dict[str, GGUFTensor]


class _Reader:
    """Reads the header in order, never beyond the end of the file."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file, self.size = path, file, path.stat().st_size
        self.position, self._entries = 0, 0

    def fail(self, why: str) -> NoReturn:
        raise SdslError(f"the file {self.path} is truncated or no GGUF file: {why}.")

    def require_left(self, size: int, what: str) -> None:
        if size > self.size - self.position:
            self.fail(
                f"at byte {self.position:,} it announces {what}, and {self.size - self.position:,} bytes are left"
            )

    def take(self, size: int, what: str) -> bytes:
        self.require_left(size, what)
        data = self._file.read(size)
        if len(data) < size:
            self.fail("it became shorter while it was read")
        self.position += size
        return data

    def numbers(self, letter: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize("<" + letter)
        return struct.unpack(
            f"<{count}{letter}", self.take(count * size, f"{count:,} numbers of {size} bytes")
        )

    def count(self, least_bytes: int, what: str) -> int:
        (value,) = self.numbers("Q")
        self.require_left(value * least_bytes, f"{value:,} {what}")
        return value

    def string(self) -> str:
        return self.take(self.count(1, "characters"), "characters").decode(
            "utf-8", errors="replace"
        )

    def name(self) -> str:
        """A string that names something."""
        at, name = self.position, self.string()
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            self.fail(f"at byte {at:,} it has {shown(name)} as a name")
        return name

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind])[0]
        if kind != _ARRAY:
            self.fail(f"at byte {self.position:,} it has a value of the unknown type {kind}")
        (inner,) = self.numbers("I")
        if inner != _STRING and inner not in _NUMBERS:
            self.fail(f"at byte {self.position:,} it has a list of the type {inner}")
        size = 8 if inner == _STRING else struct.calcsize("<" + _NUMBERS[inner])
        length = self.count(size, "entries")
        self._entries += length
        if self._entries > _MOST_ENTRIES:
            self.fail(f"its lists have more than {_MOST_ENTRIES:,} entries")
        return (
            [self.string() for _ in range(length)]
            if inner == _STRING
            else list(self.numbers(_NUMBERS[inner], length))
        )


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name, or by its first bytes where a store names files
    by digest.
    """
    if path.suffix.lower() == SUFFIX:
        return True
    with reading(path):
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
      SdslError: gguf is not installed, or the file is missing, truncated, one part of several,
        big-endian, or of another format.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise SdslError(
            "gguf is not installed; reading a .gguf file needs it: pip install 'sdsl_jax[gguf]'."
        ) from None
    require(path.is_file(), f"the file {path} does not exist.")
    with reading(path, "GGUF file"), open(path, "rb") as file:
        return _read(_Reader(path, file))


def _read(reader: _Reader) -> Header:
    path = reader.path
    head = reader.take(min(64, reader.size), "its first bytes")
    is_ = other_kind(head)
    require(head.startswith(MAGIC) or is_ is None, f"the file {path} is {is_}.")
    if not head.startswith(MAGIC) or len(head) < 24:
        reader.fail(
            "it begins otherwise"
            if not head.startswith(MAGIC)
            else f"it has only {reader.size} bytes"
        )
    version, tensor_count, setting_count = struct.unpack("<IQQ", head[4:24])
    require(
        version & 0xFFFF != 0,
        f"the file {path} is a big-endian GGUF file, which is not read; convert it to little-endian.",
    )
    require(
        version in _VERSIONS,
        f"the file {path} is of version {version} of GGUF; versions {' and '.join(map(str, _VERSIONS))} are read.",
    )
    reader._file.seek(24)
    reader.position = 24
    # A setting takes at least the lengths of its name and value, a tensor those of its name, axes,
    # type and offset.
    reader.require_left(setting_count * 13, f"{setting_count:,} settings")
    reader.require_left(tensor_count * 32, f"{tensor_count:,} tensors")
    settings: dict[str, Any] = {}
    for _ in range(setting_count):
        name = reader.name()
        if name in settings:
            reader.fail(f"it has the setting {name} twice")
        settings[name] = reader.value(reader.numbers("I")[0])
    parts = settings.get("split.count")
    named = _SPLIT.search(path.name)
    require(
        (not isinstance(parts, int) or parts <= 1)
        and (parts is not None or named is None or named[1] == "00001"),
        f"the file {path} is one of {parts or int(named[1] if named else 0)} parts of a model, which are not read; merge "
        "them with gguf-split --merge.",
    )
    descriptions = [_tensor(reader) for _ in range(tensor_count)]
    alignment = settings.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        reader.fail(f"its general.alignment is {shown(alignment)}, which must be a power of two")
    begin = -(-reader.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for tensor in descriptions:
        if tensor.name in tensors:
            reader.fail(f"it has the tensor {tensor.name} twice")
        placed = tensor._replace(offset=begin + tensor.offset)
        end = placed.offset + placed.size(math.prod(placed.shape))
        if end > reader.size:
            reader.fail(f"the tensor {tensor.name} ends at byte {end:,} of {reader.size:,}")
        tensors[tensor.name] = placed
    return Header(settings, tensors)


def _tensor(reader: _Reader) -> GGUFTensor:
    """The description of a tensor, with its offset from the end of the header."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    name = reader.name()
    (axes,) = reader.numbers("I")
    if not 1 <= axes <= _MOST_AXES:
        reader.fail(f"the tensor {name} has {axes} axes")
    shape = reader.numbers("Q", axes)[::-1]
    (kind,) = reader.numbers("I")
    (offset,) = reader.numbers("Q")
    try:
        kind = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[kind]
        dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        reader.fail(
            f"the tensor {name} is of the type {getattr(kind, 'name', kind)}, which the package gguf cannot read"
        )
    if 0 in shape or shape[-1] % block:
        reader.fail(
            f"the tensor {name} has the shape {list(shape)}, which must consist of whole blocks of {block}"
        )
    return GGUFTensor(name, shape, reader.path, kind, offset)
