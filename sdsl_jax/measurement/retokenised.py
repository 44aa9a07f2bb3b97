"""Acceptance across two tokenizers: the target's text is tokenised again by the draft. This
measures; it does not decode.

Where both models have one vocabulary, a token y that the target emits came by acceptance with
probability min(1, q(y)/p(y)), whose mean is α. Two tokenizers cut a text at different places. The
shortest stretches between places where both cut take the part of tokens here: with p and q the
products of each model's token probabilities over a stretch, min(1, q/p) of the stretch is averaged.
With one tokenizer stretches are tokens, and this is α of the target's samples.

With two it is a heuristic. A stretch is no event that both models give a probability to before the
text goes on: where the draft cuts may depend on what follows, and q counts one of its ways to write
the stretch. A draft that is the exact law of the text can score below 1 (for a text of a and b
drawn evenly, and a draft that always merges ab, it scores 11/12), and a stretch of several tokens
counts once. Bits per byte of both models, which do compare, are given beside it. Rows end before
the target's end-of-text token; stretches with broken characters are left out, and so is one that is
cut off by the end of the row.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.data.prompts import Prompts, bytes_after_first
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.tokenizer import Tokenizer, same_tokens
from sdsl_jax.decoding import Model
from sdsl_jax.decoding.decode import broken_logits, require_positions
from sdsl_jax.errors import require
from sdsl_jax.measurement.pair import PairSettings, sample_target
from sdsl_jax.models import ModelConfig, Params, forward
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.statistics import Interval, ratio_interval

# What bytes that form no character are decoded to.
_BROKEN = "\ufffd"


class RoleScores(NamedTuple):
    """One model on the continuations that the target wrote, in its own tokens.

    Attributes:
      loss: nats per token.
      bits_per_byte: comparable between tokenizers.
      tokens_per_stretch: its tokens in a stretch.
    """

    loss: Interval
    bits_per_byte: Interval
    tokens_per_stretch: float


class Retokenised(NamedTuple):
    """The re-tokenised acceptance of a pair.

    Attributes:
      alpha: mean of min(1, q/p) over stretches, prompts as clusters.
      stretches: how many there were.
      roles: both models on the target's text, by role.
      rows: prompts whose continuation held a stretch.
    """

    alpha: Interval
    stretches: int
    roles: dict[str, RoleScores]
    rows: int


class _Cut(NamedTuple):
    """A text in the tokens of one model: ids, and for each the character at which it ends; −1 inside of a character."""

    ids: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"]


def _ends(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> np.ndarray:
    """Where each of the ids of a text ends in it; −1 where the text up to there is not what they make, as inside a character."""
    found = []
    for n in range(1, len(ids) + 1):
        begun = tokenizer.decode(ids[:n])
        whole = text.startswith(begun) and not begun.endswith(_BROKEN)
        found.append(len(begun) if whole else -1)
    return np.asarray(found, int)


def _behind(lead: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> _Cut:
    return _Cut(np.concatenate([lead, ids]), np.concatenate([np.full(len(lead), -1), ends]))


def _cut(tokenizer: Tokenizer, text: str) -> _Cut:
    """A text in new tokens, behind the special tokens that the tokenizer begins a text with."""
    if not isinstance(tokenizer, PublishedTokenizer):
        ids = tokenizer.encode(text)
        return _Cut(ids, _ends(tokenizer, ids, text))
    ids = tokenizer.encode_plain(text)
    return _behind(tokenizer.around()[0], ids, _ends(tokenizer, ids, text))


@functools.partial(jax.jit, static_argnames="config")
def _log_probs(
    config: ModelConfig, params: Params, tokens: Array, temperature: Array
) -> Float[Array, "B T-1"]:
    with jax.default_matmul_precision("highest"):
        logits, _ = forward(config, params, tokens[:, :-1])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    return jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]


def _score(
    role: str, model: Model, rows: list[np.ndarray], temperature: float, batch: int
) -> list[np.ndarray]:
    """ln of the probability of every id of each row but its first.

    Raises:
      SdslError: a row outgrows the model's table of positions, or logits are not finite.
    """
    require_positions(model, max(len(row) for row in rows), role, "the texts")
    # Widths in steps, so that few programs are compiled.
    width = 32 * math.ceil(max(len(row) for row in rows) / 32)
    found = []
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        tokens = np.zeros((batch, width), np.int32)
        for at, row in enumerate(part):
            tokens[at, : len(row)] = row
        scored = np.asarray(
            _log_probs(model.config, model.params, tokens, jnp.float32(temperature)), float
        )
        found += [line[: len(row) - 1] for line, row in zip(scored, part)]
    # Nothing is filtered here, so that broken logits alone make these infinite or NaN.
    broken = sum(int((~np.isfinite(line)).sum()) for line in found)
    require(broken == 0, broken_logits(role, f" at {broken} of {sum(map(len, found))} positions"))
    return found


def prompt_losses(
    role: str, model: Model, tokenizer: Tokenizer, prompts: Prompts, settings: PairSettings
) -> tuple[Interval, Interval]:
    """A model's loss on prompts in its own tokens, from the second one of text on: nats per token, and bits per byte."""
    rows = [ids[:n] for ids, n in zip(prompts.tokens, prompts.lengths)]
    nats = np.asarray(
        [-scores[prompts.lead :].sum() for scores in _score(role, model, rows, 1.0, settings.batch)]
    )
    positions = np.maximum(prompts.lengths - 1 - prompts.lead, 0)
    per_token = ratio_interval(nats, positions, settings.confidence)
    return per_token, ratio_interval(
        nats / math.log(2), bytes_after_first(prompts, tokenizer), settings.confidence
    )


