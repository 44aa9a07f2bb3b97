"""Learning rates by step, and the steps at which token budgets branch off and end."""

from __future__ import annotations

from dataclasses import dataclass

from sdsl_jax.config import TrainingConfig
from sdsl_jax.errors import require


@dataclass(frozen=True)
class Schedule:
    """Warm-up, stable rate, and linear cool-downs to zero that end each token budget (WSD;
    2405.18392).

    Attributes:
      peak: Learning rate after warm-up.
      warmup: Steps of linear warm-up.
      ends: Step at which each budget ends, ascending.
      cooldowns: Steps of each budget's cool-down.
    """

    peak: float
    warmup: int
    ends: tuple[int, ...]
    cooldowns: tuple[int, ...]

    @property
    def branches(self) -> tuple[int, ...]:
        """Step at which each cool-down leaves the trunk."""
        return tuple(end - cooldown for end, cooldown in zip(self.ends, self.cooldowns))

    def branch_before(self, budget: int) -> int:
        """Step at which the previous budget left the trunk, where this budget's own work begins."""
        return max(
            (branch for branch in self.branches if branch < self.branches[budget]), default=0
        )

    def trunk_rate(self, step: int) -> float:
        """Learning rate of the trunk's step number `step`, counted from 0."""
        return self.peak * min(1.0, (step + 1) / max(1, self.warmup))

    def cooldown_rate(self, budget: int, step: int) -> float:
        """Learning rate in the cool-down of a budget. Its last step still moves by 1/cooldowns of
        the peak.
        """
        return self.trunk_rate(step) * (self.ends[budget] - step) / self.cooldowns[budget]

    @property
    def total_steps(self) -> int:
        """Steps of the trunk and of all cool-downs together."""
        return self.branches[-1] + sum(self.cooldowns)


def make_schedule(
    config: TrainingConfig, params: int, budgets: tuple[int, ...], sequence_length: int
) -> Schedule:
    """The schedule of a rung with `params` non-embedding parameters and the given token budgets."""
    tokens_per_step = config.batch(params) * sequence_length
    ends = tuple(max(1, round(tokens / tokens_per_step)) for tokens in sorted(budgets))
    require(
        len(set(ends)) == len(ends),
        f"the token budgets {sorted(budgets)} are not whole steps apart; one step is {tokens_per_step} tokens.",
    )
    cooldowns = tuple(max(1, round(config.cooldown_fraction * end)) for end in ends)
    # A budget shorter than the warm-up would never reach the peak: at most a quarter of the
    # shortest one goes to it.
    warmup = min(round(config.warmup(params) / tokens_per_step), max(1, ends[0] // 4))
    return Schedule(config.peak_learning_rate(params), warmup, ends, cooldowns)
