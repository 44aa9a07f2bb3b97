"""The loss, the optimiser and one pure training step."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.config import TrainingConfig
from sdsl_jax.models import ModelConfig, Params, forward
from sdsl_jax.models.kernels import token_losses


class StepConfig(NamedTuple):
    """The part of a recipe that decides the compiled step. Studies and sweeps that differ in
    anything else share the program.
    """

    adam_b1: float
    adam_b2: float
    weight_decay: float
    clip_norm: float
    z_loss: float
    compute_dtype: str
    remat: bool
    skip_nonfinite: bool


def step_config(config: TrainingConfig) -> StepConfig:
    """The part of a recipe that the compiled step depends on."""
    same = {name: getattr(config, name) for name in StepConfig._fields if name != "skip_nonfinite"}
    return StepConfig(**same, skip_nonfinite=config.on_nonfinite == "skip")


class TrainState(NamedTuple):
    """Everything that a step reads and writes. `step` counts the steps taken so far, skipped ones
    included.
    """

    params: Params
    optimizer: Any
    step: Int[Array, ""]


class StepMetrics(NamedTuple):
    """What a step reports.

    Attributes:
      loss_nats: Cross-entropy in nats per token.
      gradient_norm: Global norm of the gradient before clipping.
      skipped: Whether the step left parameters and optimiser unchanged, because loss or gradient
        was not finite.
    """

    loss_nats: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    skipped: Bool[Array, ""]


def optimizer(config: StepConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate. `train_step` applies that, so one compilation serves every
    phase of the schedule.

    Weight decay acts on matrices only, never on the scales of norms.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.adam_b1, b2=config.adam_b2),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim >= 2, p)
        ),
    )


def init_state(config: StepConfig, params: Params) -> TrainState:
    """The state before the first step."""
    return TrainState(params, optimizer(config).init(params), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="state")
def train_step(
    state: TrainState,
    tokens: Int[Array, "B T+1"],
    learning_rate: Float[Array, ""] | float,
    *,
    model: ModelConfig,
    config: StepConfig,
) -> tuple[TrainState, StepMetrics]:
    """One step of AdamW on cross-entropy plus z_loss · log²Z (2204.02311).

    Args:
      state: Parameters, optimiser state and step; donated.
      tokens: A batch; position t predicts token t + 1.
      learning_rate: Learning rate of this step.
      model: Architecture.
      config: Recipe. With `skip_nonfinite`, a loss or gradient that is not finite changes nothing
        but the step count.
    """

    def objective(params):
        # Master weights stay float32; the cast's gradient brings theirs back to it.
        params = jax.tree.map(lambda x: x.astype(config.compute_dtype), params)
        logits, _ = forward(model, params, tokens[:, :-1], remat=config.remat)
        losses, log_normaliser = token_losses(logits, tokens[:, 1:])
        loss = losses.mean()
        return loss + config.z_loss * jnp.square(log_normaliser).mean(), loss

    gradients, loss = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer(config).update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: -learning_rate * u, updates))
    norm = optax.tree.norm(gradients)
    skipped = (
        ~(jnp.isfinite(loss) & jnp.isfinite(norm)) if config.skip_nonfinite else jnp.zeros((), bool)
    )
    if config.skip_nonfinite:
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(skipped, old, new),
            (params, opt_state),
            (state.params, state.optimizer),
        )
    return TrainState(params, opt_state, state.step + 1), StepMetrics(loss, norm, skipped)


@functools.partial(jax.jit, static_argnames="model")
def window_losses(
    params: Params, tokens: Int[Array, "B T+1"], *, model: ModelConfig
) -> Float[Array, " B"]:
    """Mean cross-entropy of each window, in nats per token."""
    logits, _ = forward(model, params, tokens[:, :-1])
    return token_losses(logits, tokens[:, 1:])[0].mean(axis=-1)
