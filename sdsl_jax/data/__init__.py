"""Text to ids to batches."""

from sdsl_jax.data.dataset import Dataset, Text, load_dataset
from sdsl_jax.data.tokenised import source_digests

__all__ = ["Dataset", "Text", "load_dataset", "source_digests"]
