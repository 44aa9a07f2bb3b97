"""The loss, the optimiser and one pure training step."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.config import TrainingConfig
from sdsl_jax.models import ModelConfig, Params, forward, outputs
from sdsl_jax.models.cuts import Nested, SharedTrunk
from sdsl_jax.models.feature_head import (
    AnyHeadParams,
    HeadConfig,
    TableHeadParams,
    Tables,
    unrolled,
)
from sdsl_jax.models.kernels import token_losses
from sdsl_jax.training.objectives import (
    TEXT,
    DistilBatch,
    Objective,
    Readout,
    acceptance,
    compared,
    divergence,
    draft_weights,
)

# A batch none of whose labels count has the loss 0.
_LEAST_SHARE = 1e-9


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
    objective: Objective


def step_config(config: TrainingConfig, objective: Objective = TEXT) -> StepConfig:
    """The part of a recipe that the compiled step depends on, and what the model is trained for."""
    own = ("skip_nonfinite", "objective")
    same = {name: getattr(config, name) for name in StepConfig._fields if name not in own}
    return StepConfig(**same, skip_nonfinite=config.on_nonfinite == "skip", objective=objective)


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
      loss_nats: Cross-entropy on the text in nats per token, of a truncated readout over the tokens
        that the model can give.
      objective: Mean of what the step lowers; the same number where that is cross-entropy.
      acceptance: Mean probability that the teacher accepts a token of the model, α; not a number
        without a teacher.
      gradient_norm: Global norm of the gradient before clipping.
      skipped: Whether the step left parameters and optimiser unchanged, because loss,
        objective or gradient was not finite.
    """

    loss_nats: Float[Array, ""]
    objective: Float[Array, ""]
    acceptance: Float[Array, ""]
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
    batch: Int[Array, "B T+1"] | DistilBatch,
    learning_rate: Float[Array, ""] | float,
    tables: Tables | None = None,
    *,
    model: ModelConfig | HeadConfig | Nested | SharedTrunk,
    config: StepConfig,
) -> tuple[TrainState, StepMetrics]:
    """One step of AdamW on the objective plus z_loss · log²Z (2204.02311).

    Args:
      state: Parameters, optimiser state and step; donated.
      batch: Windows of tokens, position t predicting token t + 1; with the teacher's distributions
        where the objective compares with them. Nothing of the teacher is differentiated.
      learning_rate: Learning rate of this step.
      tables: What a head on its target's tables takes from the target, in the type of the
        computation; not differentiated.
      model: Architecture. The objective of a nested model is the mean over its slices and itself.
      config: Recipe and objective. With `skip_nonfinite`, a loss, objective or gradient that is
        not finite changes nothing but the step count.
    """
    known = batch if isinstance(batch, DistilBatch) else DistilBatch(batch, None)
    tokens, teacher = known.tokens, known.teacher
    readout = _readout(model)
    labels, counted = readout.columns(tokens[:, 1:])
    if isinstance(model, HeadConfig):
        drafts = config.objective.drafts
        labels = jnp.broadcast_to(labels[None], (drafts, *labels.shape))
    elif isinstance(model, Nested):
        labels = jnp.broadcast_to(labels[None], (len(model.slices) + 1, *labels.shape))
    trained = model.trained(state.params) if isinstance(model, SharedTrunk) else None

    def logits_of(params: Any) -> Float[Array, "*K B T C"]:
        fed = tokens[:, :-1]
        if isinstance(model, Nested):
            return model.logits(params, fed, config.remat)
        if isinstance(model, SharedTrunk):
            params = jax.tree.map(
                lambda x, is_trained: x if is_trained else jax.lax.stop_gradient(x), params, trained
            )
            return forward(model.model, params, fed, remat=config.remat)[0]
        if isinstance(model, ModelConfig):
            return outputs(model, params, fed, remat=config.remat, compact=True).logits
        if known.features is None:
            raise ValueError("a head is trained on batches with its target's features")
        features = known.features.astype(config.compute_dtype)
        if tables is not None:
            params = TableHeadParams(params, tables)
        return unrolled(model, params, fed, features, config.objective.drafts, compact=True)

    def mean(values: Float[Array, "*K B T"]) -> Float[Array, ""]:
        if not isinstance(model, HeadConfig):
            return values[..., config.objective.first :].mean()
        weights = draft_weights(config.objective, values.shape[-1])
        return (values.mean(axis=1) * weights).sum()

    def mean_loss(losses: Float[Array, "*K B T"]) -> Float[Array, ""]:
        if counted is None:
            return mean(losses)
        share = mean(jnp.broadcast_to(counted, losses.shape).astype(losses.dtype))
        return mean(jnp.where(counted, losses, 0.0)) / jnp.maximum(share, _LEAST_SHARE)

    def objective(params):
        # Master weights stay float32; the cast's gradient brings theirs back to it.
        params = jax.tree.map(lambda x: x.astype(config.compute_dtype), params)
        logits = logits_of(params)
        losses, log_normaliser = token_losses(logits, labels)
        loss = lowered = mean_loss(losses)
        accepted = jnp.float32(jnp.nan)
        if teacher is not None:
            log_p, log_q = compared(config.objective, readout, logits, log_normaliser, teacher)
            accepted = mean(acceptance(log_p, log_q))
            if config.objective.kind != "ce":
                kind, eta = config.objective.kind, config.objective.eta
                lowered = mean(divergence(kind, log_p, log_q, eta, accepted))
        total = lowered + config.z_loss * jnp.square(log_normaliser).mean()
        return total, (loss, lowered, accepted)

    gradients, (loss, lowered, accepted) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer(config).update(gradients, state.optimizer, state.params)
    if trained is not None:
        # Weight decay would move what has no gradient.
        updates = jax.tree.map(
            lambda u, is_trained: u if is_trained else jnp.zeros_like(u), updates, trained
        )
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: -learning_rate * u, updates))
    norm = optax.tree.norm(gradients)
    skipped = (
        ~(jnp.isfinite(loss) & jnp.isfinite(lowered) & jnp.isfinite(norm))
        if config.skip_nonfinite
        else jnp.zeros((), bool)
    )
    if config.skip_nonfinite:
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(skipped, old, new),
            (params, opt_state),
            (state.params, state.optimizer),
        )
    metrics = StepMetrics(loss, lowered, accepted, norm, skipped)
    return TrainState(params, opt_state, state.step + 1), metrics


