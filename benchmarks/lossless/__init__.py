"""Is the decoder lossless? The joint distribution of its output against exact enumeration, over
every combination of settings.

A cell is one combination of lookahead, batch, temperature, filter, number type and verification. In
each, a small model decodes some tokens many times through real caches and loops; every sequence
that can come out is enumerated with passes of the target over it, and χ² compares the two.
Sequences of probability zero must not occur at all.

In float32 the reference is a full forward pass without any cache. In bfloat16 one and the same
model gives probabilities that differ by up to some hundredths from program to program, for sums are
taken in another order before they are rounded (and, unless XLA's flag
`xla_allow_excess_precision=false` is set as here, not rounded between fused operations). What
decoding can preserve is the target as its verify passes compute it: the reference is p as recorded
by the run itself, which must be one and the same wherever a context occurs, and that of cached
single steps up to rounding.

The module has the checks, which the tests share; `python -m benchmarks.lossless` runs them over
every combination.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

# Before jax is imported.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_allow_excess_precision=false"

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from flax import nnx

from sdsl_jax.decoding import (
    EarlyExit,
    Head,
    HybridDraft,
    Model,
    NestedDraft,
    NgramDraft,
    Sampling,
    loop,
    nested_draft,
    probabilities,
    speculate,
)
from sdsl_jax.decoding.decode import Draft
from sdsl_jax.decoding.drafters import ModelDrafter
from sdsl_jax.decoding.lookahead import FixedLookahead
from sdsl_jax.decoding.noise import row_keys
from sdsl_jax.models import ModelConfig, forward, init_params, prefill
from sdsl_jax.models.cuts import early_exit, pruned
from sdsl_jax.models.feature_head import HeadConfig, graft, start_fusion, table_body

V = 4
STOP = 2
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
}
# Prompts of different lengths, and how many tokens follow each at most.
PROMPTS = (((3,), 5), ((1, 0, 3, 1), 4))


@dataclass(frozen=True)
class Cell:
    """One combination of settings."""

    lookahead: int
    batch: str  # "1" or "ragged"
    temperature: float
    filter: str
    dtype: str
    verification: str

    def __str__(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self))

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        return Sampling(self.temperature, **FILTERS[self.filter])


LEVELS: dict[str, tuple[Any, ...]] = {
    "lookahead": (1, 2, 4, 7),
    "batch": ("1", "ragged"),
    "temperature": (0.0, 0.7, 1.0, 1.3),
    "filter": tuple(FILTERS),
    "dtype": ("float32", "bfloat16"),
    "verification": ("token", "block"),
}


def product() -> list[Cell]:
    """Every cell."""
    return [Cell(*values) for values in itertools.product(*LEVELS.values())]


def covering() -> list[Cell]:
    """A few cells above temperature 0 in which every pair of settings of two factors occurs, and
    four at temperature 0.

    Filters and verification change nothing at temperature 0: pairs must not count as covered there.
    """

    def pairs(cell: Cell) -> set[Any]:
        return set(itertools.combinations(enumerate(dataclasses.astuple(cell)), 2))

    warm = [cell for cell in product() if cell.temperature > 0]
    left = set().union(*map(pairs, warm))
    chosen = []
    while left:
        # Of equally good cells the one that comes first when read with a stride, so that settings
        # do not stay together.
        best = max(warm[::-7] + warm, key=lambda cell: len(pairs(cell) & left))
        chosen.append(best)
        left -= pairs(best)
    greedy = zip(
        (1, 2, 4, 7),
        ("1", "ragged", "ragged", "1"),
        FILTERS,
        LEVELS["dtype"] * 2,
        ("token", "block", "block", "token"),
    )
    return chosen + [
        Cell(g, batch, 0.0, name, dtype, rule) for g, batch, name, dtype, rule in greedy
    ]


@functools.cache
def model(seed: int, layers: int, dtype: str = "float32", negate: bool = False) -> Model:
    """A random model whose distributions are far from uniform; `negate` turns its logits round."""
    config = ModelConfig(
        vocab_size=V,
        width=8,
        layers=layers,
        heads=2,
        kv_heads=1,
        head_dim=4,
        hidden=12,
        tie_embeddings=False,
    )
    params = jax.tree.map(
        lambda x: (1.3 * x).astype(dtype), init_params(config, jax.random.key(seed))
    )
    if negate:
        params["head"].set_value(-params["head"].get_value())
    return Model(config, params)


@functools.cache
def truncated(ids: tuple[int, ...] = (0, 1, 3), seed: int = 1) -> Model:
    """A random draft that proposes some ids only, with tables of these."""
    config = dataclasses.replace(model(seed, 1).config, readout_ids=ids, truncated=True)
    params = init_params(config, jax.random.key(seed))
    return Model(config, jax.tree.map(lambda x: 1.3 * x, params))


@functools.cache
def head(seed: int = 9, taps: tuple[int, ...] = (1, 2), parallel: int = 0) -> Head:
    """A head on the target of the checks, with random P and Q: its first draft differs from its others."""
    body, target = model(1, 1), model(2, 2)
    config = HeadConfig(body.config, target.config.width, taps, parallel)
    params = graft(config, body.params)
    keys = jax.random.split(jax.random.key(seed))
    read, feed = (
        jax.random.normal(key, x.shape) / np.sqrt(x.shape[-2])
        for key, x in zip(keys, (params.read, params.feed))
    )
    return Head(config, params._replace(read=read, feed=feed))


@functools.cache
def table_head(seed: int = 9, blocks: int = 1, readout_ids: tuple[int, ...] = ()) -> Head:
    """A head on the tables of the target of the checks, with random coefficients and blocks."""
    target = model(2, 2)
    width = target.config.width
    body = table_body(target.config, blocks, readout_ids)
    config = HeadConfig(body, width, (target.config.layers,), on_tables=True)
    some = jax.random.normal(jax.random.key(seed), (3, width, width)) / np.sqrt(width)
    own = start_fusion(config, some[0], some[1], some[2, 0], jax.random.key(seed))
    if blocks:
        own = own._replace(blocks=model(seed, blocks).params["blocks"])
    return Head(config, own)


@functools.cache
def exit_draft(blocks: int = 1, seed: int = 4) -> EarlyExit:
    """An exit of the target of the checks, with a random affine map. Of two blocks, the second is not
    the target's, as after training."""
    target, other = model(2, 2), model(3, 2)
    config, params = early_exit(target.config, target.params, blocks)
    values = nnx.to_pure_dict(params)
    noise = jax.random.normal(jax.random.key(seed), values["exit_map"].shape)
    values["exit_map"] = noise / np.sqrt(len(noise))
    if blocks == 2:
        values["blocks"][1] = nnx.to_pure_dict(other.params)["blocks"][1]
    params = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(values))
    return EarlyExit(config, params, 1)


