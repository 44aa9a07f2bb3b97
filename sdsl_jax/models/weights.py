"""How the matrices of a model are stored while it decodes: as they were loaded, or in fewer bytes.

A decoding step on a CPU takes about as long as reading the weights does, so a step with half or a
quarter of the bytes takes about half or a quarter of the time. Activations, sums, norms and biases
keep their type. The rounded model is another model: its acceptance and its losses are its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8

# "as-loaded" changes nothing.
WeightStorage = Literal["as-loaded", "bfloat16", "int8"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Matrix:
    """A matrix as whole numbers from −127 to 127 and a factor for each output.

    Attributes:
      values: The whole numbers, [in, out], or [out, in] for an embedding.
      scales: One factor for each output, float32: of the columns of [in, out], of the rows of an
        embedding.
    """

    values: Int8[Array, "D F"]
    scales: Float[Array, " F"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.values.shape

    @property
    def size(self) -> int:
        """Number of its entries."""
        return self.values.size

    @property
    def dtype(self) -> Any:
        """int8."""
        return self.values.dtype

    def __getitem__(self, index: Any) -> Int8Matrix:
        """The whole of it, as parameters of Flax are read (`parameter[...]`)."""
        if index is not Ellipsis:
            raise IndexError(f"An int8 matrix is read whole, not at {index}; see `lookup`.")
        return self


Matrix = Array | Int8Matrix


def lookup(table: Matrix, tokens: Int[Array, " ..."], dtype: Any, clip: bool) -> Array:
    """Rows of an embedding, in the type of the activations.

    Args:
      table: The embedding, [V, D].
      tokens: Ids.
      dtype: Type of the activations.
      clip: Whether ids beyond the table read its last row.
    """
    mode = "clip" if clip else None
    if isinstance(table, Int8Matrix):
        scales = jnp.expand_dims(table.scales.at[tokens].get(mode=mode), -1)
        return (table.values.at[tokens].get(mode=mode) * scales).astype(dtype)
    return table.at[tokens].get(mode=mode).astype(dtype)


def outputs_of(matrix: Matrix, ids: Int[np.ndarray, " K"], axis: int) -> Matrix:
    """Some outputs of a matrix.

    Args:
      matrix: The matrix; of int8, its outputs lie along `axis`.
      ids: Which outputs.
      axis: 0 for the rows of an embedding, 1 for the columns of other matrices.
    """
    if isinstance(matrix, Int8Matrix):
        return Int8Matrix(jnp.take(matrix.values, ids, axis), matrix.scales[ids])
    return jnp.take(matrix, ids, axis)


@functools.partial(jax.jit, static_argnames="along")
def _int8(matrix: Array, along: int) -> Int8Matrix:
    wide = matrix.astype(jnp.float32)
    scales = jnp.abs(wide).max(axis=along, keepdims=True) / 127
    # A column of zeros has scale 0, and stays one.
    values = jnp.round(wide / jnp.where(scales > 0, scales, 1)).astype(jnp.int8)
    return Int8Matrix(values, scales.squeeze(along))


# A table of positions is read one row at a time, and small.
_KEPT = "positions"
# Stored as [out, in]: an embedding, so that its rows can be looked up, and the head of an early exit
# like it.
_OUT_FIRST = ("embedding", "exit_head")


def stored(path: Any, array: Array, storage: WeightStorage) -> Matrix:
    """One array of a model, stored as asked if it is one of its matrices.

    bfloat16 rounds to the nearest. int8 scales the weights of each output so that the largest is
    127, and rounds to the nearest.

    Args:
      path: Its path in the parameters, as `jax.tree_util` gives it.
      array: The array.
      storage: How to store matrices.
    """
    name = _names(path)[-1]
    if storage == "as-loaded" or array.ndim != 2 or name == _KEPT:
        return array
    if storage == "bfloat16":
        return array.astype(jnp.bfloat16)
    return _int8(array, int(name in _OUT_FIRST))


def store(params: Any, storage: WeightStorage) -> Any:
    """The parameters of a model with their matrices as `stored`."""
    return jax.tree_util.tree_map_with_path(functools.partial(stored, storage=storage), params)


def activation_dtype(params: Any) -> Any:
    """Type of activations and caches: that of the norms, which are never stored in fewer bytes."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return next(leaf.dtype for path, leaf in leaves if "attention_norm" in _names(path))


def type_name(params: Any) -> str:
    """For records: "float32" if all is float32, else for example "float32, int8 weights"."""
    activations = activation_dtype(params).name
    weights = {leaf.dtype.name for leaf in jax.tree.leaves(params) if leaf.ndim == 2}
    return activations + "".join(f", {w} weights" for w in sorted(weights - {activations}))


def _names(path: Any) -> list[str]:
    keys = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return [name for name in keys if name != "value"]
