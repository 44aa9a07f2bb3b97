"""Published formats: Hugging Face folders and GGUF files read into our Transformer, and Hugging
Face folders written from it.

They need safetensors and gguf, the extras `interop` and `gguf`.
"""

from sdsl_jax.checkpoints.interop.checkpoint import open_checkpoint
from sdsl_jax.checkpoints.interop.export import export_llama
from sdsl_jax.checkpoints.interop.gguf import open_gguf, rounded

__all__ = [
    "export_llama",
    "open_checkpoint",
    "open_gguf",
    "rounded",
]