@functools.cache
def nested(threshold: float = 0.6, ids: tuple[int, ...] = ()) -> NestedDraft:
    """A random draft of two blocks and its slice of one block and half the units: rows choose both.
    It may propose some ids only."""
    whole = model(7, 2)
    whole = whole._replace(config=dataclasses.replace(whole.config, readout_ids=ids))
    return nested_draft(whole, dataclasses.replace(whole.config, layers=1, hidden=6), threshold)


def hybrid(fallback: Any, shortest: int = 1) -> HybridDraft:
    """N-grams first. In texts of four tokens rows both match and do not, from round to round."""
    return HybridDraft(NgramDraft(V, max(3, shortest), shortest), fallback)


@functools.cache
def pruned_draft() -> Model:
    """One block and a third of the units of the target of the checks."""
    target = model(2, 2)
    config = dataclasses.replace(target.config, layers=1, hidden=4)
    windows = np.random.default_rng(0).integers(0, V, (2, 9))
    return Model(config, pruned(target.config, target.params, config, windows))


@dataclass(frozen=True)
class KindCell:
    """One kind of draft, with ragged rows."""

    kind: str
    lookahead: int
    temperature: float
    verification: str

    def __str__(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self))


# The parallel head gives fewer drafts than the largest lookahead asks for.
KINDS: dict[str, Any] = {
    "independent": lambda: model(1, 1),
    "head": head,
    "parallel-head": lambda: head(parallel=3),
    "table-head": table_head,
    "table-head-of-some": lambda: table_head(blocks=0, readout_ids=(0, 2, 3)),
    "early-exit": exit_draft,
    "early-exit-trained": lambda: exit_draft(blocks=2),
    "pruned": pruned_draft,
    "nested": nested,
    "hybrid": lambda: hybrid(model(1, 1)),
    "hybrid-head": lambda: hybrid(head()),
}


