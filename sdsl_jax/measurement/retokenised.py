"""Acceptance across two tokenizers: the target's text is tokenised again by the draft. This measures; it does not decode.

Where both models have one vocabulary, a token y that the target emits came by acceptance with probability min(1, q(y)/p(y)),
whose mean is α. Two tokenizers cut a text at different places. The shortest stretches between places where both cut take the
part of tokens here: with p and q the products of each model's token probabilities over a stretch, min(1, q/p) of the stretch is
averaged. If the tokenizers are the same, stretches are tokens and this is α again. It is the probability that a drafter which
proposed whole stretches would be accepted, if q were all its ways to write the stretch; no decoder here works that way.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.data.prompts import Prompts, bytes_after_first
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.tokenizer import Tokenizer
from sdsl_jax.decoding import Model
from sdsl_jax.errors import require
from sdsl_jax.measurement.pair import PairSettings, sample_target
from sdsl_jax.models import ModelConfig, Params, forward
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.statistics import Interval, ratio_interval


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


def _cut_ids(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[str, _Cut]:
    """Ids as they are, with the text that they make."""
    text = tokenizer.decode(ids)
    ends = []
    for n in range(1, len(ids) + 1):
        begun = tokenizer.decode(ids[:n])
        whole = text.startswith(begun) and not (begun.endswith("\ufffd") and n < len(ids))
        ends.append(len(begun) if whole else -1)
    return text, _Cut(ids, np.asarray(ends))


def _cut_text(tokenizer: Tokenizer, text: str, begin: str) -> _Cut:
    """A text in new tokens, behind whatever special tokens the tokenizer begins with; positions count from the text's start.

    `begin` is what special tokens of the other model stand at its beginning, which are no text to this one.
    """
    text = text.removeprefix(begin)
    if not isinstance(tokenizer, PublishedTokenizer):
        ids = tokenizer.encode(text)
        return _shifted(_cut_ids(tokenizer, ids)[1], len(begin))
    ids, offsets = tokenizer.encode_plain(text)
    starts = [start for start, _ in offsets[1:]] + [len(text)]
    ends = np.asarray([end if end <= start else -1 for (_, end), start in zip(offsets, starts)])
    whole = tokenizer.encode(text)
    lead = next((n for n in range(len(whole)) if np.array_equal(whole[n : n + len(ids)], ids)), 0)
    return _shifted(_Cut(np.concatenate([whole[:lead], ids]), np.concatenate([np.full(lead, -1), ends])), len(begin))


def _shifted(cut: _Cut, by: int) -> _Cut:
    return cut._replace(ends=np.where(cut.ends < 0, -1, cut.ends + by))


@functools.partial(jax.jit, static_argnames="config")
def _log_probs(config: ModelConfig, params: Params, tokens: Array, temperature: Array) -> Float[Array, "B T-1"]:
    with jax.default_matmul_precision("highest"):
        logits, _ = forward(config, params, tokens[:, :-1])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    return jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]


def _score(model: Model, rows: list[np.ndarray], temperature: float, batch: int) -> list[np.ndarray]:
    """ln of the probability of every id of each row but its first."""
    # Widths in steps, so that few programs are compiled.
    width = 32 * math.ceil(max(len(row) for row in rows) / 32)
    found = []
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        tokens = np.zeros((batch, width), np.int32)
        for at, row in enumerate(part):
            tokens[at, : len(row)] = row
        scored = np.asarray(_log_probs(model.config, model.params, tokens, jnp.float32(temperature)), float)
        found += [line[: len(row) - 1] for line, row in zip(scored, part)]
    return found


def prompt_losses(
    model: Model, tokenizer: Tokenizer, prompts: Prompts, settings: PairSettings
) -> tuple[Interval, Interval]:
    """A model's loss on prompts in its own tokens, from the second one on: nats per token, and bits per byte."""
    rows = [ids[:n] for ids, n in zip(prompts.tokens, prompts.lengths)]
    nats = np.asarray([-scores.sum() for scores in _score(model, rows, 1.0, settings.batch)])
    per_token = ratio_interval(nats, prompts.lengths - 1, settings.confidence)
    return per_token, ratio_interval(nats / math.log(2), bytes_after_first(prompts, tokenizer), settings.confidence)


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
        float(sampling.temperature) > 0 and (sampling.top_k, sampling.top_p, sampling.min_p) == (None, None, None),
        "re-tokenised acceptance compares probabilities of whole stretches of text; it needs a temperature above 0 and no "
        "filters.",
    )
    progress = progress or Silent()
    batches = -(-len(prompts.lengths) // settings.batch)
    progress.start("measure", batches + 2)
    samples = sample_target(target, prompts, settings, lambda: progress.advance(1, "samples of the target"))
    cuts: list[dict[str, _Cut]] = []
    spans = []
    for ids, begin in zip(samples.tokens, samples.prompt_lengths):
        ids = ids[: begin + settings.new_tokens]
        stops = np.flatnonzero(np.isin(ids[begin:], settings.stop_tokens))
        ids = ids[: begin + stops[0]] if len(stops) else ids
        text, own = _cut_ids(target_tokenizer, ids)
        cuts.append({"target": own, "draft": _cut_text(draft_tokenizer, text, _special_begin(target_tokenizer, ids))})
        spans.append(len(target_tokenizer.decode(ids[:begin])))
    temperature = float(sampling.temperature)
    scores = {}
    for role, model in (("target", target), ("draft", draft)):
        scores[role] = _score(model, [cut[role].ids for cut in cuts], temperature, settings.batch)
        progress.advance(1, f"{role} on the target's text")
    progress.finish()
    rows = [_stretches(cut, {role: scores[role][n] for role in scores}, spans[n]) for n, cut in enumerate(cuts)]
    return _summary(rows, cuts, target_tokenizer, spans, settings.confidence)


def _special_begin(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of a special token that a row begins with, such as <s>; empty if it begins with none."""
    if not isinstance(tokenizer, PublishedTokenizer) or not tokenizer.special_tokens or len(ids) == 0:
        return ""
    plain, _ = tokenizer.encode_plain("a")
    lead: np.ndarray = tokenizer.encode("a")[: -len(plain)] if len(plain) else plain
    return tokenizer.decode(ids[:1]) if len(lead) and ids[0] == lead[0] else ""


class _Row(NamedTuple):
    ratios: np.ndarray  # ln q − ln p of each stretch
    nats: dict[str, float]  # over all stretches
    tokens: dict[str, int]
    span: tuple[int, int]  # characters that the stretches cover


def _stretches(cut: dict[str, _Cut], scores: dict[str, np.ndarray], prompt_end: int) -> _Row:
    common = sorted(e for e in {*cut["target"].ends} & {*cut["draft"].ends} if e >= prompt_end)
    sums: dict[str, np.ndarray] = {}
    tokens = {}
    for role in ("target", "draft"):
        ends = cut[role].ends
        # The last token that ends at each cut; probabilities begin with the second token.
        at = np.asarray([np.flatnonzero(ends == c)[-1] for c in common], int)
        running = np.concatenate([[0.0], np.cumsum(scores[role])])
        sums[role] = np.diff(running[at])
        tokens[role] = int(at[-1] - at[0]) if len(at) else 0
    ratios = sums["draft"] - sums["target"]
    nats = {role: float(-sums[role].sum()) for role in sums}
    return _Row(ratios, nats, tokens, (common[0], common[-1]) if common else (prompt_end, prompt_end))


def _summary(
    rows: list[_Row], cuts: list[dict[str, _Cut]], tokenizer: Tokenizer, spans: list[int], confidence: float
) -> Retokenised:
    counts = np.asarray([len(row.ratios) for row in rows])
    require(
        bool(counts.any()), "the two tokenizers never cut the target's text at the same place; nothing can be compared."
    )
    accepted = np.asarray([np.minimum(1.0, np.exp(np.minimum(row.ratios, 0.0))).sum() for row in rows])
    texts = [tokenizer.decode(cut["target"].ids)[row.span[0] : row.span[1]] for row, cut in zip(rows, cuts)]
    size = np.asarray([len(text.encode()) for text in texts], float)
    roles = {}
    for role in ("target", "draft"):
        nats = np.asarray([row.nats[role] for row in rows])
        tokens = np.asarray([row.tokens[role] for row in rows], float)
        bits = ratio_interval(nats / math.log(2), size, confidence)
        roles[role] = RoleScores(ratio_interval(nats, tokens, confidence), bits, float(tokens.sum() / counts.sum()))
    return Retokenised(ratio_interval(accepted, counts, confidence), int(counts.sum()), roles, int((counts > 0).sum()))
