"""The numbers that the theory takes: anything that JAX can compute with."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

Scalar = Float[Array, ""] | Float[ndarray, ""] | float
Values = Float[Array, "*shape"] | Float[ndarray, "*shape"] | float

_Tree = TypeVar("_Tree")
# Formulas ask for every number that they meet, and whether it is one of JAX's takes ten times as long to
# find out as whether it is one of these.
_NUMPY = (ndarray, np.generic)
_PLAIN = (*_NUMPY, float, int)


def namespace(*values: Any) -> Any:
    """The module whose functions compute with these numbers: NumPy for arrays of NumPy, else JAX's.

    A formula written with it is traced and differentiated as ever where any number is of JAX. On
    NumPy's own, with or without plain numbers beside them, it is evaluated at once: no program is
    traced or compiled for what needs no derivative.

    Args:
      values: Numbers, arrays, or pytrees of them.
    """
    leaves = jax.tree.leaves(values)
    of_numpy = any(isinstance(leaf, _NUMPY) for leaf in leaves)
    return np if of_numpy and not of_jax(leaves) else jnp


def of_jax(*values: Any) -> bool:
    """Whether any number of some pytrees is an array of JAX, traced or not."""
    return any(
        not isinstance(leaf, _PLAIN) and isinstance(leaf, jax.Array)
        for leaf in jax.tree.leaves(values)
    )


def in_numpy(tree: _Tree) -> _Tree:
    """A pytree of numbers as NumPy's arrays of float64, none of them traced."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
