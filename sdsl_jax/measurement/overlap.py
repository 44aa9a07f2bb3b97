"""Exact acceptance of every pair, with each model scored once on shared contexts: α = E Σ_v min(p_v,
q_v) (2211.17192).

α is computed at any number of samplings. The entropy of each model is that at temperature 1 without
filters. Suffixes: B contexts of a chunk, T compared positions, S samplings, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding import Model, Sampling, overlap, probabilities
from sdsl_jax.decoding.decode import broken_logits, require_positions
from sdsl_jax.decoding.sampling import finite_logits
from sdsl_jax.errors import require
from sdsl_jax.measurement.replay import drawn_acceptance
from sdsl_jax.models import ModelConfig, Params, forward, outputs
from sdsl_jax.models.transformer import readout
from sdsl_jax.statistics import Interval, ratio_interval

# Largest number of contexts scored at a time: more would not be faster, and progress would be
# reported less often.
_MOST_ROWS = 32


@dataclass(frozen=True)
class PairOverlap:
    """Sums over the compared positions of each context.

    Attributes:
      acceptance: Σ_v min(p_v, q_v) at each sampling.
      positions: Number of positions of each context.
      by_position: Σ_v min(p_v, q_v) at every position, 0 where it is not compared; None unless it was
        asked for.
      reached: Σ_v p_v over the ids that a truncated draft can give; None of other drafts.
    """

    acceptance: Float[np.ndarray, "S contexts"]
    positions: Int[np.ndarray, " contexts"]
    by_position: Float[np.ndarray, "S contexts T"] | None = None
    reached: Float[np.ndarray, "S contexts"] | None = None

    def mean(self, confidence: float, sampling: int = 0) -> Interval:
        """α at one of the samplings: the mean over all positions, with contexts as clusters."""
        return ratio_interval(self.acceptance[sampling], self.positions, confidence)

    def bound(self, sampling: int = 0) -> float:
        """p(K), which α cannot exceed: the target's mean probability of the K ids that the draft can
        give; 1 where it can give all."""
        if self.reached is None:
            return 1.0
        return float(self.reached[sampling].sum() / self.positions.sum())


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model on the contexts.

    Attributes:
      entropy: Sum of its entropy over the compared positions of each context, nats.
      log_probs: Log-probability at each sampling of the token that followed each position; −∞ where
        the sampling rules it out, and without meaning at positions that are not compared. None if no
        tokens were given.
      positions: Number of positions of each context.
    """

    entropy: Float[np.ndarray, " contexts"]
    log_probs: Float[np.ndarray, "S contexts T"] | None
    positions: Int[np.ndarray, " contexts"]

    def mean_entropy(self, confidence: float) -> Interval:
        """Mean entropy over all positions, with contexts as clusters."""
        return ratio_interval(self.entropy, self.positions, confidence)