def retokenised_acceptance(
    draft: Model,
    target: Model,
    draft_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    prompts: Prompts,
    settings: PairSettings,
    progress: Progress | None = None,
) -> Retokenised:
    """Lets the target continue every prompt, and compares both models on what it wrote.

    Args:
      draft: scored on the target's text.
      target: writes and is scored.
      draft_tokenizer: tokenises that text anew.
      target_tokenizer: of the prompts.
      prompts: to be continued.
      settings: how; temperature above 0 and no filters.
      progress: told after every batch.

    Raises:
      SdslError: the sampling is greedy or filtered, or no two cuts ever coincide.
    """
    sampling = settings.sampling
    require(
        float(sampling.temperature) > 0
        and (sampling.top_k, sampling.top_p, sampling.min_p) == (None, None, None),
        "re-tokenised acceptance compares probabilities of whole stretches of text; it needs a temperature above 0 and no "
        "filters.",
    )
    progress = progress or Silent()
    batches = -(-len(prompts.lengths) // settings.batch)
    progress.start("measure", batches + 2)
    samples = sample_target(
        target, prompts, settings, lambda: progress.advance(1, "samples of the target")
    )
    one_tokenizer = same_tokens(draft_tokenizer, target_tokenizer)
    rows, stops = [], (*settings.stop_tokens, *target_tokenizer.end_ids)
    for ids, begin in zip(samples.tokens, samples.prompt_lengths):
        ids = ids[: begin + settings.new_tokens]
        stopped = np.flatnonzero(np.isin(ids[begin:], stops))
        ids = ids[: begin + stopped[0]] if len(stopped) else ids
        lead, own = ids[: prompts.lead], ids[prompts.lead :]
        text = target_tokenizer.decode(own)
        target_cut = _behind(lead, own, _ends(target_tokenizer, own, text))
        rows.append(
            _Row(
                text=text,
                prompt_end=len(target_tokenizer.decode(own[: begin - prompts.lead])),
                stopped=bool(len(stopped)),
                cuts={
                    "target": target_cut,
                    "draft": target_cut if one_tokenizer else _cut(draft_tokenizer, text),
                },
            )
        )
    temperature = float(sampling.temperature)
    scores = {}
    for role, model in (("target", target), ("draft", draft)):
        scores[role] = _score(
            role, model, [row.cuts[role].ids for row in rows], temperature, settings.batch
        )
        progress.advance(1, f"{role} on the target's text")
    progress.finish()
    found = [
        _stretches(row, {role: scores[role][n] for role in scores}) for n, row in enumerate(rows)
    ]
    return _summary(found, settings.confidence)


class _Row(NamedTuple):
    """A prompt and what the target wrote behind it: its text, where the prompt ends in it, and both ways to cut it."""

    text: str
    prompt_end: int
    stopped: bool
    cuts: dict[str, _Cut]


class _Stretches(NamedTuple):
    """Of one row: ln q − ln p of each stretch; and over all of them nats and tokens of both models, and bytes."""

    ratios: np.ndarray
    nats: dict[str, float]
    tokens: dict[str, int]
    size: int


def _stretches(row: _Row, scores: dict[str, np.ndarray]) -> _Stretches:
    common = sorted(
        e for e in {*row.cuts["target"].ends} & {*row.cuts["draft"].ends} if e >= row.prompt_end
    )
    if not row.stopped:
        common = common[:-1]  # beyond the last one the text might have gone on in another way
    texts = [row.text[a:b] for a, b in itertools.pairwise(common)]
    kept = np.asarray([_BROKEN not in text for text in texts], bool)
    sums: dict[str, np.ndarray] = {}
    tokens = {}
    for role in ("target", "draft"):
        ends = row.cuts[role].ends
        # The last token that ends at each cut; probabilities begin with the second token.
        at = np.asarray([np.flatnonzero(ends == c)[-1] for c in common], int)
        running = np.concatenate([[0.0], np.cumsum(scores[role])])
        sums[role] = np.diff(running[at])[kept]
        tokens[role] = int(np.diff(at)[kept].sum())
    nats = {role: float(-sums[role].sum()) for role in sums}
    size = sum(len(text.encode()) for text, keep in zip(texts, kept) if keep)
    return _Stretches(sums["draft"] - sums["target"], nats, tokens, size)


def _summary(rows: list[_Stretches], confidence: float) -> Retokenised:
    counts = np.asarray([len(row.ratios) for row in rows])
    require(
        bool(counts.any()),
        "the two tokenizers never cut the target's text at the same place; nothing can be compared.",
    )
    accepted = np.asarray([np.exp(np.minimum(row.ratios, 0.0)).sum() for row in rows])
    size = np.asarray([row.size for row in rows], float)
    roles = {}
    for role in ("target", "draft"):
        nats = np.asarray([row.nats[role] for row in rows])
        tokens = np.asarray([row.tokens[role] for row in rows], float)
        bits = ratio_interval(nats / math.log(2), size, confidence)
        roles[role] = RoleScores(
            ratio_interval(nats, tokens, confidence), bits, float(tokens.sum() / counts.sum())
        )
    return Retokenised(
        ratio_interval(accepted, counts, confidence),
        int(counts.sum()),
        roles,
        int((counts > 0).sum()),
    )
