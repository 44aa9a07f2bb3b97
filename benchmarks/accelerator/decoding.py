"""Speculative and plain decoding beside `generate` of transformers, at batch 1 in bfloat16.

Pair, contenders and peer are those of `benchmarks.decode`: the same random weights in both systems,
acceptance arranged, all contenders in turn. Seconds include reading the prompt.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.busiest import busiest
from benchmarks.accelerator.parts import Measured, Task, progress
from benchmarks.decode.contenders import Contender, ours, theirs
from benchmarks.decode.pairs import Pair, make_pair
from benchmarks.decode.peer import Transformers, start
from sdsl_jax.decoding import Sampling
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.latency import side_by_side

GOAL = 5.0
_DTYPE, _ACCEPTANCE, _PROMPT_TOKENS = "bfloat16", 0.6, 32
# Threads of torch on the host, where `generate` is bound by launching kernels from one of them.
_THREADS = 1
GREEDY = 0.0


def _named(contender: Contender, temperature: float) -> Contender:
    contender.details["temperature"] = temperature
    return contender


def our_contenders(pair: Pair, lookaheads: tuple[int, ...], new_tokens: int) -> list[Contender]:
    """Plain and speculative decoding, sampled and greedy; greedy ones share the programs."""
    return [
        _named(ours(pair, 1, lookahead, new_tokens, Sampling(temperature)), temperature)
        for temperature in (1.0, GREEDY)
        for lookahead in (0, *lookaheads)
    ]


def their_contenders(peer: Transformers, lookahead: int, new_tokens: int) -> list[Contender]:
    """`generate`, sampled and greedy, and assisted generation."""
    settings = ((0, 1.0), (0, GREEDY), (lookahead, 1.0))
    return [
        _named(theirs(peer, 1, drafts, new_tokens, _THREADS, temperature), temperature)
        for drafts, temperature in settings
    ]


def _fastest(contenders: list[Contender], system: str, speculative: bool | None) -> Contender:
    """The sampling contender with the most tokens per second; None: speculative or not."""
    fits = [
        c
        for c in contenders
        if c.system == system
        and c.details["temperature"]
        and (speculative is None or bool(c.lookahead) == speculative)
    ]
    return max(fits, key=lambda c: c.tokens_per_second)


def _greedy_agreement(contenders: list[Contender]) -> float:
    """Share of tokens that greedy speculative decoding has in common with greedy plain decoding.

    In bfloat16 passes of different widths round differently, so a text parts at a near-tie, and all
    of it that follows counts as different.
    """
    greedy = [c for c in contenders if c.system == "ours" and not c.details["temperature"]]
    plain = next(c for c in greedy if not c.lookahead)
    same = [
        np.asarray(a.output)[:, _PROMPT_TOKENS:] == np.asarray(b.output)[:, _PROMPT_TOKENS:]
        for c in greedy
        if c.lookahead
        for a, b in zip(c.runs, plain.runs)
    ]
    return float(np.mean(same))


def _ratios(contenders: list[Contender]) -> dict[str, float]:
    """Tokens per second of our decoders over transformers' and over our plain one."""
    speculative, plain = (_fastest(contenders, "ours", s) for s in (True, False))
    found = {
        "speculative_over_plain": speculative.tokens_per_second / plain.tokens_per_second,
    }
    if any(c.system == "transformers" for c in contenders):
        generate = _fastest(contenders, "transformers", False).tokens_per_second
        fastest = _fastest(contenders, "transformers", None).tokens_per_second
        found |= {
            "speculative_over_generate": speculative.tokens_per_second / generate,
            "speculative_over_their_fastest": speculative.tokens_per_second / fastest,
            "plain_over_generate": plain.tokens_per_second / generate,
        }
    return found


def _race(
    contenders: list[Contender], prompts: np.ndarray, task: Task, result: dict[str, Any]
) -> None:
    """Runs all contenders in turn, as often as there is time for, and keeps each turn."""
    for turn, rows in enumerate(prompts):
        began = time.monotonic()
        for contender in contenders:
            contender.run(rows, turn + 1)
        result["contenders"] = [contender.summary() for contender in contenders]
        result["ratios"] = _ratios(contenders)
        result["greedy_tokens_in_common"] = _greedy_agreement(contenders)
        task.keep(result)
        if task.seconds_left < 1.2 * (time.monotonic() - began):
            break


def measure(task: Task) -> Measured:
    """Makes the pair, warms every contender up, and races."""
    size, new_tokens, turns = ("1m", 16, 1) if task.small else ("300m", 128, 3)
    lookaheads = (2,) if task.small else (2, 4)
    result: dict[str, Any] = {"size": size, "new_tokens": new_tokens}
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as folder:
        starting = pool.submit(start, progress)  # importing torch takes as long as compiling
        progress(f"a pair of acceptance {_ACCEPTANCE}")
        pair = make_pair(
            size, _ACCEPTANCE, prompt_tokens=_PROMPT_TOKENS, new_tokens=new_tokens,
            dtype=jnp.dtype(_DTYPE),
        )  # fmt: skip
        result |= {"noise": pair.noise, "acceptance": pair.acceptance}
        task.keep(result)
        prompts = pair.prompts((turns + 1, 1, _PROMPT_TOKENS), 1)
        contenders = our_contenders(pair, lookaheads, new_tokens)
        progress(f"compiling {len(contenders)} decoders")
        # Those that sample compile side by side; the greedy ones find their programs made.
        sampled = [c for c in contenders if c.details["temperature"]]
        list(side_by_side(lambda contender: contender.warm(prompts[0]), sampled))
        for contender in contenders:
            if not contender.details["temperature"]:
                contender.warm(prompts[0])
        peer, result["peer"] = None, "without transformers"
        try:
            peer, device, result["peer"] = starting.result()
            if peer is not None:
                progress(f"{result['peer']} on {device}")
                result["logits"] = peer.load(pair.draft, pair.target, Path(folder), _DTYPE, device)
                others = their_contenders(peer, max(lookaheads), new_tokens)
                for contender in others:
                    contender.warm(prompts[0])
                contenders += others
        except SdslError as error:
            result["peer"] = f"without transformers ({error})"
        try:
            progress(f"{turns} turns of {len(contenders)} contenders")
            _race(contenders, prompts[1:], task, result)
        finally:
            if peer is not None:
                peer.close()

    def extras() -> dict[str, Any]:
        profiled = {"plain_profile": 0, "speculative_profile": max(lookaheads)}
        calls = {
            name: next(c for c in contenders if c.lookahead == lookahead).call
            for name, lookahead in profiled.items()
        }
        return {
            name: busiest(functools.partial(call, prompts[0], 0)) for name, call in calls.items()
        }

    speculative = _fastest(contenders, "ours", True)
    ratios = result["ratios"]
    value = ratios.get("speculative_over_their_fastest", math.nan)
    against = f"{value:.1f} times transformers" if value == value else result["peer"]
    headline = (
        f"{speculative.tokens_per_second:,.0f} tokens/s at γ = {speculative.lookahead}, "
        f"{ratios['speculative_over_plain']:.2f} times plain, {against}"
    )
    return Measured(headline, value, GOAL, result, extras=extras)
