"""What token verification gives at every lookahead in expectation, from samples of the target and
without decoding.

The rounds themselves are those of `measurement.replay`. Here they become the numbers that the study
compares across lookaheads, which is why every lookahead counts the same starts of the same samples:
what differs between two of them is the lookahead alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdsl_jax.errors import require
from sdsl_jax.measurement.replay import rounds_of_samples
from sdsl_jax.records import ExpectedRecord
from sdsl_jax.statistics import Interval, ratio_interval, student_quantile
from sdsl_jax.theory import acceptance_from_tokens_per_round


class ExpectedOutcome(NamedTuple):
    """Token verification at one lookahead; intervals take samples as clusters.

    Attributes:
      lookahead: γ.
      tokens_per_round: τ = 1 + Σ_k S_k.
      accepted_per_test: Σ_{k=1..γ} S_k / Σ_{k=0..γ−1} S_k; a draft behind a rejection is not
        tested.
      alpha: the α whose geometric formula gives τ at this γ.
      alpha_change: α(γ) − α(1); 0 where acceptance is i.i.d., whatever the α.
      rounds: expected number of rounds behind them.
    """

    lookahead: int
    tokens_per_round: Interval
    accepted_per_test: Interval
    alpha: Interval
    alpha_change: Interval
    rounds: float


# The change of α with τ, for many values of both at once.
_slopes = jax.jit(jax.vmap(jax.grad(acceptance_from_tokens_per_round)))


def expected_outcomes(
    acceptance: Float[np.ndarray, "samples T"], largest: int, confidence: float = 0.9
) -> list[ExpectedOutcome]:
    """Outcomes at γ = 1 … `largest`.

    Counted are, at every γ, the rounds that start at one of the first T − `largest` + 1 positions,
    so that a block of any γ fits behind the last of them. The interval of the change of α is
    linearised: sample i moves τ(γ) by its residual over the rounds, α(γ) by that times dα/dτ, and
    the difference of two α by the difference of the two moves; their spread over the samples, with
    Student's t, is that of `ratio_interval`.

    Args:
      acceptance: min(1, q(y)/p(y)) of each token of each sample of the target.
      largest: the largest γ, at most T.
      confidence: of the intervals.

    Raises:
      SdslError: `largest` lies outside its range.
    """
    n, width = acceptance.shape
    require(
        1 <= largest <= width, f"the largest lookahead is {largest}; it must lie in [1, {width}]."
    )
    gammas = np.arange(1, largest + 1)
    starts = np.full(n, width - largest + 1)
    # Whole samples at every γ, though the last tokens are of no use to a small one: a shape that
    # all of them share.
    rounds = [rounds_of_samples(acceptance, starts, int(gamma)) for gamma in gammas]
    taus = [
        ratio_interval(r.started + r.survived.sum(axis=1), r.started, confidence) for r in rounds
    ]
    tests = [
        ratio_interval(
            r.survived.sum(axis=1), r.started + r.survived[:, :-1].sum(axis=1), confidence
        )
        for r in rounds
    ]
    tau = jnp.asarray([value.estimate for value in taus])
    alphas = np.asarray(acceptance_from_tokens_per_round(np.asarray(taus), gammas[:, None]), float)
    slopes = np.asarray(_slopes(tau, jnp.asarray(gammas, tau.dtype)), float)
    moves = np.stack(
        [
            slope * (r.survived.sum(axis=1) - (value.estimate - 1) * r.started) / r.started.sum()
            for r, value, slope in zip(rounds, taus, slopes)
        ]
    )
    errors = (
        np.sqrt(n / (n - 1) * np.square(moves - moves[0]).sum(axis=1))
        if n > 1
        else np.full(largest, np.nan)
    )
    halves = student_quantile(0.5 + confidence / 2, n - 1) * errors
    changes = alphas[:, 0] - alphas[0, 0]
    return [
        ExpectedOutcome(
            int(gamma),
            taus[i],
            tests[i],
            Interval(*map(float, alphas[i])),
            Interval(
                float(changes[i]), float(changes[i] - halves[i]), float(changes[i] + halves[i])
            ),
            float(rounds[i].started.sum()),
        )
        for i, gamma in enumerate(gammas)
    ]


def expected_record(
    outcome: ExpectedOutcome,
    *,
    draft_id: str,
    target_id: str,
    temperature: float,
    domain: str,
    confidence: float,
    samples: int,
) -> ExpectedRecord:
    """One outcome as a row of `expected.csv`."""
    columns: dict[str, float] = {}
    for name in ("tokens_per_round", "accepted_per_test", "alpha", "alpha_change"):
        value: Interval = getattr(outcome, name)
        columns |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
    return ExpectedRecord(
        draft_id=draft_id,
        target_id=target_id,
        lookahead=outcome.lookahead,
        temperature=temperature,
        domain=domain,
        confidence=confidence,
        samples=samples,
        rounds=outcome.rounds,
        **columns,
    )
