"""One size of pair: pilots choose lookaheads and threads, then all contenders run in turn, several times."""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.decode import floor
from benchmarks.decode.contenders import Contender, ours, theirs
from benchmarks.decode.pairs import LADDER, Pair, acceptance, make_pair, trained_pair
from benchmarks.decode.peer import Transformers
from sdsl_jax.decoding import Model
from sdsl_jax.measurement.latency import Step, time_steps, timed
from sdsl_jax.models import count, prefill

BATCHES = (1, 8)  # the peer assists one row only
# Lookaheads tried at each batch. Several rows make a verify pass more expensive, so the choice is
# coarser there; each one takes a compilation.
LOOKAHEADS = {1: (1, 2, 3, 4, 5, 8), 8: (1, 2, 4, 8)}
# Both systems are timed at this lookahead besides their own best.
COMMON_LOOKAHEAD = 4


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
      prompt_tokens: Tokens of every prompt.
      new_tokens: Tokens that every row emits; no token stops a row.
      rounds: Number of turns of all contenders.
      acceptance: Σ min(p, q) that the pairs are made for.
      dtype: Number type of weights, cache and activations.
      qk_norm: Whether queries and keys are normalised.
      quick: Runs few tokens and turns, to check that everything works and not to measure.
    """

    prompt_tokens: int = 32
    new_tokens: int = 128
    rounds: int = 5
    acceptance: float = 0.6
    dtype: str = "float32"
    qk_norm: bool = False
    quick: bool = False


@dataclass
class Machine:
    """Bandwidth and arithmetic of the machine, measured in the same run."""

    bandwidth: dict[str, float]
    matmul_flops: float


def measure(
    size: str,
    options: Options,
    machine: Machine,
    peer: Transformers | None,
    device: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every number of one size, as a tree for JSON.

    Args:
      size: A key of `pairs.SIZES`, or `pairs.LADDER`.
      options: What to run.
      machine: Bandwidth and arithmetic of the machine.
      peer: Transformers in its process; None to leave it out.
      device: Torch's name of the device.
      say: Called with a line about each step.
    """
    dtype, began = jnp.dtype(options.dtype), time.perf_counter()
    lengths = dict(prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens)
    if size == LADDER:
        pair = trained_pair(**lengths, dtype=dtype)
    else:
        say(f"{size}: making a pair of acceptance {options.acceptance}")
        pair = make_pair(size, options.acceptance, **lengths, qk_norm=options.qk_norm, dtype=dtype)
    prompts = pair.prompts((options.rounds + 3, max(BATCHES), options.prompt_tokens), 1)
    result: dict[str, Any] = {
        "size": size,
        "draft": _describe(pair.draft),
        "target": _describe(pair.target),
        "noise": pair.noise,
        "calibrated_acceptance": pair.acceptance,
    }
    with tempfile.TemporaryDirectory() as folder:
        if peer is not None:
            result["peer"] = peer.load(pair.draft, pair.target, Path(folder), options.dtype, device)
            say(f"{size}: transformers runs {', '.join(result['peer']['classes'])}")
    contenders, result["pilot"] = _pilots(pair, peer, options, prompts, say)
    say(f"{size}: {options.rounds} turns of {len(contenders)} contenders")
    for contender in contenders:
        if not contender.first_seconds > 0:
            contender.warm(prompts[0])
        contender.runs.clear()
    lookaheads = {
        b: sorted({c.lookahead for c in contenders if c.batch == b and c.lookahead})
        for b in BATCHES
    }
    context = options.prompt_tokens + options.new_tokens // 2
    steps: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        for contender in contenders:
            contender.run(prompts[turn + 3], turn + 1)
        for name, seconds in _step_seconds(pair, lookaheads, context, options).items():
            steps.setdefault(name, []).append(seconds)
    result["steps"] = {name: statistics.median(values) for name, values in steps.items()}
    result["contenders"] = [contender.summary() for contender in contenders]
    result["acceptance"] = _acceptance(pair, contenders, options.prompt_tokens)
    rates = {
        name: floor.bandwidth(
            round(floor.bytes_read(model.config, batch=1, context=context, dtype=dtype)), dtype
        )
        for name, model in (("draft", pair.draft), ("target", pair.target))
    }
    result["bandwidth"] = rates
    result["checks"] = [
        _check(pair, contender, contenders, result["steps"], rates, machine, context, dtype)
        for contender in contenders
        if contender.system == "ours" and contender.new_tokens > 1
    ]
    result["benchmark_seconds"] = time.perf_counter() - began
    return result


