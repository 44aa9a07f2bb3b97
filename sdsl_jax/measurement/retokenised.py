"""Acceptance across two tokenizers: the draft tokenises the target's text again. This measures and
does not decode.

If both models have one vocabulary, a token y that the target emits came by acceptance with
probability min(1, q(y)/p(y)), whose mean is α. Two tokenizers cut a text at different places. Here
the shortest stretches between places where both cut replace tokens: with p and q the products of
each model's token probabilities over a stretch, min(1, q/p) is averaged over stretches. With one
tokenizer, stretches are tokens and this is α on the target's samples.

With two tokenizers it is a heuristic. Neither model gives a stretch a probability before the text
goes on: where the draft cuts may depend on what follows, and q counts one of its ways to write the
stretch. A draft that is the exact law of the text can score below 1 (for a text of a and b drawn
evenly, and a draft that always merges ab, it scores 11/12). A stretch of several tokens counts once.
Bits per byte of both models are given as well; those are comparable. Rows end before the target's
end-of-text token. Stretches with broken characters, and the one that the end of a row cuts off, are
left out.
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

from sdsl_jax.data.prompts import Prompts
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.tokenizer import Tokenizer, same_tokens
from sdsl_jax.decoding import Model
from sdsl_jax.decoding.decode import broken_logits, require_positions
from sdsl_jax.errors import require
from sdsl_jax.measurement.pair import PairSettings, loss_on_prompts, sample_target
from sdsl_jax.models import ModelConfig, Params, forward
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.statistics import Interval, ratio_interval

# Bytes that form no character are decoded to this.
_BROKEN = "\ufffd"


class RoleScores(NamedTuple):
    """Scores of one model on the target's continuations, in its own tokens.

    Attributes:
      loss_nats: Cross-entropy in nats per token.
      bits_per_byte: Loss per byte, comparable between tokenizers.
      tokens_per_stretch: Its tokens per stretch.
    """

    loss_nats: Interval
    bits_per_byte: Interval
    tokens_per_stretch: float


class Retokenised(NamedTuple):
    """The re-tokenised acceptance of a pair.

    Attributes:
      alpha: Mean of min(1, q/p) over stretches, with prompts as clusters.
      stretches: Number of stretches.
      roles: Scores of both models on the target's text, by role.
      rows: Prompts whose continuation held a stretch.
    """

    alpha: Interval
    stretches: int
    roles: dict[str, RoleScores]
    rows: int


class _Cut(NamedTuple):
    """A text in the tokens of one model: ids, and the character at which each ends; −1 inside a character."""

    ids: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"]


def _ends(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> np.ndarray:
    """The character at which each id of a text ends; −1 where the ids so far do not decode to the
    beginning of the text, as inside a character."""
    ends = []
    for n in range(1, len(ids) + 1):
        begun = tokenizer.decode(ids[:n])
        whole = text.startswith(begun) and not begun.endswith(_BROKEN)
        ends.append(len(begun) if whole else -1)
    return np.asarray(ends, int)


def _behind(lead: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> _Cut:
    return _Cut(np.concatenate([lead, ids]), np.concatenate([np.full(len(lead), -1), ends]))


def _cut(tokenizer: Tokenizer, text: str) -> _Cut:
    """A text in a model's tokens, after the special tokens that its tokenizer begins a text with."""
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
    """Log-probability of every id of each row but its first.

    Raises:
      SdslError: a row exceeds the model's table of positions, or logits are not finite.
    """
    require_positions(model, max(len(row) for row in rows), role, "the texts")
    # Widths in steps, so that few programs are compiled.
    width = 32 * math.ceil(max(len(row) for row in rows) / 32)
    scores: list[np.ndarray] = []
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        tokens = np.zeros((batch, width), np.int32)
        for at, row in enumerate(part):
            tokens[at, : len(row)] = row
        scored = np.asarray(
            _log_probs(model.config, model.params, tokens, jnp.float32(temperature)), float
        )
        scores += [line[: len(row) - 1] for line, row in zip(scored, part)]
    # Nothing is filtered here, so only broken logits make these infinite or NaN.
    broken = sum(int((~np.isfinite(line)).sum()) for line in scores)
    require(broken == 0, broken_logits(role, f" at {broken} of {sum(map(len, scores))} positions"))
    return scores


def prompt_losses(
    role: str, model: Model, tokenizer: Tokenizer, prompts: Prompts, settings: PairSettings
) -> tuple[Interval, Interval]:
    """A model's loss on prompts in its own tokens, from the second token of text on: nats per token and bits per byte."""
    rows = [ids[:n] for ids, n in zip(prompts.tokens, prompts.lengths)]
    nats = np.asarray(
        [-scores[prompts.lead :].sum() for scores in _score(role, model, rows, 1.0, settings.batch)]
    )
    return loss_on_prompts(nats, prompts, tokenizer, settings.confidence)


def retokenised_acceptance(
    draft: Model,
    target: Model,
    draft_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    prompts: Prompts,
    settings: PairSettings,
    progress: Progress | None = None,
) -> Retokenised:
    """Lets the target continue every prompt, and compares both models on its text.

    Args:
      draft: The model that scores the target's text.
      target: The model that writes the text and scores it.
      draft_tokenizer: Tokenizer of the draft.
      target_tokenizer: Tokenizer of the target and of the prompts.
      prompts: Prompts to continue.
      settings: How to measure, with a temperature above 0 and without filters.
      progress: Reports progress after every batch.

    Raises:
      SdslError: the sampling is greedy or filtered, or the two never cut at the same place.
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
    stretches = [
        _stretches(row, {role: scores[role][n] for role in scores}) for n, row in enumerate(rows)
    ]
    return _summary(stretches, settings.confidence)


class _Row(NamedTuple):
    """A prompt with its continuation: the text, where the prompt ends in it, and both ways to cut it."""

    text: str
    prompt_end: int
    stopped: bool
    cuts: dict[str, _Cut]


class _Stretches(NamedTuple):
    """The stretches of one row: ln q − ln p of each; and over all, nats and tokens of both models, and
    bytes."""

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
        counts.any(),
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
