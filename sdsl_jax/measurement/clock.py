"""Tokens per second of speculative and plain decoding, interleaved in one process.

Only the decoding loop is timed, over caches that already hold the prompts, and only while every row
is decoding: the last rounds of a lockstep batch, in which rows that have stopped wait for others,
depend on the prompts and not on the decoder. One program decodes several prompts one after another,
so the cost of calling it from Python does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sdsl_jax.decoding import (
    EarlyExit,
    FixedLookahead,
    Head,
    HybridDraft,
    Model,
    NgramDraft,
    Sampling,
    loop,
)
from sdsl_jax.decoding.decode import begin, drafter_of, require_finite
from sdsl_jax.decoding.hybrid_drafter import bound
from sdsl_jax.decoding.noise import row_keys
from sdsl_jax.errors import require
from sdsl_jax.measurement.latency import interleave, side_by_side, timed
from sdsl_jax.models import KVCache, prefill
from sdsl_jax.progress import Progress, Silent


class Entrant(NamedTuple):
    """A decoder to time.

    Attributes:
      target: The model whose text is decoded.
      draft: What proposes tokens: a model, a head, an early exit that shares its blocks with the
        target, or n-grams, alone or with a model or a head to fall back on; None for plain decoding.
      lookahead: Drafts per round, γ; 0 for plain decoding.
      batch: Rows decoded together.
      prompt_tokens: First tokens of each prompt that it sees; all if None.
    """

    target: Model
    draft: Model | Head | EarlyExit | NgramDraft | HybridDraft | None = None
    lookahead: int = 0
    batch: int = 1
    prompt_tokens: int | None = None


class Run(NamedTuple):
    """The work of an entrant in each repetition.

    Attributes:
      seconds: Seconds of all rounds together.
      rounds: Rounds of the batch; steps, for plain decoding.
      tokens: Tokens emitted by all rows.
    """

    seconds: Float[np.ndarray, " R"]
    rounds: Int[np.ndarray, " R"]
    tokens: Int[np.ndarray, " R"]

    @property
    def tokens_per_second(self) -> Float[np.ndarray, " R"]:
        """Tokens per second of all rows together."""
        return self.tokens / self.seconds

    @property
    def seconds_per_round(self) -> Float[np.ndarray, " R"]:
        """Seconds per round of the batch."""
        return self.seconds / self.rounds


def cache_slots(entrant: Entrant, prompt_tokens: int, new_tokens: int) -> int:
    """Cache positions that every pass of an entrant reads, empty ones included."""
    return prompt_tokens + new_tokens + (entrant.lookahead + 1 if entrant.draft is not None else 0)


class Decoders:
    """Entrants, compiled once for groups of prompts of one shape, to be timed at any sampling."""

    def __init__(
        self,
        entrants: Sequence[Entrant],
        example: Int[np.ndarray, "P T"],
        *,
        new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Compiles every entrant, and runs it once.

        Args:
          entrants: The decoders.
          example: Token ids of the prompts of a repetition.
          new_tokens: Room for each row's continuation. Speculative decoding ends where a round might
            no longer fit.
          sampling: Sampling of that run; later ones set the same filters, to any values.
          seed: Seed of its samples.
          progress: Reports progress after every compilation.

        Raises:
          SdslError: the prompts cannot be divided into batches, there is no room for one round, or
            logits are not finite.
        """
        self.progress = progress or Silent()
        count = len(example)
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

        def prepare(entrant: Entrant) -> _Program:
            run = _compiled(entrant, example, new_tokens, sampling.check())
            run(example, sampling.check(), seed)  # warm-up
            self.progress.advance(1, f"γ = {entrant.lookahead}, batch {entrant.batch}")
            return run

        # Equal entrants share a program.
        keys = [(id(e.target), id(e.draft), *e[2:]) for e in entrants]
        distinct = dict(zip(keys, entrants))
        programs = dict(zip(distinct, side_by_side(prepare, distinct.values())))
        self._programs = [programs[key] for key in keys]

    def time(
        self,
        prompts: Int[np.ndarray, "R P T"],
        *,
        sampling: Sampling,
        seed: int,
        which: Sequence[int] | None = None,
    ) -> list[Run]:
        """Times entrants in every repetition, in an order drawn anew each time.

        Args:
          prompts: Token ids. In each repetition every entrant decodes the P prompts, in groups as
            large as its batch.
          sampling: Sampling of drafts and targets.
          seed: Seed of samples and of the order.
          which: Numbers of the entrants that take part; all if None.

        Raises:
          SdslError: Logits are not finite.
        """
        repetitions, checked = len(prompts), sampling.check()
        chosen = self._programs if which is None else [self._programs[i] for i in which]

        def after(run: int, repetition: int) -> None:
            self.progress.advance(1 / repetitions, f"repetition {repetition + 1} of {repetitions}")

        runs = [
            lambda repetition, run=run: run(
                prompts[repetition], checked, seed + repetition * run.groups
            )
            for run in chosen
        ]
        random = np.random.default_rng(seed)
        results = interleave(runs, repetitions, random, after)
        return [
            Run(columns[:, 0], columns[:, 1].astype(int), columns[:, 2].astype(int))
            for columns in np.asarray(results, float)
        ]


