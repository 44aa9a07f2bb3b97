"""The parent's side of the process that runs Hugging Face transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdsl_jax.decoding import Model
from sdsl_jax.errors import SdslError
from sdsl_jax.models import forward
from sdsl_jax.models.interop import export_llama

# torch's idle threads spin for about a millisecond, and XLA's no longer: after this long neither takes time from the other.
SETTLE_SECONDS = 0.02


class Transformers:
    """Hugging Face transformers in a child process; answers come back as dictionaries."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.decode.transformers_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[2],
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
          SdslError: the child failed or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        time.sleep(SETTLE_SECONDS)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise SdslError(f"the process that runs transformers could not {do}: {answer['error']}.")
        return answer

    def load(self, draft: Model, target: Model, folder: Path, dtype: str, device: str) -> dict[str, Any]:
        """Gives the child both models, through folders, and says how far its logits are from ours."""
        paths = {name: str(export_llama(m, folder / name)) for name, m in (("draft", draft), ("target", target))}
        loaded = self.ask("load", dtype=dtype, device=device, **paths)
        ids = np.random.default_rng(0).integers(0, target.config.vocab_size, (2, 16))
        for name, model in (("draft", draft), ("target", target)):
            ours = np.asarray(forward(model.config, model.params, jnp.asarray(ids))[0], np.float32)
            theirs = np.asarray(self.ask("logits", model=name, tokens=ids.tolist())["logits"], np.float32)
            loaded[f"{name}_logits_difference"] = float(np.abs(ours - theirs).max() / np.abs(ours).max())
        return loaded

    def close(self) -> None:
        """Ends the child."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
