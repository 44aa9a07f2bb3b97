"""Designs evaluated many at a time: given drafts at their best lookaheads, and the landscape around an optimum."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.program import Program, ProgramInputs
from sdsl_jax.codesign.published_drafts import PublishedDraft
from sdsl_jax.theory.hardware import Shape, family_shape
from sdsl_jax.theory.serving import Design, Outcome, Serving, outcome

# A constraint holds if it does to this share of its limit.
_TOLERANCE = 1e-6
_MAP = (72, 64)
_DRAFTS_TOGETHER = 12


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


def evaluate(
    program: Program,
    inputs: ProgramInputs,
    serving: Serving,
    design: Design,
    draft: Shape | None = None,
) -> Evaluated:
    """Designs whose leaves, and those of `serving` and `draft`, broadcast to one shape."""
    return _evaluate(
        program.objective,
        program.constraints,
        inputs.weights,
        inputs.limits,
        serving,
        design,
        draft,
    )


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


def whole_lookaheads(program: Program, inputs: ProgramInputs) -> np.ndarray:
    """The whole lookaheads that are allowed: one where the lookahead is no variable."""
    if "lookahead" not in program.variables:
        return np.asarray([max(1.0, round(float(inputs.fixed.lookahead)))])
    low, high = float(inputs.lower.lookahead), float(inputs.upper.lookahead)
    return np.arange(math.ceil(low), math.floor(high) + 1, dtype=float)


def at_best_lookahead(
    program: Program,
    inputs: ProgramInputs,
    serving: Serving,
    design: Design,
    draft: Shape | None = None,
) -> Evaluated:
    """Each of R designs, leaves [R, 1], at the whole lookahead that is best for it among those
    within the constraints.

    A design that keeps no constraint at any lookahead is given the lookahead that is best without
    them. Drafts may have shapes of their own, leaves [R, 1] too.
    """
    every = design._replace(lookahead=whole_lookaheads(program, inputs)[None, :])
    found = evaluate(program, inputs, serving, every, draft)
    found = jax.tree.map(np.asarray, found)
    held = np.where(found.allowed.any(axis=1, keepdims=True), found.allowed, True)
    best = np.argmin(np.where(held, found.objective, np.inf), axis=1)
    return jax.tree.map(lambda x: x[np.arange(len(best)), best], found)


class Draft(NamedTuple):
    """A draft that is compared, of a shape of its own.

    Attributes:
      shape: layers, width and all else that its cost depends on.
      tokens: it was trained on.
      aspect_ratio: that a penalty on its loss is counted at; that of the family where none is.
    """

    shape: Shape
    tokens: float
    aspect_ratio: float


def published(inputs: ProgramInputs, model: PublishedDraft) -> Draft:
    """A published model. Its own shape is what it was trained in: no penalty is counted from it."""
    return Draft(model.shape, model.tokens, float(inputs.serving.draft_family.aspect_ratio))


def family_member(
    inputs: ProgramInputs, params: float, tokens: float, aspect_ratio: float
) -> Draft:
    """The draft of the family with so many non-embedding parameters."""
    family = inputs.serving.draft_family._replace(aspect_ratio=aspect_ratio)
    return Draft(family_shape(params, family), tokens, aspect_ratio)


def compared(
    program: Program, inputs: ProgramInputs, design: Design, drafts: Sequence[Draft]
) -> Evaluated:
    """Drafts in the place of a design's own, each at its best whole lookahead, leaves [drafts]."""
    # Of a few lengths only, so that one compilation serves many problems.
    padded = [*drafts, *[drafts[-1]] * (-len(drafts) % _DRAFTS_TOGETHER)]
    columns = jax.tree.map(lambda *x: np.asarray(x, float)[:, None], *padded)
    own = design._replace(
        draft_params=columns.shape.params,
        aspect_ratio=columns.aspect_ratio,
        draft_tokens=columns.tokens,
        lookahead=np.ones_like(columns.tokens),
    )
    found = at_best_lookahead(program, inputs, inputs.serving, own, columns.shape)
    return jax.tree.map(lambda x: x[: len(drafts)], found)


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
    program: Program,
    inputs: ProgramInputs,
    design: Design,
    sizes: tuple[float, float],
    highest_lookahead: float,
) -> Landscape:
    """The design space between two draft sizes and up to a lookahead."""
    columns = np.geomspace(*sizes, _MAP[0])
    rows = np.expm1(np.linspace(np.log(2.0), np.log1p(highest_lookahead), _MAP[1]))
    grid = design._replace(draft_params=columns[None, :], lookahead=rows[:, None])
    found = evaluate(program, inputs, inputs.serving, grid)
    return Landscape(columns, rows, np.asarray(found.outcome.speedup), np.asarray(found.allowed))
