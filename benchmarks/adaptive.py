"""`python -m benchmarks.adaptive --target DIR --draft DIR`: adaptive lookaheads against the best fixed
one.

Both models are folders that a study wrote. Every rule decodes the same held-out prompts one at a
time, because rows of a lockstep batch would wait for the slowest one. There are two comparisons:

- at given costs: tokens in the time of one verify pass. A round costs one pass whatever its width,
  and `--draft-cost` passes for each draft step. A confidence threshold also pays for the step in
  which the draft falls below it.
- on the clock: speed-up over plain decoding. Here a varying rule pays for the widest verify pass in
  every round, because a compiled program has one width.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.data.prompts import load_prompts
from sdsl_jax.decoding import (
    ConfidenceThreshold,
    FixedLookahead,
    Model,
    NgramDraft,
    OnlineLookahead,
    autoregress,
    speculate,
)
from sdsl_jax.device import device_name
from sdsl_jax.measurement.events import self_check
from sdsl_jax.measurement.latency import Step, interleave, time_steps, timed

_MOST = 8
_CHUNK = 64


def _rules(draft_cost: float) -> dict[str, tuple[Any, int, bool]]:
    """Rule, largest lookahead of its trace, and whether the draft is n-grams."""
    fixed = {f"fixed γ = {g}": (FixedLookahead(g), g, False) for g in (1, 2, 3, 4, 5, 6, 8)}
    unsure = {
        f"confidence ≥ {t:g}": (ConfidenceThreshold(t), _MOST, False) for t in (0.1, 0.2, 0.3, 0.4)
    }
    online = {"online closed form": (OnlineLookahead(draft_cost), _MOST, False)}
    ngrams = {f"n-grams, γ = {g}": (FixedLookahead(g), g, True) for g in (2, 4)}
    return fixed | unsure | online | ngrams


def _at_given_costs(
    draft: Any, target: Model, prompts, rule, most: int, new_tokens: int, cost: float
) -> dict[str, float]:
    """Statistics row by row from batched decoding: a row's rounds do not depend on its batch."""
    emitted = rounds = proposed = steps = 0.0
    checks = []
    for begin in range(0, len(prompts.lengths), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        decoded = speculate(
            draft,
            target,
            prompts.tokens[part],
            prompt_lengths=prompts.lengths[part],
            rows=np.arange(begin, begin + len(prompts.lengths[part])),
            lookahead=rule,
            max_lookahead=most,
            new_tokens=new_tokens,
        )
        events = decoded.events
        assert events is not None
        took_part = np.asarray(events.emitted) > 0
        drafted = np.asarray(events.proposed)[took_part]
        emitted += float(np.asarray(events.verified)[took_part].sum() + took_part.sum())
        rounds += float(took_part.sum())
        proposed += float(drafted.sum())
        extra = (drafted < most).sum() if isinstance(rule, ConfidenceThreshold) else 0
        steps += 0.0 if isinstance(draft, NgramDraft) else float(drafted.sum() + extra)
        checks.append(self_check(events))
    return {
        "tokens_per_pass": emitted / (rounds + steps * cost),
        "tokens_per_round": emitted / rounds,
        "lookahead": proposed / rounds,
        "self_check": float(np.nansum(checks) / np.sqrt(np.isfinite(checks).sum())),
    }


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--prompts", default="heldout")
    parser.add_argument("--count", type=int, default=256, help="prompts at given costs")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument(
        "--draft-cost", type=float, help="verify passes per draft step; measured if left out"
    )
    parser.add_argument(
        "--clock", type=int, default=5, help="prompts on the clock, one at a time; 0 for none"
    )
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    loaded = {role: load_model_folder(getattr(a, role)) for role in ("target", "draft")}
    target, draft = (loaded[role].model for role in ("target", "draft"))
    prompts = load_prompts(
        a.prompts,
        loaded["target"].tokenizer,
        count=a.count,
        max_tokens=32,
        data=loaded["target"].data,
    )
    cost = a.draft_cost
    if cost is None:
        steps = {"draft": Step(draft, 1, 64), "verify": Step(target, _MOST // 2 + 1, 64)}
        seconds = time_steps(steps, repetitions=15, confidence=0.9)
        cost = seconds["draft"].estimate / seconds["verify"].estimate

    results: dict[str, dict[str, float]] = {}
    runs = {}
    for name, (rule, most, ngrams) in _rules(cost).items():
        drafter: Any = NgramDraft(target.config.vocab_size) if ngrams else draft
        results[name] = _at_given_costs(drafter, target, prompts, rule, most, a.new_tokens, cost)
        runs[name] = (drafter, rule, most)

    def plain(row: int) -> Any:
        one = slice(row, row + 1)
        return autoregress(
            target,
            prompts.tokens[one],
            prompt_lengths=prompts.lengths[one],
            new_tokens=a.new_tokens,
        ).tokens

    def fast(row: int, drafter: Any, rule: Any, most: int) -> Any:
        return speculate(
            drafter,
            target,
            prompts.tokens[row : row + 1],
            prompt_lengths=prompts.lengths[row : row + 1],
            rows=np.array([row]),
            lookahead=rule,
            max_lookahead=most,
            new_tokens=a.new_tokens,
        ).tokens

    def speedup(row: int, name: str) -> float:
        return timed(lambda: plain(row))[0] / timed(lambda: fast(row, *runs[name]))[0]

    if a.clock:
        for name in runs:
            speedup(0, name)  # compiles
        calls = [functools.partial(speedup, name=name) for name in runs]
        for name, values in zip(runs, interleave(calls, a.clock)):
            results[name]["clock_speedup"] = statistics.median(values)

    console = Console(width=110)
    best = max(v["tokens_per_pass"] for k, v in results.items() if k.startswith("fixed"))
    table = Table(
        title=f"target {loaded['target'].record.model_id}, draft {loaded['draft'].record.model_id}, "
        f"draft step {cost:.3f} verify passes, {len(prompts.lengths)} prompts × {a.new_tokens} tokens"
    )
    for column in (
        "rule",
        "mean γ",
        "tokens/round",
        "tokens per pass",
        "against best fixed",
        "on the clock",
        "self-check z",
    ):
        table.add_column(
            column, justify="left" if column == "rule" else "right", no_wrap=column == "rule"
        )
    for name, v in results.items():
        table.add_row(
            name,
            f"{v['lookahead']:.2f}",
            f"{v['tokens_per_round']:.3f}",
            f"{v['tokens_per_pass']:.3f}",
            f"{v['tokens_per_pass'] / best - 1:+.1%}",
            f"{v['clock_speedup']:.2f}" if "clock_speedup" in v else "–",
            f"{v['self_check']:+.2f}",
        )
    console.print(table)
    if a.json:
        models = {role: loaded[role].record.model_id for role in loaded}
        result = {
            "device": device_name(),
            "models": models,
            "draft_cost": cost,
            "prompts": len(prompts.lengths),
        }
        a.json.write_text(
            json.dumps(result | {"new_tokens": a.new_tokens, "rules": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