def kind_cells(kinds: tuple[str, ...] = tuple(KINDS)) -> list[KindCell]:
    """Every cell of some kinds: three lookaheads, two temperatures, both rules."""
    settings = itertools.product(kinds, (1, 2, 4), (0.7, 1.0), LEVELS["verification"])
    return [KindCell(*values) for values in settings]


def check_kind(cell: KindCell, samples: int) -> Iterator[float]:
    """Probability of a χ² at least as large, for each kind of prompt."""
    target, sampling = model(2, 2), Sampling(cell.temperature)
    found = decode_ragged(
        KINDS[cell.kind](),
        target,
        samples,
        lookahead=cell.lookahead,
        verification=cell.verification,
        sampling=sampling,
    )
    for one, prompt in zip(found, PROMPTS):
        yield chi_square(one.sequences, outcomes(target, *prompt, sampling))


class Outcomes(NamedTuple):
    """What can follow a prompt: tokens (−1 after the end), and the probability of each."""

    sequences: np.ndarray
    probabilities: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: ModelConfig, params: Any, tokens: Any, positions: Any, cache: Any) -> Any:
    return forward(config, params, tokens, positions, cache)


def _target_probs(target: Model, tokens: np.ndarray, first: int, sampling: Sampling) -> np.ndarray:
    """p of the tokens after positions first − 1, first, …: by one pass without a cache, or by cached steps in bfloat16."""
    with jax.default_matmul_precision("highest"):
        if target.params["head"].get_value().dtype == jnp.float32:
            logits, _ = _forward(target.config, target.params, jnp.asarray(tokens), None, None)
            return np.asarray(probabilities(logits, sampling), float)[:, first - 1 : -1]
        last = tokens.shape[1]
        cache = prefill(target.config, target.params, jnp.asarray(tokens[:, :first]), capacity=last)
        parts = []
        for position in range(first - 1, last - 1):
            fed, positions = tokens[:, position, None], np.full((len(tokens), 1), position)
            logits, cache = _forward(
                target.config, target.params, jnp.asarray(fed), jnp.asarray(positions), cache
            )
            parts.append(np.asarray(probabilities(logits, sampling), float))
    return np.concatenate(parts, axis=1)


class Seen(NamedTuple):
    """Contexts that a run went through after one prompt, by code, and the target's distribution in each."""

    codes: np.ndarray
    probs: np.ndarray


def contexts_seen(
    continuations: np.ndarray, starts: np.ndarray, emitted: np.ndarray, probs: np.ndarray
) -> Seen:
    """The target's distribution in each context of a run.

    Args:
      continuations: of each row, [B, new].
      starts: of its rounds, less the prompt's length, [B, R].
      emitted: tokens of each round, [B, R].
      probs: p of each round, [B, R, G + 1, V].
    """
    row, number, place = np.nonzero(np.arange(probs.shape[2]) < emitted[..., None])
    length = starts[row, number] + place
    prefix = np.where(np.arange(continuations.shape[1]) < length[:, None], continuations[row], -1)
    codes, first, inverse = np.unique(_codes(prefix), return_index=True, return_inverse=True)
    found = probs[row, number, place]
    apart = np.abs(found - found[first][inverse.reshape(-1)]).max()
    assert apart == 0, f"p differs by up to {apart:.1e} between occurrences of one context"
    return Seen(codes, np.asarray(found[first], float))