def time_decoders(
    entrants: Sequence[Entrant],
    prompts: Int[np.ndarray, "R P T"],
    *,
    new_tokens: int,
    sampling: Sampling,
    seed: int,
    progress: Progress | None = None,
) -> list[Run]:
    """Compiles and times every entrant; see `Decoders`, whose arguments these are."""
    decoders = Decoders(
        entrants, prompts[0], new_tokens=new_tokens, sampling=sampling, seed=seed, progress=progress
    )
    return decoders.time(prompts, sampling=sampling, seed=seed)


def _grown(cache: KVCache, slots: int) -> KVCache:
    """The cache with this many empty slots added, on the host."""
    keys = tuple(np.pad(np.asarray(k), ((0, 0), (0, 0), (0, slots))) for k in cache.keys)
    values = tuple(np.pad(np.asarray(v), ((0, 0), (0, slots), (0, 0))) for v in cache.values)
    return KVCache(keys, values)  # type: ignore[arg-type]


class _Program(NamedTuple):
    """A compiled entrant: called with prompts, sampling and seed, it gives seconds, rounds and tokens.

    Attributes:
      groups: Batches that the prompts make.
      run: The call.
    """

    groups: int
    run: Callable[[np.ndarray, Sampling, int], tuple[float, int, int]]

    def __call__(
        self, prompts: np.ndarray, sampling: Sampling, seed: int
    ) -> tuple[float, int, int]:
        return self.run(prompts, sampling, seed)


def _compiled(
    entrant: Entrant, example: np.ndarray, new_tokens: int, sampling: Sampling
) -> _Program:
    """Compiles an entrant's program for prompts of one shape."""
    target, draft, gamma, batch, seen = entrant
    draft = bound(draft, target)
    count, width = example[:, :seen].shape
    groups, buffer = count // batch, width + new_tokens
    capacity = cache_slots(entrant, width, new_tokens)
    drafter = None if draft is None else drafter_of(draft, target, gamma)
    # N-grams have no parameters.
    weights = [target.params, None if draft is None else getattr(draft, "params", None)]

    def one(
        params: list[Any], sampling: Sampling, group: tuple[loop.Requests, list[Any]]
    ) -> tuple[Any, Any]:
        requests, caches = group
        if drafter is None:
            done = loop.autoregressive_loop(
                target.config, params[0], requests, sampling, caches[0], buffer=buffer
            )
        else:
            done = loop.speculative_loop(
                drafter,
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
        # The tokens are returned so that the compiler cannot leave any work out.
        return done.tokens, (
            done.batch_rounds,
            (done.lengths - done.prompt_lengths).sum(),
            done.finite,
        )

    def all_groups(
        params: list[Any], sampling: Sampling, requests: loop.Requests, caches: list[Any]
    ) -> Any:
        return jax.lax.map(lambda group: one(params, sampling, group), (requests, caches))

    def arguments(prompts: np.ndarray, sampling: Sampling, seed: int) -> tuple[Any, ...]:
        ids = jnp.asarray(prompts[:, :seen], jnp.int32)
        caches: list[Any]
        if isinstance(draft, Head | EarlyExit | NgramDraft | HybridDraft):
            assert drafter is not None
            state, cache = begin(drafter, weights[1], target, ids, capacity)
            caches = [cache, state]
        else:
            # Grown on the host: prefill would need a program for every capacity.
            caches = [
                _grown(prefill(m.config, m.params, ids, capacity=width), capacity - width)
                for m in ([target] if draft is None else [target, draft])
            ]
        keys = jax.vmap(lambda s: row_keys(s, np.arange(batch)))(seed + jnp.arange(groups))
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
        return weights, sampling, requests, grouped

    with jax.default_matmul_precision("highest"):
        program = jax.jit(all_groups).lower(*arguments(example, sampling, 0)).compile()

    def run(prompts: np.ndarray, sampling: Sampling, seed: int) -> tuple[float, int, int]:
        with jax.default_matmul_precision("highest"):
            inputs = jax.block_until_ready(arguments(prompts, sampling, seed))
        seconds, (_, (rounds, emitted, finite)) = timed(lambda: program(*inputs))
        require_finite(finite)
        return seconds, int(rounds.sum()), int(emitted.sum())

    return _Program(groups, run)