class Overlaps(NamedTuple):
    """Results of every pair by (draft, target), and of every model by its name."""

    pairs: dict[tuple[str, str], PairOverlap]
    drafts: dict[str, ModelScores]
    targets: dict[str, ModelScores]

    def drawn_acceptance(self, draft: str, target: str) -> Float[np.ndarray, "contexts T"]:
        """`drawn_acceptance` of the tokens that followed, at the first sampling."""
        p, q = self.targets[target].log_probs, self.drafts[draft].log_probs
        assert p is not None
        assert q is not None
        return drawn_acceptance(p[0], q[0])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All sums as plain arrays by name, which `from_arrays` reads."""
        rows = [*self.pairs.items(), *((("", name), one) for name, one in self.drafts.items())]
        rows += [((name, ""), one) for name, one in self.targets.items()]
        return {
            "\t".join((*names, field)): value
            for names, one in rows
            for field, value in vars(one).items()
            if value is not None
        }

    @classmethod
    def from_arrays(cls, *parts: Mapping[str, np.ndarray]) -> Overlaps:
        """The results on the contexts of several parts, one after another, from their arrays."""
        fields: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for key in parts[0]:
            draft, target, field = key.split("\t")
            axis = 0 if field in ("positions", "entropy") else 1
            whole = np.concatenate([part[key] for part in parts], axis)
            fields.setdefault((draft, target), {})[field] = whole
        none: dict[str, Any] = {"log_probs": None}
        return cls(
            {pair: PairOverlap(**each) for pair, each in fields.items() if all(pair)},
            {name: ModelScores(**(none | each)) for (of, name), each in fields.items() if not of},
            {name: ModelScores(**(none | each)) for (name, of), each in fields.items() if not of},
        )


class _Scored(NamedTuple):
    """One model on a part of one chunk: its probabilities at each sampling, its entropy, and the
    log-probabilities of the following tokens.

    `broken` counts compared positions whose logits are not finite.
    """

    probs: tuple[Float[Array, "B T V"], ...]
    entropy: Float[Array, " B"]
    following: Float[Array, "S B T"] | None
    broken: Int[Array, ""] | None = None


@functools.partial(jax.jit, static_argnames=("model", "first"))
def _score(
    params: Params,
    tokens: Int[Array, "B L"],
    stream: Float[Array, "B T D"] | None,
    following: Int[Array, "B T"] | None,
    counts: Bool[Array, "B T"],
    samplings: tuple[Sampling, ...],
    *,
    model: ModelConfig,
    first: int,
) -> _Scored:
    """Scores the positions from `first` on, or those whose residual stream is given."""
    with jax.default_matmul_precision("highest"):
        logits = (
            forward(model, params, tokens)[0][:, first:]
            if stream is None
            else readout(model, params, stream)
        ).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    plain = jnp.exp(log_probs)
    entropy = -jnp.where(plain > 0, plain * log_probs, 0.0).sum(axis=-1)
    probs = tuple(probabilities(logits, sampling) for sampling in samplings)
    if following is not None:
        chosen = [
            jnp.take_along_axis(each, following[..., None], axis=-1)[..., 0] for each in probs
        ]
        following = jnp.log(jnp.stack(chosen))
    broken = (~finite_logits(logits) & counts).sum()
    return _Scored(probs, (entropy * counts).sum(axis=-1), following, broken)


def reached(p: Float[Array, "... V"], ids: tuple[int, ...]) -> Float[Array, ...]:
    """Σ p_v over some ids."""
    return p[..., np.asarray(ids)].sum(axis=-1)


@functools.partial(jax.jit, static_argnames="ids")
def _reached(
    p: _Scored, counts: Bool[Array, "B T"], *, ids: tuple[int, ...]
) -> Float[Array, "S B"]:
    each = jnp.stack([reached(probs, ids) for probs in p.probs])
    return jnp.where(counts[None], each, 0).sum(axis=-1)


@functools.partial(jax.jit, static_argnames="model")
def _stream(
    params: Params, tokens: Int[Array, "B L"], *, model: ModelConfig
) -> Float[Array, "B L D"] | None:
    """The residual stream after the last block, from which logits are read."""
    with jax.default_matmul_precision("highest"):
        return outputs(model, params, tokens, taps=(model.layers,)).features


@functools.partial(jax.jit, static_argnames="by_position")
def _compare(
    p: _Scored, q: _Scored, counts: Bool[Array, "B T"], *, by_position: bool
) -> tuple[Float[Array, "S B"], Float[Array, "S B T"] | None]:
    acceptance = jnp.stack([overlap(a, b) for a, b in zip(p.probs, q.probs)])
    acceptance = jnp.where(counts[None], acceptance, 0)
    return acceptance.sum(axis=-1), acceptance if by_position else None


def chunk_shape(
    memory_bytes: int, targets: int, samplings: int, positions: int, width: int, vocab_size: int
) -> tuple[int, int]:
    """Number of contexts, and of their compared positions, that can be scored at a time within a
    memory.

    Memory holds the distributions (one plain, one for each sampling, float32) of every target and
    one draft over the compared positions, and the logits and two temporaries of one model over the
    whole width. Where not even one context fits, its positions are taken in groups of about the same
    size, and logits are computed for a group alone. Weights and activations inside the models come on
    top.

    Raises:
      SdslError: Not even one position fits.
    """
    kept = (targets + 1) * (samplings + 1)
    each = 4 * vocab_size * (kept * positions + 3 * width)
    if each <= memory_bytes:
        return min(_MOST_ROWS, memory_bytes // each), positions
    one = 4 * vocab_size * (kept + 3)
    require(
        one <= memory_bytes,
        f"memory_bytes is {memory_bytes}; it must be at least {one} to hold one position with {vocab_size} probabilities for "
        f"{targets} targets and {samplings} samplings. Fewer targets need less.",
    )
    groups = -(-positions // (memory_bytes // one))
    return 1, -(-positions // groups)


def _check(
    contexts: Any, following: Any, lengths: Any, first: Any, vocab_sizes: set[int]
) -> tuple[Any, ...]:
    require(
        len(vocab_sizes) == 1,
        f"the vocabularies have sizes {sorted(vocab_sizes)}; all models must share one.",
    )
    vocab_size = vocab_sizes.pop()
    contexts = np.asarray(contexts, np.int32)
    require(
        contexts.ndim == 2 and contexts.size > 0,
        f"contexts have shape {contexts.shape}; they must be [contexts, tokens].",
    )
    n, width = contexts.shape
    firsts = np.broadcast_to(np.asarray(first), (n,))
    begin = int(firsts.min())
    require(
        0 <= begin <= firsts.max() < width,
        f"first is {first}; it must lie in [0, {width - 1}] for contexts of {width} tokens.",
    )
    lengths = np.broadcast_to(np.asarray(width if lengths is None else lengths), (n,))
    require(
        lengths.min() >= 0 and lengths.max() <= width,
        f"lengths run from {lengths.min()} to {lengths.max()}; they must lie in [0, {width}].",
    )
    positions = np.arange(begin, width)
    counts = (positions >= firsts[:, None]) & (positions < lengths[:, None])
    for name, ids in (("contexts", contexts), ("following", following)):
        require(
            ids is None or 0 <= np.min(ids) <= np.max(ids) < vocab_size,
            f"{name} hold ids outside the vocabulary, which runs from 0 to {vocab_size - 1}.",
        )
    require(
        following is None or np.shape(following) == counts.shape,
        f"following has shape {np.shape(following)}; it must be {counts.shape}, a token for each compared position.",
    )
    return contexts, counts, begin


def _called(role: str, name: str) -> str:
    """Name of a model in messages: "target", or "target large" if it has a name of its own."""
    return role if name == role else f"{role} {name}"


def pairwise_overlap(
    drafts: Mapping[str, Model],
    targets: Mapping[str, Model],
    contexts: Int[np.ndarray, "contexts L"],
    *,
    first: int | Int[np.ndarray, " contexts"],
    samplings: Sequence[Sampling] = (Sampling(),),
    following: Int[np.ndarray, "contexts T"] | None = None,
    lengths: Int[np.ndarray, " contexts"] | None = None,
    memory_bytes: int = 2**30,
    advance: Callable[[int], None] = lambda models: None,
    by_position: bool = False,
) -> Overlaps:
    """Compares every (draft, target) on shared contexts, with one pass of each model over them.

    Each model is compiled once and the comparison once, whatever the number of pairs: contexts go in
    chunks of one size, and the last one is filled up.

    Args:
      drafts: Drafts by name.
      targets: Targets by name.
      contexts: Token ids; the distribution after position t is compared for t = first..L−1.
      first: First position whose next-token distribution counts, for all contexts or for each.
      samplings: Samplings to compute α at.
      following: The token after each position from the smallest `first` on, for
        `ModelScores.log_probs`; T = L − first.
      lengths: Tokens of each context that are not padding; all by default. Later positions are not
        compared.
      memory_bytes: Bound on the memory of distributions, see `chunk_shape`.
      advance: Called with the number of models that have just scored a chunk.
      by_position: Whether to keep the overlap of every position besides the sums.

    Raises:
      SdslError: an argument is out of range, the vocabularies differ, one position alone needs more
        memory, contexts are longer than a model's table of positions, or logits are not finite.
    """
    require(
        len(drafts) > 0 and len(targets) > 0,
        "there are no drafts or no targets; at least one of each is needed.",
    )
    require(len(samplings) > 0, "samplings is empty; it must hold at least one.")
    vocab_sizes = {model.config.ids for model in (*drafts.values(), *targets.values())}
    contexts, counts, begin_at = _check(contexts, following, lengths, first, vocab_sizes.copy())
    n, width = contexts.shape
    longest = int(np.flatnonzero(counts.any(axis=0)).max(initial=-1)) + begin_at + 1
    for role, models in (("target", targets), ("draft", drafts)):
        for name, model in models.items():
            require_positions(model, longest, _called(role, name), "the contexts")
    total = width - begin_at
    rows, size = chunk_shape(memory_bytes, len(targets), len(samplings), total, width, *vocab_sizes)
    rows = min(rows, n)
    checked = tuple(sampling.check() for sampling in samplings)
    every = [("target", *each) for each in targets.items()]
    every += [("draft", *each) for each in drafts.items()]
    by_pair, by_model = (len(samplings), n), (len(samplings), n, total)
    pairs = [(draft, target) for draft in drafts for target in targets]
    sums = {pair: np.zeros(by_pair) for pair in pairs}
    values = {pair: np.zeros(by_model) for pair in pairs if by_position}
    # By target and ids: the many drafts of a readout share them.
    readouts = {name: model.config.readout_ids for name, model in drafts.items()}
    some_ids = {*readouts.values()} - {()}
    reach = {(target, ids): np.zeros(by_pair) for target in targets for ids in some_ids}
    entropies = {each[:2]: np.zeros(n) for each in every}
    log_probs = {
        each[:2]: np.zeros(by_model, np.float32) for each in every if following is not None
    }

    def compare_chunk(begin: int) -> None:
        """A function of its own so that one chunk's distributions are freed before the next one's exist."""
        kept = slice(0, min(rows, n - begin))
        at = slice(begin, begin + kept.stop)
        # Repeats of the first contexts fill up the last chunk.
        index = np.arange(begin, begin + rows) % n
        tokens = contexts[index]
        # In groups of positions, the blocks run once and the table of tokens for each group.
        streams = {
            each[:2]: _stream(each[2].params, tokens, model=each[2].config)
            for each in every
            if size < total
        }
        advance(len(streams))
        for start in range(0, total, size):
            compare_group(at, kept, index, tokens, streams, start)

    def compare_group(
        at: slice, kept: slice, index: np.ndarray, tokens: np.ndarray, streams: Any, start: int
    ) -> None:
        """Of the compared positions from `start` on; repeats of the last one fill up the last group."""
        stop = min(start + size, total)
        place = np.minimum(np.arange(start, start + size), total - 1)
        mask = jnp.asarray(counts[index][:, place] & (np.arange(start, start + size) < total))
        next_tokens = (
            None
            if following is None
            else jnp.asarray(np.asarray(following, np.int32)[index][:, place])
        )

        def score(role: str, name: str, model: Model) -> _Scored:
            stream = streams.get((role, name))
            if stream is None:
                advance(1)
            scored = _score(
                model.params,
                tokens,
                None if stream is None else stream[:, begin_at + place],
                next_tokens,
                mask,
                checked,
                model=model.config,
                first=begin_at,
            )
            broken = int(scored.broken)
            require(
                broken == 0,
                broken_logits(_called(role, name), f" at {broken} of {int(mask.sum())} positions"),
            )
            entropies[role, name][at] += np.asarray(scored.entropy, float)[kept]
            if scored.following is not None:
                found = np.asarray(scored.following)[:, kept, : stop - start]
                log_probs[role, name][:, at, start:stop] = found
            return scored

        scored = {name: score("target", name, model) for name, model in targets.items()}
        for target, ids in reach:
            each = _reached(scored[target], mask, ids=ids)
            reach[target, ids][:, at] += np.asarray(each, float)[:, kept]
        for draft, model in drafts.items():
            q = score("draft", draft, model)
            for target, p in scored.items():
                summed, each = _compare(p, q, mask, by_position=by_position)
                sums[draft, target][:, at] += np.asarray(summed, float)[:, kept]
                if each is not None:
                    found = np.asarray(each, float)[:, kept, : stop - start]
                    values[draft, target][:, at, start:stop] = found

    for begin in range(0, n, rows):
        compare_chunk(begin)
    positions = counts.sum(axis=1)

    def scores_of(role: str, names: Mapping[str, Model]) -> dict[str, ModelScores]:
        return {
            name: ModelScores(entropies[role, name], log_probs.get((role, name)), positions)
            for name in names
        }

    return Overlaps(
        {
            pair: PairOverlap(
                sums[pair], positions, values.get(pair), reach.get((pair[1], readouts[pair[0]]))
            )
            for pair in pairs
        },
        scores_of("draft", drafts),
        scores_of("target", targets),
    )
