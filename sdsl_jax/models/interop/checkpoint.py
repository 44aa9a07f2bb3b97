"""A published checkpoint's folder: its configuration and tensors checked against each other, its weights read into our model.

    config.json                     the shape; see `families`
    model.safetensors               the weights, or several files and
    model.safetensors.index.json    which of them holds which tensor

Arrays are read one after another, a few rows at a time, straight into the type and place that they are wanted in: beside the
finished weights there is never more than the array at hand. No pickle is opened and no code of a checkpoint is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.interop.fields import CONFIG, Fields
from sdsl_jax.models.interop.families import Family, family_of
from sdsl_jax.models.interop.plan import Piece, Plan, plan
from sdsl_jax.models.interop.shards import Tensor, open_shards, require_readable
from sdsl_jax.models.transformer import Params, abstract_params

# Key of config.json in our own exports, and what it says of a tied model whose embedding has a factor; see `export`.
OWN = "sdsl_jax"

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Checkpoint(NamedTuple):
    """An open checkpoint whose configuration and tensors agree.

    Attributes:
      folder: where it lies.
      config: its shape.
      fields: its config.json.
      pieces: what each of our arrays is made of.
      tensors: by the names in `pieces`.
    """

    folder: Path
    config: ModelConfig
    fields: Fields
    pieces: Plan
    tensors: Mapping[str, Tensor]

    def load(
        self, dtype: str = "float32", shardings: Any = None, advance: Callable[[float, str], None] | None = None
    ) -> Params:
        """The weights.

        Args:
          dtype: that they are wanted in, a key of `DTYPES`.
          shardings: where each array goes, a tree like the parameters; the default device if None.
          advance: told the share of the weights that was read, and the name of the array, after each.

        Raises:
          SdslError: a file cannot be read.
        """
        require(dtype in DTYPES, f"the type of the weights is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        abstract = abstract_params(self.config)
        total = sum(leaf.size for leaf in jax.tree.leaves(abstract))

        def read(path: Any, leaf: Any, sharding: Any = None) -> jax.Array:
            name = array_name(path)
            host = np.empty(leaf.shape, DTYPES[dtype])
            _fill(host, self.pieces[name], self.tensors)
            placed = jax.device_put(host, sharding)
            if advance is not None:
                advance(leaf.size / total, name)
            return placed

        trees = [] if shardings is None else [shardings]
        return jax.tree_util.tree_map_with_path(read, abstract, *trees)


def array_name(path: Any) -> str:
    """The name of an array in a plan, from its path in the parameters."""
    names = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    return ".".join(name for name in names if name != "value")


def _fill(out: np.ndarray, pieces: tuple[Piece, ...], tensors: Mapping[str, Tensor]) -> None:
    """Copies the pieces of one array into it."""
    begin = 0
    for piece in pieces:
        for start, rows in tensors[piece.tensor].chunks(piece.skip):
            at: Any = slice(begin + start, begin + start + len(rows))
            if piece.order is not None:
                at = piece.order[start : start + len(rows)]
            if piece.transposed:
                out[:, at] = rows.T
            else:
                out[at] = rows
        begin += piece.shape[0] - piece.skip

@contextlib.contextmanager
def open_checkpoint(folder: str | Path) -> Iterator[Checkpoint]:
    """Opens a checkpoint and checks its headers; no weight is read yet.

    Args:
      folder: with config.json and safetensors files.

    Raises:
      SdslError: something is missing, damaged, of an unknown family, or in contradiction to something else; a sentence that names
        the file, the tensor or field, and what was expected.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"the folder {folder} does not exist." if not folder.exists() else f"{folder} is a file.")
    fields = Fields.read(folder / CONFIG)
    family = family_of(fields)
    try:
        config = family.config(fields)
    except SdslError as error:
        message = str(error)
        raise SdslError(message if str(fields.path) in message else f"in {fields.path}: {message}") from None
    with open_shards(folder) as tensors:
        config, pieces = _own_export(config, fields, family, tensors)
        yield Checkpoint(folder, config, fields, pieces, _match(config, pieces, family, fields, tensors))


def _own_export(
    config: ModelConfig, fields: Fields, family: Family, tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, Plan]:
    """The configuration and plan; those of the tied model that an export of ours was, if it still is one.

    Such a folder is untied, with an embedding that is √width times the head. Where that is so no more, because somebody trained
    it further, it is an untied model like any other.
    """
    pieces = plan(config, family.layout)
    own = fields.values.get(OWN)
    if not isinstance(own, dict) or own.get("tied") is not True or config.tie_embeddings:
        return config, pieces
    embedding, head = pieces["embedding"][0], pieces["head"][0]
    pair = [tensors.get(piece.tensor) for piece in (embedding, head)]
    if not all(tensor is not None and tensor.shape == embedding.shape for tensor in pair):
        return config, pieces
    factor = np.float32(config.width**0.5)
    for (_, multiplied), (_, plain) in zip(*(tensor.chunks() for tensor in pair)):  # type: ignore[union-attr]
        if not np.array_equal(multiplied.astype(np.float32), plain.astype(np.float32) * factor):
            return config, pieces
    config = dataclasses.replace(config, tie_embeddings=True, scale_embedding=True)
    return config, plan(config, family.layout) | {"embedding": (head._replace(transposed=False),)}


def _match(
    config: ModelConfig, pieces: Plan, family: Family, fields: Fields, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensor of every piece; raises `SdslError` where one is missing, of another shape, or left over."""
    layout, found = family.layout, {}
    for piece in (piece for parts in pieces.values() for piece in parts):
        # A file of the model without its head has no prefix.
        names = [piece.tensor, piece.tensor.removeprefix(layout.base)]
        name = next((name for name in names if name in tensors), None)
        files = sorted({tensor.file.name for tensor in tensors.values()})
        where = files[0] if len(files) == 1 else f"any of the {len(files)} files of weights"
        require(
            name is not None,
            f"the folder {fields.path.parent} lacks the tensor {piece.tensor} of shape {list(piece.shape)}, which {CONFIG} implies; "
            f"it is not in {where}.",
        )
        tensor = tensors[name]  # type: ignore[index]
        require(
            tensor.shape == piece.shape,
            f"the tensor {name} in {tensor.file} has the shape {list(tensor.shape)}; {CONFIG} implies {list(piece.shape)}.",
        )
        require_readable(tensor)
        found[piece.tensor] = tensor
    used = {tensor.name for tensor in found.values()}
    rest = sorted(name for name in tensors if name not in used and not name.endswith(layout.buffers or ("\0",)))
    if f"{layout.head}.weight" in rest and config.tie_embeddings:
        rest.remove(f"{layout.head}.weight")
        if not config.scale_embedding:
            _require_tied(found[pieces["embedding"][0].tensor], tensors[f"{layout.head}.weight"], fields)
    if config.scale_embedding:  # an export of ours: what is left over is the multiplied embedding
        rest = [name for name in rest if name != f"{layout.base}{layout.embedding}.weight"]
    require(
        not rest,
        f"the tensor {rest[0] if rest else ''} in {tensors[rest[0]].file if rest else ''} has no place in the model that "
        f"{CONFIG} describes.",
    )
    return found


def _require_tied(embedding: Tensor, head: Tensor, fields: Fields) -> None:
    """Raises `SdslError` unless a head that a file holds beside a tied embedding equals it."""
    same = embedding.shape == head.shape and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(embedding.chunks(), head.chunks())
    )
    require(
        same,
        f"the tensor {head.name} in {head.file} differs from {embedding.name}, but tie_word_embeddings of {fields.path} is true.",
    )
