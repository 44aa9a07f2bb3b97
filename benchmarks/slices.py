"""`python -m benchmarks.slices WHOLE SLICE --target TARGET [--json FILE]`: does a nested draft that chooses its size beat
its best fixed slice?

Nothing is timed: S is exact, from samples of the target. In FLOPs, both slices read every token that was kept, and the slice
that drafts takes γ − 1 steps more. Where catching up takes no longer than one step, as on a device that waits for memory, a round
costs γ steps of the slice that drafts, and one of the smaller slice if it was not that. The rule is chosen by the latter cost.
Half of the samples choose the best fixed slice and lookahead, and the best threshold and lookaheads of the rule; the other half
judge both.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.models import count, forward

LARGEST, PROMPT, NEW = 24, 32, 96
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LOOKAHEADS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
DRAWS = 1000


class Scored(NamedTuple):
    """What a slice says of the samples: min(1, q(y)/p(y)) of every token, and its confidence before it, [samples, T]."""

    acceptance: np.ndarray
    confidence: np.ndarray


@jax.jit
def _overlap(p: Any, q: Any, tokens: Any) -> Any:
    p_of, q_of = (jnp.take_along_axis(x, tokens[..., None], axis=-1)[..., 0] for x in (p, q))
    return jnp.minimum(1.0, jnp.exp(q_of - p_of))


def score(draft: Model, target: Model, samples: np.ndarray) -> Scored:
    """Scores of all tokens after the prompts."""
    parts = []
    run = jax.jit(forward, static_argnums=0)
    for rows in np.array_split(samples, max(1, len(samples) // 32)):
        log_p, log_q = (
            jax.nn.log_softmax(
                run(m.config, m.params, jnp.asarray(rows[:, :-1]))[0][:, PROMPT - 1 :]
            )
            for m in (target, draft)
        )
        parts.append(
            (_overlap(log_p, log_q, jnp.asarray(rows[:, PROMPT:])), jnp.exp(log_q.max(axis=-1)))
        )
    return Scored(*(np.concatenate(x) for x in zip(*parts)))


def expected(acceptance: np.ndarray, lookahead: int) -> tuple[np.ndarray, np.ndarray]:
    """Chance that a round that starts at a position keeps a drafts, [samples, T, γ + 1], and its tokens, [samples, T]."""
    n, T = acceptance.shape
    padded = np.concatenate([acceptance, np.zeros((n, lookahead))], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, lookahead, axis=1)[:, :T]
    survival = np.concatenate([np.ones((n, T, 1)), np.cumprod(windows, axis=2)], axis=2)
    kept = np.concatenate([survival[..., :-1] - survival[..., 1:], survival[..., -1:]], axis=2)
    return kept, survival.sum(axis=2)


def totals(
    by_large: np.ndarray, small: Any, large: Any, costs: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Expected tokens and cost of the rounds that start early enough for any lookahead, by sample.

    Args:
      by_large: Whether a round that starts at a position is drafted by the larger slice, [samples, T].
      small: What `expected` gives of the smaller slice.
      large: The same of the larger one.
      costs: Cost of a round by each, in steps of the target, and of each token that is kept.
    """
    n, T = by_large.shape
    starts = np.zeros((n, T + LARGEST + 2))
    starts[:, 0] = 1.0
    for t in range(T):
        for chosen, (kept, _) in ((~by_large[:, t], small), (by_large[:, t], large)):
            width = kept.shape[2]
            starts[:, t + 1 : t + 1 + width] += (starts[:, t] * chosen)[:, None] * kept[:, t]
    counted = starts[:, : T - LARGEST]
    chosen = by_large[:, : T - LARGEST]
    tokens = np.where(chosen, large[1][:, : T - LARGEST], small[1][:, : T - LARGEST])
    cost = np.where(chosen, costs[1], costs[0]) + costs[2] * tokens
    return (counted * tokens).sum(axis=1), (counted * cost).sum(axis=1)


