"""Text to ids to batches."""

from sdsl_jax.data.dataset import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]
