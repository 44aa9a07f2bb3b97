"""Compilation that takes little time, for programs that take longer to compile than to run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from jaxlib.version import __version__ as _JAXLIB

_Result = TypeVar("_Result")
# The last release of jaxlib whose options are known to be these: an unknown one is an error.
_LAST_TRIED = (0, 12)


def quick_options(level: int = 0) -> dict[str, bool | int]:
    """Options of XLA that leave out the expensive passes of its CPU compiler, by name.

    Args:
      level: LLVM's level of optimisation. 0 compiles fastest; at 1 programs run about as fast as
        with no options at all.
    """
    version = tuple(map(int, _JAXLIB.split(".")[:2]))
    if version > _LAST_TRIED:
        return {}
    options: dict[str, bool | int] = {
        "xla_backend_optimization_level": level,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    if version < (0, 11):
        # Its older emitters compile in a third of the time. Later releases do not have them.
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def quick_jit(
    function: Callable[..., _Result], level: int = 0, **arguments: Any
) -> Callable[..., _Result]:
    """`jax.jit`, on a CPU with `quick_options`. The result cannot be called inside another `jax.jit`.

    Args:
      function: As for `jax.jit`.
      level: As for `quick_options`.
      **arguments: Other arguments of `jax.jit`.
    """

    @functools.cache
    def jitted() -> Callable[..., _Result]:
        import jax

        options = quick_options(level) if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=options, **arguments)

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> _Result:
        return jitted()(*values, **named)

    return call
