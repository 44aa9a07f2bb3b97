"""Reads a published checkpoint's folder: checks configuration and tensors against each other, and
reads the weights into our model.

    config.json                     the architecture; see `families`
    model.safetensors               the weights, or several files and
    model.safetensors.index.json    which of them holds which tensor

A plan says which published tensors each of our arrays consists of, in both directions. Arrays are
read one after another, a few rows at a time, straight into their final type and place: memory never
holds more than the finished weights and one more array. No pickle is opened and no code of a
checkpoint is run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdsl_jax.checkpoints.identity import array_digest, array_name
from sdsl_jax.checkpoints.interop.families import Family, Layout, family_of, unknown_rope_settings
from sdsl_jax.checkpoints.interop.settings import (
    CONFIG,
    HUGGING_FACE,
    Fields,
    printable,
    require_settings,
    unknown_warning,
)
from sdsl_jax.checkpoints.interop.shards import (
    Readable,
    Tensor,
    find_tensors,
    require_readable,
    spans,
)
from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.transformer import Params, abstract_params
from sdsl_jax.models.weights import Matrix, WeightStorage, stored


class Piece(NamedTuple):
    """A published tensor, and where it goes in one of our arrays.

    Attributes:
      tensor: Name of the tensor.
      shape: Published shape.
      transposed: Whether its rows are our columns.
      skip: Number of leading rows to leave out.
      order: Our columns (entries, of a vector) for each of its rows; None if they follow the piece
        before.
    """

    tensor: str
    shape: tuple[int, ...]
    transposed: bool = False
    skip: int = 0
    order: np.ndarray | None = None


# Of each of our arrays, by its path in the parameters, such as "blocks.0.attention.qkv".
Plan = dict[str, tuple[Piece, ...]]


def plan(config: ModelConfig, layout: Layout) -> Plan:
    """The pieces of every array of a model."""
    c = config
    pieces: Plan = {}

    def matrix(
        path: str, inputs: int, outputs: tuple[int, ...], names: tuple[str, ...], order=None
    ) -> None:
        shapes = [(size, inputs) if layout.transposed else (inputs, size) for size in outputs]
        pieces[path] = tuple(
            Piece(f"{name}.weight", shape, layout.transposed, order=order)
            for name, shape in zip(names, shapes)
        )

    def vector(
        path: str, sizes: tuple[int, ...], names: tuple[str, ...], suffix: str = "bias", order=None
    ) -> None:
        pieces[path] = tuple(
            Piece(f"{name}.{suffix}", (size,), order=order) for name, size in zip(names, sizes)
        )

    def norm(path: str, name: str, size: int) -> None:
        vector(f"{path}.scale", (size,), (name,), "weight")
        if c.norm == "layer":
            vector(f"{path}.bias", (size,), (name,))

    base, table = layout.base, c.table_width
    pieces["embedding"] = (Piece(f"{base}{layout.embedding}.weight", (c.vocab_size, table)),)
    if c.positions == "learned":
        rows = c.max_positions + layout.first_position
        pieces["positions"] = (
            Piece(f"{base}{layout.positions}.weight", (rows, c.width), skip=layout.first_position),
        )
    if c.embedding_width:
        matrix("project_in", table, (c.width,), (base + layout.project_in,))
        matrix("project_out", c.width, (table,), (base + layout.project_out,))
    if c.final_norm:
        norm("final_norm", base + layout.final_norm, c.width)
    if not c.tie_embeddings:
        pieces["head"] = (Piece(f"{layout.head}.weight", (c.vocab_size, table), transposed=True),)
    query, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    sizes: tuple[int, ...] = (query, kv, kv)
    order = None
    if len(layout.qkv) == 1:
        sizes = (query + 2 * kv,)
        if layout.by_head:
            # Published as heads × (query, key, value) × head size; ours as (query, key, value) ×
            # heads × head size.
            order = np.arange(sizes[0]).reshape(3, c.heads, c.head_dim).transpose(1, 0, 2).ravel()
    inner = (c.hidden,) * len(layout.gate_up)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", base + layout.block.format(i)

        def named(names: tuple[str, ...], theirs: str = theirs) -> tuple[str, ...]:
            return tuple(theirs + name for name in names)

        norm(f"{ours}.attention_norm", theirs + layout.attention_norm, c.width)
        norm(f"{ours}.mlp_norm", theirs + layout.mlp_norm, c.width)
        matrix(f"{ours}.attention.qkv", c.width, sizes, named(layout.qkv), order)
        matrix(f"{ours}.attention.out", query, (c.width,), named((layout.out,)))
        matrix(f"{ours}.mlp.gate_up", c.width, inner, named(layout.gate_up))
        matrix(f"{ours}.mlp.down", c.hidden, (c.width,), named((layout.down,)))
        if c.qkv_bias:
            vector(f"{ours}.attention.qkv_bias", sizes, named(layout.qkv), order=order)
        if c.out_bias:
            vector(f"{ours}.attention.out_bias", (c.width,), named((layout.out,)))
        if c.mlp_bias:
            vector(f"{ours}.mlp.gate_up_bias", inner, named(layout.gate_up))
            vector(f"{ours}.mlp.down_bias", (c.width,), named((layout.down,)))
        if c.qk_norm:
            for role, name in (("query", layout.query_norm), ("key", layout.key_norm)):
                path = f"{ours}.attention.{role}_norm.scale"
                vector(path, (c.head_dim,), (theirs + name,), "weight")
    return pieces


# Key of config.json in our own exports, and what it says of a tied model whose embedding has a
# factor; see `export`.
OWN = "sdsl_jax"

# Bytes; what XLA asks for on a CPU.
_ALIGNMENT = 64
# Axes up to this length cost nothing; where the files have no such axis, the comparison of shapes
# says it better.
_SMALL = 2**20
# Parts of an array that are read side by side.
_READERS = 4
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Checkpoint(NamedTuple):
    """A checkpoint whose configuration and tensors agree.

    Attributes:
      folder: Folder or file of the checkpoint.
      config: Architecture.
      fields: The settings in its config.json.
      pieces: What each of our arrays consists of.
      tensors: Tensors by the names in `pieces`.
      unknown_settings: Names of settings that this package does not know.
      ignored_settings: Names of settings that were ignored at the user's request.
      warnings: What a reader should know about how the file was read, one sentence each.
    """

    folder: Path
    config: ModelConfig
    fields: Fields
    pieces: Plan
    tensors: Mapping[str, Readable]
    unknown_settings: tuple[str, ...] = ()
    ignored_settings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def load(
        self,
        dtype: str = "float32",
        shardings: Any = None,
        advance: Callable[[float, str], None] | None = None,
        digests: dict[str, bytes] | None = None,
        weights: WeightStorage = "as-loaded",
    ) -> Params:
        """Reads the weights.

        Args:
          dtype: Type to read them into, a key of `DTYPES`.
          shardings: Where each array goes, as a tree like the parameters; the default device if
            None.
          advance: Called after each array with the share of the weights it makes up and its name.
          digests: Filled with the `array_digest` of each array by name, as the arrays pass by.
          weights: How to store the matrices; each is stored as soon as it is read, so no second
            copy of the model exists at any time.

        Raises:
          SdslError: A file cannot be read.
        """
        require(
            dtype in DTYPES,
            f"the type of the weights is {dtype!r}; it must be one of {', '.join(DTYPES)}.",
        )
        abstract = abstract_params(self.config)
        total = sum(leaf.size for leaf in jax.tree.leaves(abstract))

        def read(path: Any, leaf: Any, sharding: Any = None) -> Matrix:
            name = array_name(path)
            host = _aligned(leaf.shape, DTYPES[dtype])
            _fill(host, self.pieces[name], self.tensors, pool)
            if digests is not None:
                # Beside the next array's reading; no more than one array waits for it.
                wait(digesting.values())
                digesting[name] = pool.submit(array_digest, host)
            placed = stored(path, jax.device_put(host, sharding), weights)
            if advance is not None:
                advance(leaf.size / total, name)
            return placed

        trees = [] if shardings is None else [shardings]
        digesting: dict[str, Future[bytes]] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            params = jax.tree_util.tree_map_with_path(read, abstract, *trees)
        if digests is not None:
            digests |= {name: future.result() for name, future in digesting.items()}
        return params


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that begins where jax wants it to begin on a CPU, so that jax takes it over without a
    copy.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


@functools.partial(jax.jit, static_argnames=("transposed", "dtype"))
def _laid_out(rows: Array, transposed: bool, dtype: str) -> Array:
    return (rows.T if transposed else rows).astype(dtype)


def _copy(out: np.ndarray, columns: bool, at: Any, rows: np.ndarray, regular: bool) -> None:
    """Writes rows of a tensor to rows or columns of an array.

    A compiled program transposes and converts faster than numpy (2.5 against 0.4 to 0.8 GB/s on two
    cores). The last few rows of a tensor do not deserve a program of their own.
    """
    if regular and rows.dtype != np.float64 and (columns or rows.dtype != out.dtype):
        cpu = jax.devices("cpu")[0]
        rows = np.asarray(_laid_out(jax.device_put(rows, cpu), columns, out.dtype.name))
    else:
        rows = (rows.T if columns else rows).astype(out.dtype, copy=False)
    # As bits: numpy copies types that are not its own, such as bfloat16, element by element.
    bits = np.dtype(f"u{out.itemsize}")
    out.view(bits)[(slice(None), at) if columns else at] = rows.view(bits)


def _fill(
    out: np.ndarray, pieces: tuple[Piece, ...], tensors: Mapping[str, Readable], pool: Executor
) -> None:
    """Copies the pieces of one array into it, several parts at a time."""

    def part(piece: Piece, begin: int, start: int, count: int, regular: bool) -> None:
        first = start - piece.skip
        at: Any = slice(begin + first, begin + first + count)
        if piece.order is not None:
            at = piece.order[first : first + count]
        _copy(out, piece.transposed, at, tensors[piece.tensor].read(start, count), regular)

    begin, parts = 0, []
    for piece in pieces:
        ranges = spans(tensors[piece.tensor], piece.skip)
        parts += [
            (piece, begin, start, count, count == ranges[0][1] and len(ranges) > 1)
            for start, count in ranges
        ]
        begin += piece.shape[0] - piece.skip
    for done in [pool.submit(part, *arguments) for arguments in parts]:
        done.result()


def open_checkpoint(folder: str | Path, ignore: Sequence[str] = ()) -> Checkpoint:
    """Opens a checkpoint and checks its headers. No weight is read yet.

    Args:
      folder: Folder with config.json and safetensors files.
      ignore: Settings of config.json to read as if they were absent.

    Raises:
      SdslError: Something is missing, damaged, of an unknown family, or contradicts something else.
        The message names the file, the tensor or field, and what was expected.
    """
    folder = Path(folder)
    require(
        folder.is_dir(),
        f"the folder {folder} does not exist." if not folder.exists() else f"{folder} is a file.",
    )
    fields, ignored = Fields.read(folder / CONFIG).without(ignore)
    family, config, unknown = read_settings(fields)
    tensors = find_tensors(folder)
    require_room(config, fields, tensors, "num_hidden_layers")
    _require_plain(tensors)
    config, pieces = _own_export(config, fields, family, tensors)
    matched = _match(config, pieces, family, fields, tensors)
    warnings = tuple(unknown_warning(unknown, fields.path))
    return Checkpoint(folder, config, fields, pieces, matched, unknown, ignored, warnings)


def read_settings(fields: Fields) -> tuple[Family, ModelConfig, tuple[str, ...]]:
    """The family and architecture that a config.json describes, and the names of settings that this
    package does not know.

    Raises:
      SdslError: A setting is missing, has the wrong type, or asks for something not implemented.
    """
    family = family_of(fields)
    with naming(fields):
        config = family.config(fields)
    unknown = require_settings(fields, HUGGING_FACE[fields.values["model_type"]], config)
    return family, config, (*unknown, *unknown_rope_settings(fields), *_own_code(fields, family))


@contextmanager
def naming(fields: Fields) -> Iterator[None]:
    """Within the block, error messages that do not name the settings' file are prefixed with it."""
    try:
        yield
    except SdslError as error:
        message = str(error)
        raise SdslError(
            message if str(fields.path) in message else f"in {fields.path}: {message}"
        ) from None