def outcomes(
    target: Model, prompt: tuple[int, ...], new: int, sampling: Sampling, seen: Seen | None = None
) -> Outcomes:
    """Every continuation up to the stop token or `new` tokens, with its probability; p of contexts seen takes precedence."""
    continuations = np.asarray(list(np.ndindex(*(V,) * new)))
    tokens = np.concatenate([np.tile(prompt, (len(continuations), 1)), continuations], axis=1)
    probs = _target_probs(target, tokens, len(prompt), sampling)
    if seen is not None:
        for length in range(new):
            codes = _codes(np.where(np.arange(new) < length, continuations, -1))
            at = np.minimum(np.searchsorted(seen.codes, codes), len(seen.codes) - 1)
            known = seen.codes[at] == codes
            probs[:, length] = np.where(known[:, None], seen.probs[at], probs[:, length])
    steps = np.take_along_axis(probs, continuations[:, :, None], axis=2)[..., 0]
    # Cut each continuation after its first stop token, and add up those that have become equal.
    ended = np.cumsum(continuations == STOP, axis=1) - (continuations == STOP) > 0
    cut = np.where(ended, -1, continuations)
    # A cut continuation stands V^(cut tokens) times with the probability of what is left of it.
    weight = np.where(ended, 1.0 / V, steps).prod(axis=1)
    sequences, inverse = np.unique(cut, axis=0, return_inverse=True)
    return Outcomes(sequences, np.bincount(inverse.reshape(-1), weights=weight))


def _codes(sequences: np.ndarray) -> np.ndarray:
    return (np.asarray(sequences) + 1) @ (V + 1) ** np.arange(sequences.shape[1])


def chi_square(sequences: np.ndarray, expected: Outcomes) -> float:
    """P(χ² at least as large) for observed sequences [N, tokens] padded with −1; 0 if an impossible one occurred."""
    codes, values = _codes(expected.sequences), _codes(sequences)
    order = np.argsort(codes)
    index = np.searchsorted(codes[order], values)
    counts = np.bincount(order[index], minlength=len(codes))
    assert counts.sum() == len(sequences)
    assert (codes[order[index]] == values).all()
    possible = expected.probabilities > 0
    if counts[~possible].any():
        return 0.0
    wanted, seen = expected.probabilities[possible] * len(sequences), counts[possible]
    rare = wanted < 5
    if rare.any():
        wanted, seen = (
            np.append(wanted[~rare], wanted[rare].sum()),
            np.append(seen[~rare], seen[rare].sum()),
        )
    if len(wanted) == 1:
        return 1.0
    return float(scipy.stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1))


def _continuations(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, new: int
) -> np.ndarray:
    columns = starts[:, None] + np.arange(new)
    picked = np.take_along_axis(tokens, np.minimum(columns, tokens.shape[1] - 1), axis=1)
    return np.where(columns < lengths[:, None], picked, -1)


class Sampled(NamedTuple):
    """Continuations of one prompt, and what the target said along them where it was recorded."""

    sequences: np.ndarray
    seen: Seen | None


