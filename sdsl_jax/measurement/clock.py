"""Decoders on the clock: tokens per second of speculative and plain decoding, interleaved in one
process.

What is timed is the decoding loop alone, over caches that hold the prompts already, and only while
every row is decoding: the last rounds of a lockstep batch, in which rows that have stopped wait for
others, say something about prompts and nothing about decoders. Several prompts are decoded one
after another in one program, so that calling it from Python does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sdsl_jax.decoding import FixedLookahead, Model, Sampling, loop
from sdsl_jax.decoding.decode import require_finite
from sdsl_jax.decoding.drafters import ModelDrafter
from sdsl_jax.decoding.noise import row_keys
from sdsl_jax.errors import require
from sdsl_jax.models import KVCache, prefill
from sdsl_jax.progress import Progress, Silent

# Compilations that run side by side: they take most of the time, and a core each.
_COMPILERS = 2


class Entrant(NamedTuple):
    """A decoder that takes part.

    Attributes:
      target: whose text is decoded.
      draft: proposes tokens; None for plain decoding.
      lookahead: drafts per round, γ; 0 for plain decoding.
      batch: rows that are decoded together.
      prompt_tokens: of each prompt that it sees, from its beginning; all if None.
    """

    target: Model
    draft: Model | None = None
    lookahead: int = 0
    batch: int = 1
    prompt_tokens: int | None = None


class Run(NamedTuple):
    """What an entrant did in each repetition.

    Attributes:
      seconds: of all rounds together.
      rounds: of the batch; steps, for plain decoding.
      tokens: emitted by all rows.
    """

    seconds: Float[np.ndarray, " R"]
    rounds: Int[np.ndarray, " R"]
    tokens: Int[np.ndarray, " R"]

    @property
    def tokens_per_second(self) -> Float[np.ndarray, " R"]:
        """Of all rows together."""
        return self.tokens / self.seconds

    @property
    def seconds_per_round(self) -> Float[np.ndarray, " R"]:
        """Of the batch."""
        return self.seconds / self.rounds


def cache_slots(entrant: Entrant, prompt_tokens: int, new_tokens: int) -> int:
    """Cache positions that every pass of an entrant reads: all that the cache has room for, empty ones included."""
    return prompt_tokens + new_tokens + (entrant.lookahead + 1 if entrant.draft is not None else 0)


def time_decoders(
    entrants: Sequence[Entrant],
    prompts: Int[np.ndarray, "R P T"],
    *,
    new_tokens: int,
    sampling: Sampling,
    seed: int,
    progress: Progress | None = None,
) -> list[Run]:
    """Times every entrant in every repetition, in an order that is drawn anew each time.

    Args:
      entrants: the decoders.
      prompts: ids; in each repetition every entrant decodes the P prompts, in groups as large as
        its batch.
      new_tokens: room for each row's continuation; speculative decoding ends where a round might
        not fit any more.
      sampling: of drafts and targets.
      seed: of samples and of the order.
      progress: told after every compilation and every run.

    Raises:
      SdslError: the prompts cannot be divided into batches, there is no room for a single round, or
        logits are not finite.
    """
    repetitions, count, _ = prompts.shape
    progress = progress or Silent()
    for entrant in entrants:
        require(
            count % entrant.batch == 0,
            f"{count} prompts cannot be divided into batches of {entrant.batch}; the number must be a multiple of it.",
        )
        require(
            entrant.lookahead + 1 < new_tokens,
            f"a round with lookahead {entrant.lookahead} does not fit into {new_tokens} new tokens; at least "
            f"{entrant.lookahead + 2} are needed.",
        )

    def ready(entrant: Entrant) -> Callable[[int], tuple[float, int, int]]:
        made = _prepare(
            entrant, prompts[:, :, : entrant.prompt_tokens], new_tokens, sampling.check(), seed
        )
        made(0)  # warms up
        progress.advance(1, f"γ = {entrant.lookahead}, batch {entrant.batch}")
        return made

    # An entrant that takes part several times is compiled once.
    names = [(id(e.target), id(e.draft), *e[2:]) for e in entrants]
    each = dict(zip(names, entrants))
    with ThreadPoolExecutor(_COMPILERS) as pool:
        made = dict(zip(each, pool.map(ready, each.values())))
    runners = [made[name] for name in names]
    random = np.random.default_rng(seed)
    found = np.zeros((len(entrants), repetitions, 3))
    for repetition in range(repetitions):
        for number in random.permutation(len(entrants)):
            found[number, repetition] = runners[number](repetition)
        progress.advance(
            len(entrants) / repetitions, f"repetition {repetition + 1} of {repetitions}"
        )
    return [Run(each[:, 0], each[:, 1].astype(int), each[:, 2].astype(int)) for each in found]


def _grown(cache: KVCache, slots: int) -> KVCache:
    """A cache with so many more, empty slots, on the host."""
    keys = tuple(np.pad(np.asarray(k), ((0, 0), (0, 0), (0, slots))) for k in cache.keys)
    values = tuple(np.pad(np.asarray(v), ((0, 0), (0, slots), (0, 0))) for v in cache.values)
    return KVCache(keys, values)  # type: ignore[arg-type]


def _prepare(
    entrant: Entrant, prompts: np.ndarray, new_tokens: int, sampling: Sampling, seed: int
) -> Callable[[int], tuple[float, int, int]]:
    """Compiles an entrant's program; what is returned runs it on one repetition's prompts and gives seconds, rounds, tokens."""
    target, draft, gamma, batch, _ = entrant
    _, count, width = prompts.shape
    groups, buffer = count // batch, width + new_tokens
    capacity = cache_slots(entrant, width, new_tokens)
    models = [target] if draft is None else [target, draft]

    def one(params: list[Any], group: tuple[loop.Requests, list[Any]]) -> tuple[Any, Any]:
        requests, caches = group
        if draft is None:
            done = loop.autoregressive_loop(
                target.config, params[0], requests, sampling, caches[0], buffer=buffer
            )
        else:
            done = loop.speculative_loop(
                ModelDrafter(draft.config),
                target.config,
                params[1],
                params[0],
                requests,
                sampling,
                FixedLookahead(gamma),
                caches[1],
                caches[0],
                verification="token",
                max_lookahead=gamma,
                buffer=buffer,
                max_rounds=new_tokens,
                keep_distributions=False,
                whole_rounds=True,
            )
        # The tokens come out as well: nothing that decoding is for may be optimised away.
        return done.tokens, (
            done.batch_rounds,
            (done.lengths - done.prompt_lengths).sum(),
            done.finite,
        )

    def all_groups(params: list[Any], requests: loop.Requests, caches: list[Any]) -> Any:
        return jax.lax.map(lambda group: one(params, group), (requests, caches))

    def arguments(repetition: int) -> tuple[list[Any], loop.Requests, list[Any]]:
        ids = jnp.asarray(prompts[repetition], jnp.int32)
        # Grown on the host: a prefill of every capacity would be a program of its own.
        caches = [
            _grown(prefill(m.config, m.params, ids, capacity=width), capacity - width)
            for m in models
        ]
        keys = jax.vmap(lambda s: row_keys(s, np.arange(batch)))(
            seed + repetition * groups + jnp.arange(groups)
        )
        lengths = jnp.full((groups, batch), width, jnp.int32)
        requests = loop.Requests(
            ids.reshape(groups, batch, width),
            lengths,
            lengths + new_tokens,
            keys,
            jnp.zeros((groups, 0), jnp.int32),
        )
        grouped = jax.tree.map(
            lambda x: jnp.asarray(x.reshape(groups, x.shape[0] // groups, *x.shape[1:])), caches
        )
        return [m.params for m in models], requests, grouped

    with jax.default_matmul_precision("highest"):
        program = jax.jit(all_groups).lower(*arguments(0)).compile()

    def run(repetition: int) -> tuple[float, int, int]:
        with jax.default_matmul_precision("highest"):
            given = jax.block_until_ready(arguments(repetition))
        began = time.perf_counter()
        tokens, (rounds, emitted, finite) = program(*given)
        jax.block_until_ready(tokens)
        seconds = time.perf_counter() - began
        require_finite(finite)
        return seconds, int(rounds.sum()), int(emitted.sum())

    return run
