"""The number of drafts per round: a fixed lookahead, or a rule by which each row chooses its own in
every round.

A rule decides from what is known *before* a token is drawn: earlier rounds, or the distribution that
the next draft would come from. A draft that was drawn is always verified. Under this condition a
varying lookahead is lossless, with token and with block verification. Suffix: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.errors import require
from sdsl_jax.theory import optimal_lookahead


@runtime_checkable
class LookaheadRule(Protocol):
    """A rule for the lookahead, as a pytree of traced numbers."""

    def check(self, max_lookahead: int) -> LookaheadRule:
        """The same rule with canonical types.

        Raises:
          SdslError: a number lies outside its range.
        """
        ...

    def init(self, rows: int) -> Any:
        """The rule's memory of each row before the first round."""
        ...

    def max_drafts(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """The most drafts that each row may take in the coming round."""
        ...

    def keep_drafting(self, confidence: Float[Array, " B"]) -> Bool[Array, " B"]:
        """Whether each row takes one more draft, given the drafter's `Proposal.confidence`."""
        ...

    def update(self, memory: Any, tested: Int[Array, " B"], accepted: Int[Array, " B"]) -> Any:
        """The memory after a round; rows that took no part tested 0 drafts."""
        ...


class _Memoryless:
    def init(self, rows: int) -> Any:
        """One unused number per row: the shape of the memory gives the number of rows."""
        return jnp.zeros(rows, jnp.int32)

    def keep_drafting(self, confidence: Float[Array, " B"]) -> Bool[Array, " B"]:
        """Always true."""
        return jnp.ones(confidence.shape, bool)

    def update(self, memory: Any, tested: Int[Array, " B"], accepted: Int[Array, " B"]) -> Any:
        """The memory unchanged."""
        return memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FixedLookahead(_Memoryless):
    """The same γ in every round."""

    lookahead: int | Int[Array, ""]

    def check(self, max_lookahead: int) -> FixedLookahead:
        """Raises SdslError unless 1 ≤ γ ≤ max_lookahead."""
        require(self.lookahead >= 1, f"the lookahead is {self.lookahead}; it must be at least 1.")
        require(
            self.lookahead <= max_lookahead,
            f"the lookahead is {self.lookahead}; it must not exceed max_lookahead ({max_lookahead}).",
        )
        return FixedLookahead(jnp.int32(self.lookahead))

    def max_drafts(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """γ."""
        return jnp.full(memory.shape, self.lookahead, jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConfidenceThreshold(_Memoryless):
    """Keeps drafting while the draft's largest probability reaches a threshold, up to the largest
    lookahead of the run.

    The probability is taken before temperature and filters, so the rule means the same in greedy
    decoding.

    The step in which the draft falls below the threshold costs time and yields no draft; a round
    may have no draft at all.
    """

    threshold: float | Float[Array, ""]

    def check(self, max_lookahead: int) -> ConfidenceThreshold:
        """Raises SdslError unless the threshold lies in [0, 1]."""
        require(
            0 <= self.threshold <= 1,
            f"the confidence threshold is {self.threshold}; it must lie between 0 and 1.",
        )
        return ConfidenceThreshold(jnp.float32(self.threshold))

    def max_drafts(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """The largest lookahead of the run."""
        return jnp.full(memory.shape, max_lookahead, jnp.int32)

    def keep_drafting(self, confidence: Float[Array, " B"]) -> Bool[Array, " B"]:
        """Whether the largest probability reaches the threshold."""
        return confidence >= self.threshold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnlineLookahead(_Memoryless):
    """The best integer γ of the closed form, for a running estimate of each row's α.

    The estimate is (prior_tests·prior + Σ accepted)/(prior_tests + Σ tested), with older rounds
    discounted. Block verification does not test drafts one by one; the rule uses the same counts
    there. Every round makes at least one draft: a row that stopped drafting would never notice that
    its text became easier.

    Attributes:
      draft_step: Seconds of a draft step, or any unit shared with `verify_pass`.
      verify_pass: Seconds of a verify pass of the run's width.
      prior: α before the first round.
      prior_tests: Number of tested drafts that the prior is worth.
      memory: Weight of a round relative to the next one; 1 forgets nothing.
    """

    draft_step: float | Float[Array, ""]
    verify_pass: float | Float[Array, ""] = 1.0
    prior: float | Float[Array, ""] = 0.7
    prior_tests: float | Float[Array, ""] = 8.0
    memory: float | Float[Array, ""] = 0.95

    def check(self, max_lookahead: int) -> OnlineLookahead:
        """Raises SdslError where a number lies outside its range."""
        require(
            self.draft_step > 0, f"the draft step's cost is {self.draft_step}; it must be positive."
        )
        require(
            self.verify_pass > 0,
            f"the verify pass's cost is {self.verify_pass}; it must be positive.",
        )
        require(
            0 < self.prior < 1,
            f"the prior acceptance is {self.prior}; it must lie between 0 and 1.",
        )
        require(self.prior_tests > 0, f"prior_tests is {self.prior_tests}; it must be positive.")
        require(0 < self.memory <= 1, f"the memory is {self.memory}; it must lie in (0, 1].")
        return jax.tree.map(jnp.float32, self)

    def init(self, rows: int) -> Float[Array, "2 B"]:
        """Zero accepted and tested drafts for each row."""
        return jnp.zeros((2, rows))

    def acceptance(self, memory: Float[Array, "2 B"]) -> Float[Array, " B"]:
        """The running estimate of each row's α."""
        return (self.prior_tests * self.prior + memory[0]) / (self.prior_tests + memory[1])

    def max_drafts(self, memory: Float[Array, "2 B"], max_lookahead: int) -> Int[Array, " B"]:
        """The closed form's γ, at least 1."""
        # Costs in verify passes: what matters for γ is their ratio.
        best = optimal_lookahead(self.acceptance(memory), self.draft_step / self.verify_pass)
        return jnp.clip(best.lookahead_integer, 1, max_lookahead).astype(jnp.int32)

    def update(
        self, memory: Float[Array, "2 B"], tested: Int[Array, " B"], accepted: Int[Array, " B"]
    ) -> Float[Array, "2 B"]:
        """The discounted counts with this round added."""
        return self.memory * memory + jnp.stack([accepted, tested])
