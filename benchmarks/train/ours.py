"""Our training step, in the parent or in a process of its own that is bound to one core."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from benchmarks.child import SETTLE_SECONDS, serve
from benchmarks.train.model import shape
from sdsl_jax.config import TrainingConfig
from sdsl_jax.models import ModelConfig, Params, init_params
from sdsl_jax.training.step import init_state, step_config, train_step

LEARNING_RATE = 1e-3


class Ours:
    """The step on the batches, as the training loop drives it: the loss of a step is read while the next one runs."""

    def load(self, size: str, batches: str) -> dict[str, Any]:
        """Builds the model of a size, and reads the batches, an .npy."""
        model = shape(size)
        params = init_params(model, jax.random.key(0))
        self.weights = jax.device_get(params)
        self.begin(model, params, np.load(batches), TrainingConfig())
        return {}

    def begin(
        self, model: ModelConfig, params: Params, batches: np.ndarray, training: TrainingConfig
    ) -> None:
        """Begins to train a model on batches, int32 [number, rows, tokens + 1], by a recipe."""
        self.model, self.config, self.batches = model, step_config(training), batches
        self.state = init_state(self.config, params)

    def steps(self, first: int, count: int) -> dict[str, Any]:
        """Takes steps on the batches from number `first` on; returns seconds and the loss of each."""
        time.sleep(SETTLE_SECONDS)
        losses: list[Any] = []
        began = time.perf_counter()
        for i in range(first, first + count):
            self.state, metrics = train_step(
                self.state,
                self.batches[i % len(self.batches)],
                np.float32(LEARNING_RATE),
                model=self.model,
                config=self.config,
            )
            if losses:
                losses[-1] = float(losses[-1])
            losses.append(metrics.loss_nats)
        jax.block_until_ready(self.state.params)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "losses": [float(loss) for loss in losses]}


if __name__ == "__main__":
    serve(Ours)