def main() -> None:
    """Prints S of the best fixed slice and of the rule, and their ratio with its interval."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("whole", type=Path, help="folder of the nested draft")
    parser.add_argument("slice", type=Path, help="folder of the slice")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    loaded = load_model(arguments.target)
    target = loaded.model
    large, small = (load_model(path).model for path in (arguments.whole, arguments.slice))
    if loaded.data is None:
        parser.error(f"the target in {arguments.target} does not name the text it was trained on")
    text = load_dataset(loaded.data).text("test")
    prompts = text.windows(arguments.samples)[:, :PROMPT]
    samples = np.asarray(
        autoregress(target, prompts, new_tokens=NEW, sampling=Sampling(), seed=0).tokens
    )
    step = count(target.config, 64).flops_per_token
    cost_small, cost_large = (count(m.config, 64).flops_per_token / step for m in (small, large))
    scored = [score(m, target, samples) for m in (small, large)]
    rounds = [{g: expected(s.acceptance, g) for g in LOOKAHEADS} for s in scored]
    chooses = np.arange(len(samples)) % 2 == 0
    confidence = scored[0].confidence

    def result(
        threshold: float, g_small: int, g_large: int, rows: np.ndarray, in_flops: bool = False
    ) -> Any:
        costs = (1 + g_small * cost_small, 1 + cost_small + g_large * cost_large, 0.0)
        if in_flops:
            steps = (1 + (g_small - 1) * cost_small, 1 + (g_large - 1) * cost_large)
            costs = (*steps, cost_small + cost_large)
        of_small, of_large = (
            tuple(x[rows] for x in r[g]) for r, g in zip(rounds, (g_small, g_large))
        )
        return totals(confidence[rows] < threshold, of_small, of_large, costs)

    def fixed(which: int, g: int, rows: np.ndarray) -> Any:
        cost = 1 + g * (cost_small, cost_large)[which]
        some = tuple(x[rows] for x in rounds[which][g])
        nobody = np.full(confidence[rows].shape, which == 1)
        return totals(nobody, some, some, (cost, cost, 0.0))

    def ratio(pair: Any) -> float:
        return float(pair[0].sum() / pair[1].sum())

    fixed_choices: Any = itertools.product((0, 1), LOOKAHEADS)
    best_fixed: Any = max(fixed_choices, key=lambda c: ratio(fixed(c[0], c[1], chooses)))
    # The lookaheads of each slice where it drafts alone, and their neighbours.
    lookahead_candidates: list[Any] = []
    for which in (0, 1):
        speedups = [ratio(fixed(which, g, chooses)) for g in LOOKAHEADS]
        at = int(np.argmax(speedups))
        lookahead_candidates.append(LOOKAHEADS[max(0, at - 4) : at + 4])
    candidates: Any = itertools.product(THRESHOLDS, *lookahead_candidates)
    rule: Any = max(candidates, key=lambda c: ratio(result(c[0], c[1], c[2], chooses)))
    a = result(rule[0], rule[1], rule[2], ~chooses)
    b = fixed(best_fixed[0], best_fixed[1], ~chooses)
    random = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        rows = random.integers(0, len(a[0]), len(a[0]))
        draws.append(ratio([x[rows] for x in a]) / ratio([x[rows] for x in b]) - 1)
    low, high = np.quantile(draws, [0.05, 0.95])
    share = float((confidence[~chooses] < rule[0]).mean())
    found = {
        "cost": [cost_small, cost_large],
        "fixed": {"slice": "whole" if best_fixed[0] else "slice", "lookahead": best_fixed[1]},
        "fixed_speedup": ratio(b),
        "rule": {"threshold": rule[0], "lookahead_small": rule[1], "lookahead_large": rule[2]},
        "rule_speedup": ratio(a),
        "rule_speedup_in_flops": ratio(result(rule[0], rule[1], rule[2], ~chooses, in_flops=True)),
        "gain": ratio(a) / ratio(b) - 1,
        "gain_low": float(low),
        "gain_high": float(high),
        "positions_below_threshold": share,
        "samples": len(samples),
    }
    for name, value in found.items():
        print(f"{name:26s} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
