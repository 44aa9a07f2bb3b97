"""The number of drafts per round: a fixed lookahead, or a rule by which each row chooses its own in
every round.

A rule decides from what is known *before* a token is drawn, in any row of the batch: earlier rounds,
drafts so far, and the distribution that the next draft would come from. A draft that was drawn is
always verified. Under this condition a varying lookahead is lossless, with token and with block
verification, for each row and for all rows jointly (docs/decoding.md has the proof). Suffixes: B
rows, G largest lookahead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.errors import require
from sdsl_jax.theory import optimal_lookahead, speedup


class Candidates(NamedTuple):
    """What is known of each row's next draft before it is drawn. It holds no drafted token, so that
    no rule can decide by one.

    Attributes:
      asking: Rows that may take one more draft in this round.
      confidence: The drafter's `Proposal.confidence` in the next draft.
      survival: Product of the confidences of the row's drafts in this round and of the next one.
      drafts: Drafts that each row has taken in this round. Rows that ask have all taken `number`.
      number: Drafts that an asking row has taken in this round.
      max_drafts: The most drafts that each row may take in this round.
    """

    asking: Bool[Array, " B"]
    confidence: Float[Array, " B"]
    survival: Float[Array, " B"]
    drafts: Int[Array, " B"]
    number: Int[Array, ""]
    max_drafts: Int[Array, " B"]


@runtime_checkable
class LookaheadRule(Protocol):
    """A rule for the lookahead, as a pytree of traced numbers."""

    @property
    def pauses(self) -> bool:
        """Whether `max_drafts` may be 0. A round in which it is 0 for every row is a plain step."""
        ...

    @property
    def budget(self) -> Int[Array, ""] | int | None:
        """Drafts that all rows of the batch may take together in a round; None for no limit."""
        ...

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

    def keep_drafting(self, candidates: Candidates, max_lookahead: int) -> Bool[Array, " B"]:
        """Whether each row takes one more draft; of rows that do not ask the answer is not used."""
        ...

    def update(self, memory: Any, tested: Int[Array, " B"], accepted: Int[Array, " B"]) -> Any:
        """The memory after a round; rows that took no part tested 0 drafts."""
        ...


class _Memoryless:
    pauses = False
    budget: Any = None

    def init(self, rows: int) -> Any:
        """One unused number per row: the shape of the memory gives the number of rows."""
        return jnp.zeros(rows, jnp.int32)

    def keep_drafting(self, candidates: Candidates, max_lookahead: int) -> Bool[Array, " B"]:
        """Always true."""
        return jnp.ones(candidates.confidence.shape, bool)

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

    def keep_drafting(self, candidates: Candidates, max_lookahead: int) -> Bool[Array, " B"]:
        """Whether the largest probability reaches the threshold."""
        return candidates.confidence >= self.threshold


class AcceptanceCounts(NamedTuple):
    """What `OnlineLookahead` remembers.

    Attributes:
      counts: Discounted numbers of accepted and of tested drafts of each row.
      lookahead: The closed form's γ for these counts, a whole number.
      rounds: Rounds of the run so far, the same for every row.
    """

    counts: Float[Array, "2 B"]
    lookahead: Float[Array, " B"]
    rounds: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnlineLookahead(_Memoryless):
    """The best integer γ of the closed form, 0 included, for a running estimate of each row's α.

    The estimate is (prior_tests·prior + Σ accepted)/(prior_tests + Σ tested). Counts are discounted
    at each later round that tests a draft of the row. Block verification does not test drafts one by
    one; the rule uses the same counts there.

    A row whose γ is 0 drafts one token in every `probe_every`-th round of the run, to notice when its
    text becomes easier; `probe_regret` is the price. Rows probe in the same rounds, so that all
    other rounds can be plain steps of the whole batch. With `probe_every=1` every round drafts.

    Attributes:
      draft_step: Seconds of a draft step, or any unit shared with the other costs.
      verify_pass: Seconds of a verify pass of the run's width.
      prior: α before the first round.
      prior_tests: Number of tested drafts that the prior is worth. The prior does not fade: a draft
        that is never accepted is estimated at prior·prior_tests/(prior_tests + 1/(1 − memory)) in
        the end, 0.2 by default, and is switched off only if that does not pay.
      memory: Weight of a round relative to the next one; 1 forgets nothing.
      plain_step: Seconds of a plain step of the target, at most those of a verify pass; None for
        as many.
      probe_every: Rounds from one probe of a row at γ = 0 to the next; at least 1.
    """

    draft_step: float | Float[Array, ""]
    verify_pass: float | Float[Array, ""] = 1.0
    prior: float | Float[Array, ""] = 0.7
    prior_tests: float | Float[Array, ""] = 8.0
    memory: float | Float[Array, ""] = 0.95
    plain_step: float | Float[Array, ""] | None = None
    probe_every: int | Int[Array, ""] = 16

    pauses = True

    def check(self, max_lookahead: int) -> OnlineLookahead:
        """Raises SdslError where a number lies outside its range."""
        plain_step = self.verify_pass if self.plain_step is None else self.plain_step
        require(
            self.draft_step > 0, f"the draft step's cost is {self.draft_step}; it must be positive."
        )
        require(
            self.verify_pass > 0,
            f"the verify pass's cost is {self.verify_pass}; it must be positive.",
        )
        require(
            0 < plain_step <= self.verify_pass,
            f"the plain step's cost is {plain_step}; it must be positive and at most the verify "
            f"pass's ({self.verify_pass}).",
        )
        require(
            0 < self.prior < 1,
            f"the prior acceptance is {self.prior}; it must lie between 0 and 1.",
        )
        require(self.prior_tests > 0, f"prior_tests is {self.prior_tests}; it must be positive.")
        require(0 < self.memory <= 1, f"the memory is {self.memory}; it must lie in (0, 1].")
        require(
            self.probe_every >= 1 and self.probe_every == int(self.probe_every),
            f"probe_every is {self.probe_every}; it must be a whole number of rounds, at least 1.",
        )
        numbers = jax.tree.map(jnp.float32, replace(self, plain_step=plain_step))
        return replace(numbers, probe_every=jnp.int32(self.probe_every))

    def init(self, rows: int) -> AcceptanceCounts:
        """Zero accepted and tested drafts for each row."""
        counts = jnp.zeros((2, rows))
        # All rows are alike. (XLA also struggles to simplify the closed form of so many zeros.)
        lookahead = jnp.broadcast_to(self._lookahead(counts[:, :1]), (rows,))
        return AcceptanceCounts(counts, lookahead, jnp.zeros((), jnp.int32))

    def acceptance(self, memory: AcceptanceCounts) -> Float[Array, " B"]:
        """The running estimate of each row's α."""
        return self._acceptance(memory.counts)

    def _acceptance(self, counts: Float[Array, "2 B"]) -> Float[Array, " B"]:
        accepted, tested = counts
        return (self.prior_tests * self.prior + accepted) / (self.prior_tests + tested)

    def max_drafts(self, memory: AcceptanceCounts, max_lookahead: int) -> Int[Array, " B"]:
        """The closed form's γ, as far as the run's largest lookahead allows; at least 1 in a round
        that probes."""
        best, alpha, costs = memory.lookahead, self.acceptance(memory), self._costs()
        # If γ is cut short, fewer drafts may have to pay for the verify pass than it takes.
        pays = speedup(alpha, float(max_lookahead), *costs) > 1
        best = jnp.where(best <= max_lookahead, best, jnp.where(pays, max_lookahead, 0.0))
        probing = memory.rounds % self.probe_every == self.probe_every - 1
        return jnp.maximum(best, jnp.where(probing, 1.0, 0.0)).astype(jnp.int32)

    def probe_regret(
        self, acceptance: float | Float[Array, ""], catch_up: float = 0.0
    ) -> Float[Array, ""]:
        """Share of its time that a row at γ = 0 loses by probing, against plain decoding.

        Of n = `probe_every` rounds one probes. They take (n − 1)·t + u + d + v and emit n + α tokens
        on average, which n + α plain steps would do as well, so the share is
        (u + d + v − (1 + α)·t)/((n − 1)·t + u + d + v). It is largest for α = 0 and falls as 1/n;
        where drafts pay it is negative.

        Args:
          acceptance: The row's true α, in [0, 1].
          catch_up: u, seconds that the drafter takes to read the tokens of the plain rounds.
        """
        plain = self.verify_pass if self.plain_step is None else self.plain_step
        probe = catch_up + self.draft_step + self.verify_pass
        lost = probe - (1 + jnp.asarray(acceptance)) * plain
        return lost / ((self.probe_every - 1) * plain + probe)

    def update(
        self, memory: AcceptanceCounts, tested: Int[Array, " B"], accepted: Int[Array, " B"]
    ) -> AcceptanceCounts:
        """The counts with this round added; discounted in rows that tested a draft."""
        # A row without drafts learns nothing, so it has nothing to forget for.
        kept = jnp.where(tested > 0, self.memory, 1.0)[None] * memory.counts
        counts = kept + jnp.stack([accepted, tested])
        # The closed form takes longer than the step of a small model: not in plain rounds.
        lookahead = jax.lax.cond(
            (tested > 0).any(), self._lookahead, lambda counts: memory.lookahead, counts
        )
        return AcceptanceCounts(counts, lookahead, memory.rounds + 1)

    def _lookahead(self, counts: Float[Array, "2 B"]) -> Float[Array, " B"]:
        """The closed form's γ for some counts, without an upper limit."""
        return optimal_lookahead(self._acceptance(counts), *self._costs()).lookahead_integer

    def _costs(self) -> tuple[Any, Any]:
        """A draft step and a verify pass in plain steps."""
        plain = self.verify_pass if self.plain_step is None else self.plain_step
        return self.draft_step / plain, self.verify_pass / plain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedBudget(_Memoryless):
    """Confidence scheduling: the rows of a batch share a number of drafts per round, and those whose
    drafts are most likely to survive take more of them.

    The estimated survival of a draft is the product of the drafter's confidences in the row's drafts
    so far and in this one, all of them known before it is drawn. Before each draft step, the rule
    extends every row to the largest lookahead at the row's mean confidence so far, ranks all these
    drafts of all rows, and lets a row take its next draft if it is among the best that the budget
    still allows. A row that stops does not resume in the round, so some budget may be left.

    A row's *distribution* is the target's, alone and jointly with all other rows. Its tokens,
    however, depend on the rows beside it, since these change how far it drafts.

    Attributes:
      budget: Drafts of the whole batch in a round, at least 1; with fewer than the batch has rows
        some rows take none. A verify pass judges the budget plus one token of each row.
    """

    budget: int | Int[Array, ""]

    def check(self, max_lookahead: int) -> SharedBudget:
        """Raises SdslError unless the budget is a whole number, at least 1."""
        require(
            self.budget >= 1 and self.budget == int(self.budget),
            f"the shared budget is {self.budget}; it must be a whole number of drafts, at least 1.",
        )
        return SharedBudget(jnp.int32(self.budget))

    def max_drafts(self, memory: Any, max_lookahead: int) -> Int[Array, " B"]:
        """The largest lookahead of the run."""
        return jnp.full(memory.shape, max_lookahead, jnp.int32)

    def keep_drafting(self, candidates: Candidates, max_lookahead: int) -> Bool[Array, " B"]:
        """Whether each row's next draft is among the best of all rows that the budget still allows."""
        c, later_G1 = candidates, jnp.arange(max_lookahead)[:, None]
        mean = c.survival ** (1 / (c.number + 1))
        possible = c.asking[None] & (later_G1 < (c.max_drafts - c.number)[None])
        survival_GB = jnp.where(possible, c.survival[None] * mean[None] ** later_G1, -1.0)
        # Stable and by depth: of equally good drafts the earlier one comes first.
        best_first = jnp.argsort(-survival_GB.ravel(), stable=True)
        rank = jnp.argsort(best_first)[: len(mean)]
        return rank < self.budget - c.drafts.sum()