def _own_code(fields: Fields, family: Family) -> list[str]:
    """Settings that name code other than the family's own class."""
    names = fields.values.get("architectures")
    plain = {
        family.architecture.lower(),
        family.architecture.lower().replace("forcausallm", "model"),
    }
    own = not names or (
        isinstance(names, list) and all(str(name).lower() in plain for name in names)
    )
    code = fields.values.get("auto_map")
    custom = isinstance(code, dict) and any(str(name).startswith("AutoModel") for name in code)
    return [*([] if own else ["architectures"]), *(["auto_map"] if custom else [])]


def require_room(
    config: ModelConfig, fields: Fields, tensors: Mapping[str, Readable], layers: str
) -> None:
    """Refuses sizes that the file cannot hold, before anything is allocated or looped over.

    Args:
      config: Architecture implied by the file's settings.
      fields: These settings.
      tensors: Tensors in the file, by name.
      layers: Name of the setting that gives the number of layers.

    Raises:
      SdslError: There are more layers than tensors, or an axis longer than any in the file.
    """
    require(
        config.layers <= len(tensors),
        f"{fields.name(layers)} of {fields.path} is {config.layers}; the files hold only {len(tensors)} tensors.",
    )
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    c = config
    sizes = {
        "width": c.width,
        "hidden size": c.hidden,
        "vocabulary": c.vocab_size,
        "embedding's width": c.table_width,
    }
    sizes |= {
        "heads times head size": c.heads * c.head_dim,
        "key-value heads times head size": c.kv_heads * c.head_dim,
    }
    if c.positions == "learned":
        sizes["positions"] = c.max_positions
    name, size = max(sizes.items(), key=lambda item: item[1])
    require(
        size <= max(longest, _SMALL),
        f"{fields.path} implies that the model's {name} is {size}; no axis of a tensor in the files is longer than {longest}.",
    )


