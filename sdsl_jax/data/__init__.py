"""Text to ids to batches."""

from sdsl_jax.data.dataset import Dataset, load_dataset
from sdsl_jax.data.tokenised import source_digests

__all__ = ["Dataset", "load_dataset", "source_digests"]
