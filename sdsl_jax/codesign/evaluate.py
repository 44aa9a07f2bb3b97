"""Designs evaluated many at a time: given drafts at their best lookaheads, and the landscape around an optimum."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.program import Numbers, Task
from sdsl_jax.codesign.published_drafts import PUBLISHED_DRAFTS, PublishedDraft
from sdsl_jax.theory.hardware import Shape
from sdsl_jax.theory.serving import Design, Outcome, Serving, outcome

# A constraint holds if it does to this share of its limit.
_TOLERANCE = 1e-6
_MAP = (72, 64)


class Evaluated(NamedTuple):
    """Designs and what they give, every leaf of one shape.

    Attributes:
      design: what was evaluated.
      outcome: what it gives.
      objective: Σ w·ln m.
      excess: largest ln(m/limit) of the constraints; −∞ without any.
    """

    design: Design
    outcome: Outcome
    objective: jax.Array
    excess: jax.Array

    @property
    def allowed(self) -> jax.Array:
        """Whether every constraint holds."""
        return self.excess <= _TOLERANCE


def evaluate(task: Task, numbers: Numbers, serving: Serving, design: Design, draft: Shape | None = None) -> Evaluated:
    """Designs whose leaves, and those of `serving` and `draft`, broadcast to one shape."""
    return _evaluate(task.objective, task.constraints, numbers.weights, numbers.limits, serving, design, draft)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    objective, constraints, weights, limits, serving: Serving, design: Design, draft: Shape | None
) -> Evaluated:
    given = outcome(serving, design, draft)
    shape = jnp.broadcast_shapes(*(x.shape for x in jax.tree.leaves(given)))
    given, design = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), (given, design))
    value = sum(weights[i] * jnp.log(getattr(given, name)) for i, name in enumerate(objective))
    excess = jnp.full(shape, -jnp.inf)
    for i, name in enumerate(constraints):
        excess = jnp.maximum(excess, jnp.log(getattr(given, name) / limits[i]))
    return Evaluated(design, given, jnp.asarray(value), excess)


def whole_lookaheads(task: Task, numbers: Numbers) -> np.ndarray:
    """The whole lookaheads that are allowed: one where the lookahead is no variable."""
    if "lookahead" not in task.variables:
        return np.asarray([max(1.0, round(float(numbers.fixed.lookahead)))])
    low, high = float(numbers.lower.lookahead), float(numbers.upper.lookahead)
    return np.arange(math.ceil(low), math.floor(high) + 1, dtype=float)


def at_best_lookahead(
    task: Task, numbers: Numbers, serving: Serving, design: Design, draft: Shape | None = None
) -> Evaluated:
    """Each of R designs, leaves [R, 1], at the whole lookahead that is best for it among those within the constraints.

    A design that keeps no constraint at any lookahead is given the lookahead that is best without them. Drafts may have shapes
    of their own, leaves [R, 1] too.
    """
    every = design._replace(lookahead=whole_lookaheads(task, numbers)[None, :])
    found = evaluate(task, numbers, serving, every, draft)
    found = jax.tree.map(np.asarray, found)
    held = np.where(found.allowed.any(axis=1, keepdims=True), found.allowed, True)
    best = np.argmin(np.where(held, found.objective, np.inf), axis=1)
    return jax.tree.map(lambda x: x[np.arange(len(best)), best], found)


def published(task: Task, numbers: Numbers, design: Design) -> tuple[tuple[PublishedDraft, ...], Evaluated]:
    """Published models in the draft's place, each in its own shape and trained on its own number of tokens."""
    drafts = PUBLISHED_DRAFTS

    def column(values: list[float]) -> np.ndarray:
        return np.asarray(values, float)[:, None]

    shape = jax.tree.map(lambda *values: column([*values]), *(d.shape for d in drafts))
    # Its own shape is what it was trained in: no penalty is counted from it.
    ratio = numbers.serving.draft_family.aspect_ratio
    own = design._replace(
        draft_params=shape.params, aspect_ratio=ratio, draft_tokens=column([d.tokens for d in drafts]), lookahead=4.0
    )
    return drafts, at_best_lookahead(task, numbers, numbers.serving, own, shape)


class Landscape(NamedTuple):
    """The design space over draft size and lookahead, all else as at the optimum.

    Attributes:
      draft_params: in the parameter count that `counted` names, [columns].
      lookahead: [rows].
      speedup: S, [rows, columns].
      allowed: whether every constraint holds, [rows, columns].
      counted: "non_embedding" or "total".
    """

    draft_params: np.ndarray
    lookahead: np.ndarray
    speedup: np.ndarray
    allowed: np.ndarray
    counted: str = "non_embedding"


def landscape(
    task: Task, numbers: Numbers, design: Design, sizes: tuple[float, float], highest_lookahead: float
) -> Landscape:
    """The design space between two draft sizes and up to a lookahead."""
    columns = np.geomspace(*sizes, _MAP[0])
    rows = np.expm1(np.linspace(np.log(2.0), np.log1p(highest_lookahead), _MAP[1]))
    grid = design._replace(draft_params=columns[None, :], lookahead=rows[:, None])
    found = evaluate(task, numbers, numbers.serving, grid)
    return Landscape(columns, rows, np.asarray(found.outcome.speedup), np.asarray(found.allowed))