def _describe(model: Model) -> dict[str, Any]:
    counts = count(model.config, 0)
    shape = {
        name: getattr(model.config, name)
        for name in ("layers", "width", "heads", "kv_heads", "head_dim", "hidden")
    }
    return {
        "nonembedding": counts.nonembedding,
        "total": counts.total,
        "vocabulary": model.config.vocab_size,
        **shape,
    }


def _pilots(
    pair: Pair,
    peer: Transformers | None,
    options: Options,
    prompts: np.ndarray,
    say: Callable[[str], None],
):
    """Contenders at each system's best lookahead and at the common one, and the numbers of the pilots.

    A lookahead is judged by the seconds of its rounds and by the tokens per round that follow from
    the survival of our own largest lookahead. Acceptance is a property of the pair and not of the
    system, and the luck of a short pilot should not decide.
    """
    tried = {b: (1, COMMON_LOOKAHEAD) if options.quick else LOOKAHEADS[b] for b in BATCHES}
    most = max(tried[max(BATCHES)])
    n = options.new_tokens
    pilot: dict[str, Any] = {}
    mine: dict[tuple[int, int], Contender] = {}
    for batch in BATCHES:
        for lookahead in tried[batch]:
            say(f"compiling and piloting ours, batch {batch}, lookahead {lookahead}")
            contender = mine[batch, lookahead] = ours(pair, batch, lookahead, n)
            contender.warm(prompts[0])
            for i in (1, 2)[: 1 if batch > 1 else 2]:
                contender.run(prompts[i], i)
    survival = mine[max(BATCHES), most].survival
    expected = {lookahead: 1 + sum(survival[:lookahead]) for lookahead in range(1, most + 1)}

    def best(name: str, piloted: dict[int, Contender]) -> int:
        cost = {g: c.round_seconds / expected[g] for g, c in piloted.items()}
        pilot[name] = {
            str(g): {"ms_per_round": 1e3 * c.round_seconds, "ms_per_token_expected": 1e3 * cost[g]}
            for g, c in piloted.items()
        }
        chosen = min(cost, key=lambda g: cost[g])
        pilot[name]["best"] = chosen
        return chosen

    contenders: list[Contender] = []
    for batch in BATCHES:
        piloted = {g: c for (b, g), c in mine.items() if b == batch}
        chosen = {best(f"ours, batch {batch}", piloted), COMMON_LOOKAHEAD}
        contenders += [
            ours(pair, batch, 0, 1),
            ours(pair, batch, 0, n),
            *(piloted[g] for g in sorted(chosen)),
        ]
    pilot["survival"] = survival
    pilot["tokens_per_round_expected"] = {str(g): e for g, e in expected.items()}
    if peer is not None:
        say("piloting transformers")
        short = max(8, n // 4)

        def fastest(batch: int, lookahead: int) -> int:
            """The number of torch threads with the shortest rounds: small models lose by sharing their work."""
            found = []
            for threads in sorted({1, os.cpu_count() or 1}):
                contender = theirs(peer, batch, lookahead, short, threads)
                contender.warm(prompts[0])
                contender.run(prompts[1], 1)
                found.append((contender.round_seconds, threads))
            name = f"transformers, batch {batch}, {'assisted' if lookahead else 'generate'}"
            pilot[f"{name}: ms per round by threads"] = {str(t): 1e3 * s for s, t in found}
            return min(found)[1]

        threads = fastest(1, COMMON_LOOKAHEAD)
        piloted = {}
        for lookahead in tried[1]:
            piloted[lookahead] = theirs(peer, 1, lookahead, short, threads)
            for i in (1, 2):
                piloted[lookahead].run(prompts[i], i)
        for g in sorted({best("transformers, batch 1", piloted), COMMON_LOOKAHEAD}):
            contenders.append(theirs(peer, 1, g, n, threads))
        for batch in BATCHES:
            threads = fastest(batch, 0)
            contenders += [theirs(peer, batch, 0, k, threads) for k in (1, n)]
    # Ours and theirs in turn, so that drift of the machine meets both.
    ranked = sorted(contenders, key=lambda c: (c.batch, c.lookahead, c.new_tokens))
    return ranked, pilot


def _step_seconds(
    pair: Pair, lookaheads: dict[int, list[int]], context: int, options: Options
) -> dict[str, float]:
    """Seconds of every kind of step and of both prefills, for each batch."""
    seconds: dict[str, float] = {}
    for batch, widths in lookaheads.items():
        # The first draft step of a round feeds two tokens.
        steps = {
            "first draft": Step(pair.draft, 2, context, batch),
            "draft": Step(pair.draft, 1, context, batch),
            "target": Step(pair.target, 1, context, batch),
        }
        steps |= {f"verify {g}": Step(pair.target, g + 1, context, batch) for g in widths}
        medians = time_steps(steps, repetitions=1, confidence=0.95)
        seconds |= {f"{name}, batch {batch}": median.estimate for name, median in medians.items()}
        tokens = jnp.zeros((batch, options.prompt_tokens), jnp.int32)
        capacity = options.prompt_tokens + options.new_tokens
        for name, model in (("draft", pair.draft), ("target", pair.target)):
            fill = functools.partial(prefill, model.config, model.params, tokens, capacity=capacity)
            times = [timed(fill)[0] for _ in range(4)]
            seconds[f"{name} prefill, batch {batch}"] = statistics.median(times[1:])
    return seconds


def _acceptance(pair: Pair, contenders: list[Contender], prompt_tokens: int) -> float:
    """Σ min(p, q) over what the target drew in the timed autoregressive runs of the largest batch."""
    largest = next(
        c
        for c in contenders
        if c.system == "ours" and c.batch == max(BATCHES) and not c.lookahead and c.new_tokens > 1
    )
    tokens = np.concatenate([run.output for run in largest.runs if run.output is not None])
    parts = [
        acceptance(pair.draft, pair.target, part, prompt_tokens)
        for part in np.split(tokens, len(largest.runs))
    ]
    return statistics.fmean(parts)


def _check(
    pair: Pair,
    contender: Contender,
    contenders: list[Contender],
    steps: dict[str, float],
    rates: dict[str, dict[str, float]],
    machine: Machine,
    context: float,
    dtype: Any,
) -> dict[str, Any]:
    """One of our decoders against the floor and, with a draft, against the cost model."""
    batch, g = contender.batch, contender.lookahead

    def least(name: str, model: Model, width: int) -> float:
        flops, rate = machine.matmul_flops, rates[name]["best"]
        return floor.floor(
            model.config,
            batch=batch,
            width=width,
            context=context,
            rate=rate,
            flops=flops,
            dtype=dtype,
        ).seconds

    alone = {
        c.new_tokens > 1: c
        for c in contenders
        if c.system == "ours" and c.batch == batch and not c.lookahead
    }
    n = alone[True].new_tokens
    # The difference of a long and a short run has neither prefill nor the overhead of a call.
    step = (alone[True].seconds - alone[False].seconds) / (n - 1)
    check: dict[str, Any] = {"batch": batch, "lookahead": g}
    if not g:
        check |= {"step_seconds": step, "floor_seconds": least("target", pair.target, 1)}
        check["ratio_to_floor"] = step / check["floor_seconds"]
        check["bytes_read"] = floor.bytes_read(
            pair.target.config, batch=batch, context=context, dtype=dtype
        )
        check["time_to_first_token_seconds"] = alone[False].seconds
        check["prefill_seconds"] = steps[f"target prefill, batch {batch}"]
        return check
    once = alone[False].seconds - step + steps[f"draft prefill, batch {batch}"]
    round_seconds = contender.per_run(lambda run: (run.seconds - once) / run.rounds)
    check |= {"step_seconds": round_seconds}
    check["floor_seconds"] = g * least("draft", pair.draft, 1) + least("target", pair.target, g + 1)
    check["ratio_to_floor"] = round_seconds / check["floor_seconds"]
    emitted = contender.tokens_per_round
    names = ("first draft", "draft", f"verify {g}", "target")
    first, draft, verify, target = (steps[f"{name}, batch {batch}"] for name in names)
    model_round = first + (g - 1) * draft + verify
    check["measured_speedup"] = emitted * step / round_seconds
    check["predicted_speedup"] = emitted * target / model_round
    check["relative_difference"] = check["predicted_speedup"] / check["measured_speedup"] - 1
    check["model_round_seconds"] = model_round
    check["speedup_with_prefill"] = contender.tokens_per_second / alone[True].tokens_per_second
    return check
