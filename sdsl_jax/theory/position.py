r"""Acceptance that changes along a round, and tokens per round over a mix of domains.

A head on the target's hidden states loses acceptance from draft to draft of a round; an independent
draft gains a little, since rounds that survive are the easy ones. With α_k the probability that
draft k is accepted given that those before it were,

    α_k = floor + (first − floor)·(1 − decay)^(k−1),     S_k = Π_{i≤k} α_i,     τ = 1 + Σ_{k≤γ} S_k.

`decay` 0, or a `floor` equal to `first`, gives the geometric formula exactly. docs/theory.md,
section 7, has the derivations.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.errors import require
from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.dependence import tokens_per_round_from_survival
from sdsl_jax.theory.domain import check_numbers, known_numbers
from sdsl_jax.theory.lookahead import tokens_per_round

# Whole lookaheads are tried up to this one, unless asked otherwise.
LARGEST_LOOKAHEAD = 64


class PositionAcceptance(NamedTuple):
    """Acceptance that moves from a first value towards another along the drafts of a round.

    All three are probabilities. Acceptance falls where `floor` is below `first` and rises where it
    is above.

    Attributes:
      first: α_1, acceptance of the first draft of a round.
      decay: Share of the remaining distance to the floor that each further draft covers. 0 is the
        geometric formula, 1 a floor that is reached at the second draft.
      floor: α_∞, acceptance of late drafts.
    """

    first: Scalar
    decay: Scalar
    floor: Scalar

    def _check(self) -> None:
        check_numbers("[0, 1]", "the acceptance of the first draft", self.first)
        check_numbers("[0, 1]", "the decay of acceptance from draft to draft", self.decay)
        check_numbers("[0, 1]", "the acceptance of late drafts", self.floor)

    def acceptance(self, lookahead: int) -> Float[Array, " gamma"]:
        """α_1 … α_γ: acceptance of each draft given that those before it were accepted.

        Args:
          lookahead: Drafted tokens per round, γ ≥ 1.

        Raises:
          SdslError: A coefficient is no probability, or γ is below 1.
        """
        self._check()
        require(lookahead >= 1, f"the lookahead is {lookahead}; it must be at least 1.")
        first, decay, floor = (jnp.asarray(x, jnp.result_type(float, x)) for x in self)
        # A running product: 0^0 of a power would have no derivative in the decay at 1.
        kept = jnp.full(lookahead, 1 - decay).at[0].set(1.0)
        return floor + (first - floor) * jnp.cumprod(kept)

    def survival(self, lookahead: int) -> Float[Array, " gamma"]:
        """S_k = Π_{i≤k} α_i for k = 1 … γ: probability that the first k drafts are all accepted."""
        return jnp.cumprod(self.acceptance(lookahead))

    def tokens_per_round(self, lookahead: int) -> Float[Array, ""]:
        """τ = 1 + Σ_{k≤γ} S_k at a whole lookahead γ ≥ 0."""
        if lookahead == 0:
            return jnp.ones((), jnp.result_type(float, *self))
        return tokens_per_round_from_survival(self.survival(lookahead))

    def optimum(
        self, draft_step: Scalar, verify_pass: Scalar = 1.0, largest: int = LARGEST_LOOKAHEAD
    ) -> WholeLookahead:
        """The best whole γ for fixed costs; see `best_whole_lookahead`.

        Args:
          draft_step: Cost d ≥ 0 of a draft step, in target steps.
          verify_pass: Cost v > 0 of a verify pass, in target steps.
          largest: Largest γ tried.
        """
        check_numbers("[0, inf)", "the cost of a draft step in target steps", draft_step)
        check_numbers("(0, inf)", "the cost of a verify pass in target steps", verify_pass)
        cost = jnp.arange(1, largest + 1) * draft_step + verify_pass
        return best_whole_lookahead(self.survival(largest), cost)


def tokens_per_round_between(
    survival: Float[Array, " gamma"], lookahead: Scalar
) -> Float[Array, ""]:
    """τ at a real lookahead, from S_1 … S_γmax: exact at whole γ, and the geometric formula between.

    Between whole n and n + 1 a round goes on from n accepted drafts with the acceptance
    α = S_{n+1}/S_n of the next one: τ = τ(n) + S_n·(α − α^(1+γ−n))/(1 − α). This is continuous in γ
    and differentiable in S. Its slope in γ jumps at whole γ unless all α are equal, when it is the
    geometric formula itself. Search the best γ among whole ones (`best_whole_lookahead`).

    Args:
      survival: S_1 … S_γmax, falling.
      lookahead: Drafted tokens per round, 0 ≤ γ ≤ γmax, whole or not.

    Raises:
      SdslError: γ lies outside.
    """
    survival = jnp.asarray(survival, jnp.result_type(float))
    largest = survival.shape[0]
    gamma = known_numbers("the lookahead", lookahead)
    require(
        gamma is None or bool(np.all((gamma >= 0) & (gamma <= largest))),
        f"the lookahead is {lookahead}; survival is given for 0 to {largest} drafts.",
    )
    before = jnp.concatenate([jnp.ones(1, survival.dtype), survival[:-1]])
    alpha = jnp.where(before > 0, survival / jnp.where(before > 0, before, 1.0), 0.0)
    # How much of each draft is made: all of the first n, a part of the next, none of the others.
    made = jnp.clip(lookahead - jnp.arange(largest, dtype=survival.dtype), 0.0, 1.0)
    # τ(α, s) − 1 = (α − α^(1+s))/(1 − α) of a draft of which a share s is made.
    return 1 + (before * (tokens_per_round(alpha, made) - 1)).sum()


class WholeLookahead(NamedTuple):
    """The best whole lookahead.

    Attributes:
      lookahead: γ, 0 where no draft pays.
      speedup: S = τ/C at it; 1 at γ = 0. It can be differentiated in survival and costs: γ itself
        does not move under a small change.
      speculate: Whether some γ ≥ 1 is faster than plain decoding.
    """

    lookahead: Int[Array, "*batch"]
    speedup: Float[Array, "*batch"]
    speculate: Bool[Array, "*batch"]


def best_whole_lookahead(
    survival: Float[Array, "*batch gamma"], round_cost: Float[Array, "*batch gamma"]
) -> WholeLookahead:
    """The γ among 0, 1, …, γmax with the largest S = τ(γ)/C(γ), by trying every one.

    Args:
      survival: S_1 … S_γmax in the last axis. Where survival was measured at another γ for each γ,
        use τ(γ) − τ(γ − 1).
      round_cost: Cost C(γ) of a round with γ = 1 … γmax drafts, in target steps.
    """
    survival, round_cost = jnp.asarray(survival), jnp.asarray(round_cost)
    speedup = (1 + jnp.cumsum(survival, axis=-1)) / round_cost
    best = jnp.argmax(speedup, axis=-1)
    there = jnp.take_along_axis(speedup, best[..., None], axis=-1)[..., 0]
    pays = there > 1
    return WholeLookahead(jnp.where(pays, best + 1, 0), jnp.where(pays, there, 1.0), pays)


def mixed_tokens_per_round(
    taus: Float[Array, " domains"], token_shares: Float[Array, " domains"]
) -> Float[Array, ""]:
    """τ of traffic that mixes domains: tokens over rounds, 1/Σ_d(w_d/τ_d).

    The shares w_d count generated tokens. A domain needs w_d/τ_d rounds for its share, so one that
    accepts little has more rounds than its share of tokens. With shares r_d of rounds instead, τ is
    their plain mean Σ r_d·τ_d. With shares of requests, give the shares of the tokens that those
    requests generate (requests × mean length). The mean of α over domains gives neither: τ is
    convex in α.

    Args:
      taus: Tokens per round τ ≥ 1 of each domain, at one lookahead.
      token_shares: Share of the generated tokens that each domain has; not negative, summing to 1.

    Raises:
      SdslError: A τ is below 1, a share is negative, the shares do not sum to 1, or there are not
        as many of one as of the other.
    """
    shares, lengths = (
        known_numbers("a share of tokens", token_shares),
        known_numbers("the tokens per round", taus),
    )
    require(
        np.shape(taus) == np.shape(token_shares),
        f"there are {np.size(taus)} tokens per round and {np.size(token_shares)} shares; give one share for each domain.",
    )
    if shares is not None:
        require(
            bool((shares >= 0).all()) and abs(float(shares.sum()) - 1) < 1e-6,
            f"the shares of tokens are {shares.tolist()}; they must not be negative, and sum to 1.",
        )
    if lengths is not None and lengths.size:
        require(
            bool((lengths >= 1).all()),
            f"the smallest tokens per round is {float(lengths.min()):g}; none can be below 1.",
        )
    return 1 / (jnp.asarray(token_shares) / jnp.asarray(taus)).sum()


def round_shares(
    taus: Float[Array, " domains"], token_shares: Float[Array, " domains"]
) -> Float[Array, " domains"]:
    """The share of the rounds that each domain has, (w_d/τ_d)/Σ(w/τ), from shares of generated tokens."""
    rounds = jnp.asarray(token_shares) / jnp.asarray(taus)
    return rounds / rounds.sum()