# Ends of names of tensors that hold quantised weights, and what writes them.
_PACKED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or fp8",
    ".weight_scale_inv": "fp8",
    ".absmax": "bitsandbytes",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".biases": "MLX",
}


def _require_plain(tensors: Mapping[str, Tensor]) -> None:
    """Raises `SdslError` if the names or types of tensors show that weights are quantised."""
    for name, tensor in tensors.items():
        by = next((by for end, by in _PACKED.items() if name.endswith(end)), None)
        by = "fp8" if by is None and tensor.kind.startswith("F8_") else by
        require(
            by is None,
            f"the tensor {printable(name)} in {tensor.file} is of weights quantised by {by} (type {tensor.kind}), which is "
            "not read; use the folder of the original weights.",
        )


def _own_export(
    config: ModelConfig, fields: Fields, family: Family, tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, Plan]:
    """The configuration and plan; if this is still an unchanged export of ours, those of the tied
    model it came from.

    Such a folder is untied, with an embedding that is √width times the head. If that no longer
    holds, because somebody trained it further, it is an untied model like any other.
    """
    pieces = plan(config, family.layout)
    own = fields.values.get(OWN)
    if not isinstance(own, dict) or own.get("tied") is not True or config.tie_embeddings:
        return config, pieces
    embedding, head = pieces["embedding"][0], pieces["head"][0]
    pair = [tensors.get(piece.tensor) for piece in (embedding, head)]
    if not all(tensor is not None and tensor.shape == embedding.shape for tensor in pair):
        return config, pieces
    for start, rows in spans(pair[0]):  # type: ignore[arg-type]
        multiplied, plain = (tensor.read(start, rows) for tensor in pair)  # type: ignore[union-attr]
        if not np.array_equal(multiplied, plain * plain.dtype.type(config.width**0.5)):
            return config, pieces
    config = dataclasses.replace(config, tie_embeddings=True, scale_embedding=True)
    return config, plan(config, family.layout) | {"embedding": (head._replace(transposed=False),)}


