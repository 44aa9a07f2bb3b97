"""The types of numbers that the theory takes: anything that jax can compute with."""

from jaxtyping import Array, Float
from numpy import ndarray

Scalar = Float[Array, ""] | Float[ndarray, ""] | float
Values = Float[Array, "*shape"] | Float[ndarray, "*shape"] | float
