"""`python -m benchmarks.adaptive --target DIR --draft DIR`: adaptive lookaheads against the best fixed
one, what pauses save, and what a shared budget gains.

Both models are folders that a study wrote. `--parts` chooses among three comparisons.

`rules`: every rule decodes the same held-out prompts one at a time, because rows of a lockstep batch
would wait for the slowest one, in two ways:

- at given costs: tokens in the time of one verify pass. A round costs one pass whatever its width,
  and `--draft-cost` passes for each draft step. A confidence threshold also pays for the step in
  which the draft falls below it.
- on the clock: speed-up over plain decoding. Here a varying rule pays for the widest verify pass in
  every round, because a compiled program has one width.

`pauses`, at 1 and 8 rows: a plain round of the speculative loop in plain decoding steps, and the
speed-up of a draft that does not pay (`--poor`): at a fixed lookahead, under a rule that drafts in
every round, and under one that goes to 0 and probes. Only the loops are timed, all of them in turn
on the same prompts; ratios are taken prompt by prompt.

`budget`, in batches of 8 rows: tokens per round of a shared budget of drafts against a fixed
lookahead that drafts as many. No clock is involved.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.data.prompts import Prompts, load_prompts
from sdsl_jax.decoding import (
    ConfidenceThreshold,
    FixedLookahead,
    Model,
    NgramDraft,
    OnlineLookahead,
    Sampling,
    SharedBudget,
    autoregress,
    loop,
    speculate,
)
from sdsl_jax.decoding.decode import begin, drafter_of
from sdsl_jax.decoding.noise import row_keys
from sdsl_jax.device import device_name
from sdsl_jax.measurement.events import self_check
from sdsl_jax.measurement.latency import Step, interleave, time_steps, timed
from sdsl_jax.statistics import Interval, mean_interval, median_interval

_MOST = 8
_CHUNK = 64
# Rows and largest lookahead of `pauses`, rows of `budget`, rounds from probe to probe, and the
# confidence of intervals.
_BATCHES, _WIDTH, _ROWS, _PROBE_EVERY, _CONFIDENCE = (1, 8), 4, 8, 16, 0.9
# Tokens of the runs that compare a plain round with a step.
_LONG = 512
_PARTS = ("rules", "pauses", "budget")


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
    for first in range(0, len(prompts.lengths), _CHUNK):
        part = slice(first, first + _CHUNK)
        decoded = speculate(
            draft,
            target,
            prompts.tokens[part],
            prompt_lengths=prompts.lengths[part],
            rows=np.arange(first, first + len(prompts.lengths[part])),
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


def _pauses(
    target: Model, poor: Model, prompts: Prompts, batch: int, new_tokens: int, repetitions: int
) -> dict[str, Any]:
    """What a plain round costs, and what a draft that does not pay costs under each rule."""
    kinds = {
        "draft": Step(poor, 1, 64, batch),
        "verify": Step(target, _WIDTH + 1, 64, batch),
        "plain": Step(target, 1, 64, batch),
        "catch_up": Step(poor, 16, 64, batch),
    }
    measured = time_steps(kinds, repetitions=15, confidence=_CONFIDENCE)
    seconds = {name: interval.estimate for name, interval in measured.items()}
    plain_step = min(seconds["plain"], seconds["verify"])
    costs = dict(verify_pass=seconds["verify"], plain_step=plain_step)
    pausing = OnlineLookahead(seconds["draft"], probe_every=_PROBE_EVERY, **costs)
    never = OnlineLookahead(
        1e3 * plain_step, prior=0.01, prior_tests=1e6, probe_every=2**30, **costs
    )
    rules = {
        **{f"fixed γ = {g}": FixedLookahead(g) for g in (1, _WIDTH)},
        "online, drafts in every round": OnlineLookahead(seconds["draft"], probe_every=1, **costs),
        f"online, probes every {_PROBE_EVERY}th round": pausing,
    }
    drafter, sampling = drafter_of(poor, target, _WIDTH), Sampling().check()
    width = prompts.tokens.shape[1]

    def run(repetition: int, rule: Any, new_tokens: int = new_tokens) -> tuple[float, Any]:
        """Seconds of one loop after its prompts, and what it decoded."""
        buffer = width + new_tokens
        of = np.arange(repetition * batch, (repetition + 1) * batch) % len(prompts.lengths)
        lengths = jnp.asarray(prompts.lengths[of], jnp.int32)
        requests = loop.Requests(
            jnp.asarray(prompts.tokens[of], jnp.int32),
            lengths,
            lengths + new_tokens,
            row_keys(0, of),
            jnp.zeros(0, jnp.int32),
        )
        models = (target.params,) if rule is None else (poor.params, target.params)
        with jax.default_matmul_precision("highest"):
            state, cache = begin(
                drafter, poor.params, target, requests.prompts, buffer + _WIDTH + 1
            )
            jax.block_until_ready((state, cache))
            if rule is None:
                return timed(
                    lambda: loop.autoregressive_loop(
                        target.config, *models, requests, sampling, cache, buffer=buffer
                    )
                )
            return timed(
                lambda: loop.speculative_loop(
                    drafter, target.config, *models, requests, sampling, rule.check(_WIDTH), state, cache,
                    verification="token", max_lookahead=_WIDTH, buffer=buffer, max_rounds=new_tokens,
                    keep_distributions=False,
                )
            )  # fmt: skip

    calls = [functools.partial(run, rule=rule) for rule in (None, *rules.values())]
    for call in calls:
        call(0)  # compiles
    random = np.random.default_rng(0)
    times = [[(s, d.events) for s, d in runs] for runs in interleave(calls, repetitions, random)]
    plain = np.asarray([s for s, _ in times[0]])
    # Every round a plain one; in long runs, for the start of a program to count for little.
    pair = [functools.partial(run, rule=r, new_tokens=_LONG) for r in (None, never)]
    for call in pair:
        call(0)
    steps, rounds = ([s for s, _ in runs] for runs in interleave(pair, repetitions, random))
    ratio = median_interval(np.asarray(rounds) / np.asarray(steps), _CONFIDENCE)
    results: dict[str, Any] = {
        "seconds": seconds,
        "plain_round_in_steps": ratio.to_json(),
        "rules": {},
    }
    for name, runs in zip(rules, times[1:]):
        ratio = plain / np.asarray([s for s, _ in runs])
        events = [jax.tree.map(np.asarray, e) for _, e in runs]
        tested = sum(np.minimum(e.verified + 1, e.proposed).sum() for e in events)
        took_part = sum((e.emitted > 0).sum() for e in events)
        results["rules"][name] = {
            "speedup": median_interval(ratio, _CONFIDENCE).to_json(),
            "acceptance": float(sum(e.verified.sum() for e in events) / max(tested, 1)),
            "lookahead": float(sum(e.proposed.sum() for e in events) / took_part),
        }
    alpha = results["rules"]["fixed γ = 1"]["acceptance"]
    results["probe_regret"] = float(pausing.probe_regret(alpha, seconds["catch_up"]))
    return results


def _shared_budget(
    draft: Model, target: Model, prompts: Prompts, new_tokens: int
) -> dict[str, dict[str, Any]]:
    """Tokens per round and drafts per row of a shared budget and of the fixed lookahead that drafts as
    many, by temperature and lookahead."""

    def per_batch(rule: Any, most: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        tokens, drafts = [], []
        for first in range(0, len(prompts.lengths) - _ROWS + 1, _ROWS):
            part = slice(first, first + _ROWS)
            decoded = speculate(
                draft,
                target,
                prompts.tokens[part],
                prompt_lengths=prompts.lengths[part],
                rows=np.arange(first, first + _ROWS),
                lookahead=rule,
                max_lookahead=most,
                new_tokens=new_tokens,
                sampling=Sampling(temperature),
            )
            events = jax.tree.map(np.asarray, decoded.events)
            # Rounds in which every row takes part, so that the budget serves as many.
            whole = (events.emitted > 0).all(axis=0)
            tokens.append(events.verified[:, whole].mean() + 1)
            drafts.append(events.proposed[:, whole].mean())
        return np.asarray(tokens), np.asarray(drafts)

    results: dict[str, dict[str, Any]] = {}
    for temperature in (1.0, 0.0):
        for g in (1, 2, 4):
            fixed, _ = per_batch(FixedLookahead(g), g, temperature)
            shared, drafts = per_batch(SharedBudget(g * _ROWS), _MOST, temperature)
            results[f"temperature {temperature:g}, γ = {g}"] = {
                "fixed_tokens_per_round": mean_interval(fixed, _CONFIDENCE).to_json(),
                "shared_tokens_per_round": mean_interval(shared, _CONFIDENCE).to_json(),
                "shared_over_fixed": mean_interval(shared / fixed, _CONFIDENCE).to_json(),
                "shared_drafts": float(drafts.mean()),
            }
    return results


def _print_pauses(console: Console, found: dict[str, Any], batch: int) -> None:
    steps = found["plain_round_in_steps"]
    costs = {k: v / found["seconds"]["plain"] for k, v in found["seconds"].items()}
    table = Table(
        title=f"{batch} rows: a plain round takes {Interval(**steps):.3f} plain steps; draft step "
        f"{costs['draft']:.2f}, verify pass {costs['verify']:.2f}, 16 tokens to catch up "
        f"{costs['catch_up']:.2f}"
    )
    for column in ("rule", "speed-up", "acceptance", "mean γ"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for name, v in found["rules"].items():
        table.add_row(
            name,
            f"{Interval(**v['speedup']):.3f}",
            f"{v['acceptance']:.3f}",
            f"{v['lookahead']:.2f}",
        )
    console.print(table)
    console.print(
        f"Expected loss by probes every {_PROBE_EVERY} rounds: {found['probe_regret']:.1%} of the time."
    )


def _print_budget(console: Console, found: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"a budget that {_ROWS} rows share, at equal verify work")
    for column in ("", "fixed, tokens/round", "shared", "shared over fixed", "drafts per row"):
        table.add_column(column, justify="right" if column else "left")
    for name, v in found.items():
        intervals = (Interval(**value) for key, value in v.items() if key != "shared_drafts")
        table.add_row(name, *(f"{i:.3f}" for i in intervals), f"{v['shared_drafts']:.2f}")
    console.print(table)


def _rules_part(
    console: Console, a: argparse.Namespace, loaded: Any, prompts: Prompts
) -> dict[str, Any]:
    """Prints how every rule does at given costs and on the clock."""
    target, draft = (loaded[role].model for role in ("target", "draft"))
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
    return {"draft_cost": cost, "rules": results}


def main() -> None:
    """Prints a table for each part."""
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
    parser.add_argument(
        "--parts",
        default=",".join(_PARTS),
        help=f"some of {', '.join(_PARTS)}, separated by commas",
    )
    parser.add_argument(
        "--poor", type=Path, help="draft that does not pay, for `pauses`; the draft by default"
    )
    parser.add_argument("--repetitions", type=int, default=31, help="timed runs in `pauses`")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    parts = tuple(a.parts.split(","))
    if strange := {*parts} - {*_PARTS}:
        parser.error(f"there is no part {', '.join(strange)}; the parts are {', '.join(_PARTS)}")
    folders = {"target": a.target, "draft": a.draft, "poor": a.poor or a.draft}
    loaded = {role: load_model_folder(folder) for role, folder in folders.items()}
    target, draft, poor = (loaded[role].model for role in ("target", "draft", "poor"))
    prompts = load_prompts(
        a.prompts,
        loaded["target"].tokenizer,
        count=a.count,
        max_tokens=32,
        data=loaded["target"].data,
    )
    console = Console(width=110)
    result: dict[str, Any] = {
        "device": device_name(),
        "models": {role: loaded[role].record.model_id for role in loaded},
        "prompts": len(prompts.lengths),
        "new_tokens": a.new_tokens,
    }
    if "rules" in parts:
        result |= _rules_part(console, a, loaded, prompts)
    if "pauses" in parts:
        result["pauses"] = {}
        for batch in _BATCHES:
            found = _pauses(target, poor, prompts, batch, a.new_tokens, a.repetitions)
            _print_pauses(console, found, batch)
            result["pauses"][f"{batch} rows"] = found
    if "budget" in parts:
        result["budget"] = _shared_budget(draft, target, prompts, a.new_tokens)
        _print_budget(console, result["budget"])
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