def decode_ragged(
    draft: Draft,
    target: Model,
    samples: int,
    rows: int = 8192,
    record: bool = False,
    **settings: Any,
) -> list[Sampled]:
    """Continuations of both prompts, mixed in one batch, at least `samples` of each."""
    half = np.arange(rows) % 2
    prompts = np.zeros((rows, max(len(p) for p, _ in PROMPTS)), np.int32)
    for kind, (prompt, _) in enumerate(PROMPTS):
        prompts[half == kind, : len(prompt)] = prompt
    lengths = np.asarray([len(PROMPTS[kind][0]) for kind in half])
    new = np.asarray([PROMPTS[kind][1] for kind in half])
    found: list[list[Any]] = [[], []]
    for run in range(-(-2 * samples // rows)):
        decoded = speculate(
            draft, target, prompts, prompt_lengths=lengths, new_tokens=new, stop_tokens=(STOP,), seed=run,
            keep_distributions=record, **settings,
        )  # fmt: skip
        decoded = jax.tree.map(np.asarray, decoded)
        for kind, (prompt, most) in enumerate(PROMPTS):
            rows_of = jax.tree.map(lambda x, kind=kind: x[half == kind] if x.ndim else x, decoded)
            found[kind].append(_sequences(rows_of, len(prompt), most))
    return [_joined(parts) for parts in found]


def _sequences(decoded: Any, start: int, new: int) -> tuple[np.ndarray, ...]:
    """Continuations padded with −1, and what `contexts_seen` takes beside them if it was recorded."""
    starts = np.full(len(decoded.lengths), start)
    sequences = _continuations(decoded.tokens, starts, decoded.lengths, new)
    if decoded.blocks is None:
        return (sequences,)
    return (
        sequences,
        decoded.events.start - start,
        decoded.events.emitted,
        decoded.blocks.target_probs,
    )


def _joined(parts: list[tuple[np.ndarray, ...]]) -> Sampled:
    columns = [np.concatenate(column) for column in zip(*parts)]
    return Sampled(columns[0], contexts_seen(*columns) if len(columns) > 1 else None)


def decode_single(
    draft: Model,
    target: Model,
    samples: int,
    record: bool,
    *,
    lookahead: int,
    sampling: Sampling,
    verification: Any,
) -> Sampled:
    """Continuations of the longer prompt, one row at a time: the program is that of a batch of one, run in sequence."""
    prompt, new = PROMPTS[1]
    drafter = ModelDrafter(draft.config)
    tokens = jnp.asarray([prompt], jnp.int32)
    buffer = len(prompt) + new
    capacity = buffer + lookahead + 1
    rule = FixedLookahead(jnp.int32(lookahead))

    @jax.jit
    def run(draft_params, target_params, sampling, rule, draft_state, cache, numbers):
        def one(number):
            requests = loop.Requests(
                tokens,
                jnp.asarray([len(prompt)]),
                jnp.asarray([buffer]),
                row_keys(0, number[None]),
                jnp.asarray([STOP]),
            )
            return loop.speculative_loop(
                drafter, target.config, draft_params, target_params, requests, sampling, rule, draft_state, cache,
                verification=verification, max_lookahead=lookahead, buffer=buffer, max_rounds=new, keep_distributions=record,
            )  # fmt: skip

        return jax.lax.map(one, numbers)

    with jax.default_matmul_precision("highest"):
        state = drafter.start(draft.params, tokens, capacity)
        cache = prefill(target.config, target.params, tokens, capacity=capacity)
        decoded = run(
            draft.params,
            target.params,
            sampling.check(),
            rule,
            state,
            cache,
            jnp.arange(samples, dtype=jnp.uint32),
        )
    rows = jax.tree.map(lambda x: np.asarray(x)[:, 0] if x.ndim > 1 else np.asarray(x), decoded)
    return _joined([_sequences(rows, len(prompt), new)])


def require_agreement(
    target: Model, prompt: tuple[int, ...], new: int, sampling: Sampling, seen: Seen
) -> None:
    """Raises unless recorded probabilities are those of the target in cached single steps, up to
    rounding in bfloat16.

    At a filter's border or a tie rounding decides what is possible: in one context out of ten the
    two may differ altogether.
    """
    continuations = np.asarray(list(np.ndindex(*(V,) * new)))
    tokens = np.concatenate([np.tile(prompt, (len(continuations), 1)), continuations], axis=1)
    probs = _target_probs(target, tokens, len(prompt), sampling)
    apart = []
    for length in range(new):
        codes, first = np.unique(
            _codes(np.where(np.arange(new) < length, continuations, -1)), return_index=True
        )
        at = np.minimum(np.searchsorted(seen.codes, codes), len(seen.codes) - 1)
        known = seen.codes[at] == codes
        apart += list(np.abs(seen.probs[at] - probs[first, length]).max(axis=1)[known])
    share = np.mean(np.asarray(apart) > 0.07)
    assert share <= 0.1, (
        f"recorded p differs by more than .07 from the target in {share:.0%} of {len(apart)} contexts"
    )


def check(cell: Cell, samples: int, draft: Model | None = None) -> Iterator[float]:
    """Probability of a χ² at least as large, for each kind of prompt of the cell."""
    target = model(2, 2, cell.dtype)
    draft = draft or model(1, 1, cell.dtype)
    record = cell.dtype != "float32"
    settings: dict[str, Any] = dict(
        lookahead=cell.lookahead, sampling=cell.sampling, verification=cell.verification
    )
    if cell.batch == "1":
        found, kinds = [decode_single(draft, target, samples, record, **settings)], [1]
    else:
        found, kinds = decode_ragged(draft, target, samples, record=record, **settings), [0, 1]
    for kind, sampled in zip(kinds, found):
        prompt, new = PROMPTS[kind]
        if sampled.seen is not None:
            require_agreement(target, prompt, new, cell.sampling, sampled.seen)
        yield chi_square(
            sampled.sequences, outcomes(target, prompt, new, cell.sampling, sampled.seen)
        )
