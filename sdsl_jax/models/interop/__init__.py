"""Published formats: models in the layout that other libraries read."""

from sdsl_jax.models.interop.llama import export_llama

__all__ = ["export_llama"]
