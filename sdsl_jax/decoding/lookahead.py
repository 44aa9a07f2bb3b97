"""How far ahead to guess: a fixed lookahead, or one that each row chooses for itself, round by
round.

Every rule decides from what is known *before* a token is drawn — earlier rounds, or the
distribution that the next draft would come from — and a draft once drawn is verified whatever it
is. Under this condition a varying lookahead leaves the output distributed as the target's own, with
token and with block verification. Suffix: B rows.
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
    """A rule, as a pytree of traced numbers."""

    def check(self, max_lookahead: int) -> LookaheadRule:
        """The same rule with canonical types; raises SdslError where a number lies outside its range."""
        ...

    def start(self, rows: int) -> Any:
        """What the rule remembers of each row, before the first round."""
        ...

    def most(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """Most drafts that each row may take in the coming round."""
        ...

    def goes_on(self, confidence: Float[Array, " B"]) -> Bool[Array, " B"]:
        """Whether each row draws one more draft, of which the drafter is so sure (`Proposal.confidence`)."""
        ...

    def learn(self, memory: Any, tested: Int[Array, " B"], accepted: Int[Array, " B"]) -> Any:
        """The memory after a round; nothing was tested in rows that took no part."""
        ...


class _Memoryless:
    def start(self, rows: int) -> Any:
        """One number, for the loop's state needs to know the number of rows."""
        return jnp.zeros(rows, jnp.int32)

    def goes_on(self, confidence: Float[Array, " B"]) -> Bool[Array, " B"]:
        """Always."""
        return jnp.ones(confidence.shape, bool)

    def learn(self, memory: Any, tested: Int[Array, " B"], accepted: Int[Array, " B"]) -> Any:
        """Nothing."""
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

    def most(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """γ."""
        return jnp.full(memory.shape, self.lookahead, jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConfidenceThreshold(_Memoryless):
    """Draft on while the draft's largest probability reaches a threshold, up to the largest
    lookahead of the run.

    The probability is that before temperature and filters, so that the rule means the same in
    greedy decoding.

    The step that finds the draft unsure has been paid for and yields no draft; a round may have
    none at all.
    """

    threshold: float | Float[Array, ""]

    def check(self, max_lookahead: int) -> ConfidenceThreshold:
        """Raises SdslError unless the threshold lies in [0, 1]."""
        require(
            0 <= self.threshold <= 1,
            f"the confidence threshold is {self.threshold}; it must lie between 0 and 1.",
        )
        return ConfidenceThreshold(jnp.float32(self.threshold))

    def most(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """The largest lookahead of the run."""
        return jnp.full(memory.shape, max_lookahead, jnp.int32)

    def goes_on(self, confidence: Float[Array, " B"]) -> Bool[Array, " B"]:
        """Whether the largest probability reaches the threshold."""
        return confidence >= self.threshold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnlineLookahead(_Memoryless):
    """The closed form's best whole γ for a running estimate of each row's α, at measured costs.

    The estimate is (prior_tests·prior + Σ accepted)/(prior_tests + Σ tested), older rounds
    discounted; under block verification, which does not test drafts one by one, the same counts
    stand for it. At least one draft is made in every round: a row that stopped drafting would never
    learn that its text became easier.

    Attributes:
      draft_step: seconds of a draft step, or any unit that `verify_pass` shares.
      verify_pass: of a verify pass as wide as the run makes it.
      prior: α before anything is known.
      prior_tests: how many tested drafts the prior is worth.
      memory: weight of a round relative to the next one; 1 forgets nothing.
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

    def start(self, rows: int) -> Float[Array, "2 B"]:
        """Accepted and tested drafts of each row."""
        return jnp.zeros((2, rows))

    def acceptance(self, memory: Float[Array, "2 B"]) -> Float[Array, " B"]:
        """The running estimate of each row's α."""
        return (self.prior_tests * self.prior + memory[0]) / (self.prior_tests + memory[1])

    def most(self, memory: Float[Array, "2 B"], max_lookahead: int) -> Int[Array, " B"]:
        """The closed form's γ, at least 1."""
        # Costs in verify passes: what matters for γ is their ratio.
        best = optimal_lookahead(self.acceptance(memory), self.draft_step / self.verify_pass)
        return jnp.clip(best.lookahead_integer, 1, max_lookahead).astype(jnp.int32)

    def learn(
        self, memory: Float[Array, "2 B"], tested: Int[Array, " B"], accepted: Int[Array, " B"]
    ) -> Float[Array, "2 B"]:
        """Discounted counts."""
        return self.memory * memory + jnp.stack([accepted, tested])
