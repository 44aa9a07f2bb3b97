"""What the figures share: the paper's targets, one compiled solver, and the form of a comparison."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, DraftOptimum, LossLaw, Scenario


class Model(NamedTuple):
    """A model of the paper: nominal total parameters, and its public count of training tokens."""

    name: str
    params: float
    tokens: float


TARGETS = (
    Model("OPT-13B", 13e9, 180e9),
    Model("OPT-30B", 30e9, 180e9),
    Model("OPT-66B", 66e9, 180e9),
    Model("Qwen1.5-14B", 14e9, 3e12),
    Model("Qwen1.5-32B", 32e9, 3e12),
    Model("Qwen1.5-72B", 72e9, 3e12),
    Model("Qwen1.5-110B", 110e9, 3e12),
    Model("Qwen2.5-14B", 14e9, 18e12),
    Model("Qwen2.5-32B", 32e9, 18e12),
    Model("Qwen2.5-72B", 72e9, 18e12),
    Model("Llama-3-70B", 70e9, 15e12),
    Model("Llama-3.1-70B", 70e9, 15e12),
    Model("Seed-OSS-36B", 36e9, 12e12),
)
SIZES = np.array([t.params for t in TARGETS])
TARGET_TOKENS = np.array([t.tokens for t in TARGETS])
# The draft's tokens behind the two optima that the paper gives, and those of all families, which
# our pooled line uses.
DRAFT_TOKENS = 180e9
FAMILY_TOKENS = (180e9, 3e12, 12e12, 15e12, 18e12)


class Claim(NamedTuple):
    """A quantity of the paper beside ours.

    Attributes:
      quantity: in words.
      paper: its value there, or None where the paper gives none and ours is new.
      ours: our value.
      form: how to write both.
      note: what would explain a difference, or what ours rests on.
    """

    quantity: str
    paper: float | None
    ours: float
    form: str = ".3g"
    note: str = ""

    @property
    def difference(self) -> float | None:
        """(ours − paper)/paper."""
        return None if self.paper is None else self.ours / self.paper - 1


@jax.jit
def _solve(m, d, d_target, loss_law, overhead) -> DraftOptimum:
    def one(m, d, d_target):
        return Scenario(m, d, d_target, loss_law, PAPER_PLANE, overhead).optimum()

    return jax.vmap(one)(m, d, d_target)


def optima(
    sizes, draft_tokens, target_tokens, loss_law: LossLaw = BESIROGLU, overhead: float = 0.0
) -> DraftOptimum:
    """Optima for arrays of M, D and D′ of any shapes that broadcast, by the paper's plane and costs, in float64."""
    with jax.enable_x64(True):
        arrays = np.broadcast_arrays(
            *(np.asarray(x, float) for x in (sizes, draft_tokens, target_tokens))
        )
        # What a law is about is static: one compilation serves all that differ in coefficients
        # alone.
        law = jax.tree.map(jnp.float64, dataclasses.replace(loss_law, about=BESIROGLU.about))
        found = _solve(*(jnp.asarray(a.ravel()) for a in arrays), law, jnp.float64(overhead))
        return jax.tree.map(lambda x: np.asarray(x).reshape(arrays[0].shape), found)
