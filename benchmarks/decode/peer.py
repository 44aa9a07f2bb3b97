"""The parent's side of the process that runs Hugging Face transformers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.child import ChildProcess
from sdsl_jax.checkpoints.interop import export_llama
from sdsl_jax.decoding import Model
from sdsl_jax.models import ModelConfig, Params, forward


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    return forward(config, params, tokens)[0]


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
            ours = np.asarray(_logits(model.config, model.params, jnp.asarray(ids)), np.float32)
            theirs = np.asarray(
                self.ask("logits", model=name, tokens=ids.tolist())["logits"], np.float32
            )
            loaded[f"{name}_logits_difference"] = float(
                np.abs(ours - theirs).max() / np.abs(ours).max()
            )
        return loaded


def start(say: Callable[[str], None]) -> tuple[Transformers | None, str, str]:
    """Starts the peer on the device that JAX computes on.

    Args:
      say: Called with a line about the work.

    Returns:
      The peer, torch's name of its device, and its versions; no peer and the reason if something
      is not installed or torch lacks the device.

    Raises:
      SdslError: The process could not import them.
    """
    missing = [
        name
        for name in ("torch", "transformers", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return None, "", f"without transformers ({', '.join(missing)} not installed)"
    say("starting transformers")
    peer = Transformers()
    found = peer.ask("versions")
    versions = f"torch {found['torch']}, transformers {found['transformers']}"
    platform_name = jax.default_backend()
    if platform_name == "cpu":
        return peer, "cpu", versions
    if platform_name == "gpu" and found["cuda"]:
        return peer, "cuda", versions
    peer.close()
    return None, "", f"without transformers (its torch {found['torch']} has no {platform_name})"