def _match(
    config: ModelConfig, pieces: Plan, family: Family, fields: Fields, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensor of every piece; raises `SdslError` if one is missing, has another shape, or is
    left over.
    """
    layout, matched = family.layout, {}
    untied = "; where the embedding serves as the head, set tie_word_embeddings to true"
    files = sorted({tensor.file.name for tensor in tensors.values()})
    where = files[0] if len(files) == 1 else f"any of the {len(files)} files of weights"
    for piece in (piece for parts in pieces.values() for piece in parts):
        own = piece.tensor.removeprefix(layout.base)
        names = [piece.tensor, *([layout.bare + own] if own != piece.tensor else [])]
        name = next((name for name in names if name in tensors), None)
        require(
            name is not None,
            f"the folder {fields.path.parent} lacks the tensor {piece.tensor} of shape {list(piece.shape)}, which {CONFIG} "
            f"implies; it is not in {where}{untied if piece is pieces.get('head', (None,))[0] else ''}.",
        )
        tensor = tensors[name]  # type: ignore[index]
        require(
            tensor.shape == piece.shape,
            f"the tensor {name} in {tensor.file} has the shape {list(tensor.shape)}; {CONFIG} implies {list(piece.shape)}.",
        )
        require_readable(tensor)
        matched[piece.tensor] = tensor
    used = {tensor.name for tensor in matched.values()}
    rest = sorted(
        name
        for name in tensors
        if name not in used and not name.endswith(layout.buffers or ("\0",))
    )
    if f"{layout.head}.weight" in rest and config.tie_embeddings:
        rest.remove(f"{layout.head}.weight")
        if not config.scale_embedding:
            _require_tied(
                matched[pieces["embedding"][0].tensor], tensors[f"{layout.head}.weight"], fields
            )
    if config.scale_embedding:  # an export of ours: what is left over is the multiplied embedding
        rest = [name for name in rest if name != f"{layout.base}{layout.embedding}.weight"]
    if rest:
        raise SdslError(
            f"the tensor {printable(rest[0])} in {tensors[rest[0]].file} has no place in the "
            f"model that {CONFIG} describes."
        )
    return matched


def _require_tied(embedding: Tensor, head: Tensor, fields: Fields) -> None:
    """Raises `SdslError` unless a head that stands beside a tied embedding equals it."""
    same = embedding.shape == head.shape and all(
        np.array_equal(embedding.read(*span), head.read(*span)) for span in spans(embedding)
    )
    require(
        same,
        f"the tensor {head.name} in {head.file} differs from {embedding.name}, but tie_word_embeddings of {fields.path} is true.",
    )
