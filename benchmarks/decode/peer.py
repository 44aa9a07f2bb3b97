"""The parent's side of the process that runs Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.child import ChildProcess
from sdsl_jax.checkpoints.interop import export_llama
from sdsl_jax.decoding import Model
from sdsl_jax.models import forward


class Transformers(ChildProcess):
    """Hugging Face transformers in a child process; answers come back as dictionaries."""

    def __init__(self) -> None:
        super().__init__("benchmarks.decode.transformers_child", "transformers")

    def load(
        self, draft: Model, target: Model, folder: Path, dtype: str, device: str
    ) -> dict[str, Any]:
        """Gives the child both models, through folders, and says how far its logits are from ours."""
        paths = {
            name: str(export_llama(m, folder / name))
            for name, m in (("draft", draft), ("target", target))
        }
        loaded = self.ask("load", dtype=dtype, device=device, **paths)
        ids = np.random.default_rng(0).integers(0, target.config.vocab_size, (2, 16))
        for name, model in (("draft", draft), ("target", target)):
            ours = np.asarray(forward(model.config, model.params, jnp.asarray(ids))[0], np.float32)
            theirs = np.asarray(
                self.ask("logits", model=name, tokens=ids.tolist())["logits"], np.float32
            )
            loaded[f"{name}_logits_difference"] = float(
                np.abs(ours - theirs).max() / np.abs(ours).max()
            )
        return loaded
