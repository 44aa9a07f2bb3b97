"""Differentiable speculative-decoding scaling laws: train, measure, fit and co-design draft models in JAX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdsl_jax.theory import optimal_draft, optimal_lookahead, speedup

__version__ = "0.1.0"
__all__ = ["optimal_draft", "optimal_lookahead", "speedup"]


def __getattr__(name: str) -> Any:
    """Loads the theory, and jax with it, when it is first asked for: `sdsl --help` shall not wait for either."""
    if name in __all__:
        return getattr(import_module("sdsl_jax.theory"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