def _readout(model: ModelConfig | HeadConfig | Nested | SharedTrunk) -> Readout:
    """Which ids the columns of the logits of a step stand for. Only whole models and heads are
    truncated."""
    if isinstance(model, HeadConfig):
        return _readout(model.body)
    ids = model.readout_ids if isinstance(model, ModelConfig) else ()
    return Readout(ids, model.vocab_size if isinstance(model, ModelConfig) else 0)


@functools.partial(jax.jit, static_argnames="model")
def window_losses(
    params: Params, tokens: Int[Array, "B T+1"], *, model: ModelConfig
) -> Float[Array, " B"]:
    """Mean cross-entropy of each window in nats per token, of a truncated readout over the tokens that
    the model can give."""
    logits = outputs(model, params, tokens[:, :-1], compact=True).logits
    return _window_means(model, logits, tokens[:, 1:])


def _window_means(
    model: ModelConfig, logits: Float[Array, "B T C"], labels: Int[Array, "B T"]
) -> Float[Array, " B"]:
    columns, counted = _readout(model).columns(labels)
    losses = token_losses(logits, columns)[0]
    if counted is None:
        return losses.mean(axis=-1)
    return jnp.where(counted, losses, 0.0).sum(axis=-1) / jnp.maximum(counted.sum(axis=-1), 1)


@functools.partial(jax.jit, static_argnames=("model", "target"))
def head_window_losses(
    params: AnyHeadParams,
    target_params: Params,
    tokens: Int[Array, "B T+1"],
    *,
    model: HeadConfig,
    target: ModelConfig,
) -> Float[Array, " B"]:
    """Mean cross-entropy of a head's first draft in each window, as `window_losses` takes it."""
    fed = tokens[:, :-1]
    features = outputs(target, target_params, fed, taps=model.taps).features
    assert features is not None
    logits = unrolled(model, params, fed, features, 1, compact=True)[0]
    return _window_means(model.body, logits, tokens[:, 1:])
