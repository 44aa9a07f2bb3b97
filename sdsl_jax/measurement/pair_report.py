"""The report of a measured pair as typed documents, which JSON and tables show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdsl_jax.checkpoints.identity import identity
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.data.tokenizer import Tokenizer
from sdsl_jax.decoding.loop import STOP_TOKEN
from sdsl_jax.measurement.against import DraftComparison
from sdsl_jax.measurement.greedy import Divergence
from sdsl_jax.measurement.latency import GenerationTimes
from sdsl_jax.measurement.pair import LookaheadResult, PairSettings, Replay
from sdsl_jax.measurement.pair_warnings import loading_warnings
from sdsl_jax.measurement.retokenised import Retokenised
from sdsl_jax.records import write_text
from sdsl_jax.records.documents import document
from sdsl_jax.statistics import Interval


@dataclass(frozen=True)
class OnPrompts:
    """A model's loss on the prompts, from each prompt's second token of text on.

    Attributes:
      loss_nats: cross-entropy, nats per token at temperature 1, over the tokens that the model can give
      perplexity: exp of the loss
      bits_per_byte: loss per byte of text, bits; null where the model cannot give every token
      given: share of the tokens that the model can give; 1 but for a truncated readout
    """

    loss_nats: Interval
    perplexity: Interval
    bits_per_byte: Interval
    given: float

    @classmethod
    def of(cls, nats: Interval, bits: Interval, given: float) -> OnPrompts:
        """The loss in nats per token and in bits per byte."""
        perplexity = Interval(*map(math.exp, nats))
        return document(cls, loss_nats=nats, perplexity=perplexity, bits_per_byte=bits, given=given)


@dataclass(frozen=True)
class NgramReport:
    """The n-gram draft, which is not a model.

    Attributes:
      model_id: always "ngram"
    """

    model_id: str


@dataclass(frozen=True)
class ModelReport:
    """One of the two models.

    Attributes:
      model_id: name of the model
      folder: where it was read from
      params_nonembedding: parameters without embeddings
      params_total: all parameters
      train_tokens: training tokens on record; 0 if unknown
      loss_nats: loss on record; null if unknown
      params_digest: digest of the parameters
      identity: digest of configuration, weights and tokenizer
      unknown_settings: settings of the checkpoint that sdsl does not know
      ignored_settings: settings that --ignore-key left out
      on_prompts: its loss on the prompts; null for prompts of one token
    """

    model_id: str
    folder: str
    params_nonembedding: int
    params_total: int
    train_tokens: int
    loss_nats: float
    params_digest: str
    identity: str
    unknown_settings: list[str]
    ignored_settings: list[str]
    on_prompts: OnPrompts | None

    @classmethod
    def of(cls, model: LoadedModel, on_prompts: OnPrompts | None) -> ModelReport:
        """The report on a loaded model."""
        return document(
            cls,
            model.record,
            folder=str(model.folder),
            identity=identity(model),
            unknown_settings=list(model.unknown_settings),
            ignored_settings=list(model.ignored_settings),
            on_prompts=on_prompts,
        )


@dataclass(frozen=True)
class HybridReport:
    """N-grams with a model to fall back on.

    Attributes:
      model_id: name of the two in the records
      ngram_first: shortest n-gram that drafts a round
      fallback: the model that drafts all other rounds
    """

    model_id: str
    ngram_first: int
    fallback: ModelReport


@dataclass(frozen=True)
class LookaheadReport:
    """One run of the decoder. All but `conventions` count every round, with all that verification
    kept.

    Attributes:
      lookahead: drafts per round, γ
      tokens_per_round: τ, the target's own token included
      expected_tokens_per_round: τ of token verification by the models' probabilities alone
      per_test: accepted over tested drafts
      tar: token acceptance rate of the paper, (τ − 1)/γ
      tar_alpha: the α whose geometric formula gives τ
      survival: share of rounds whose first k drafts are accepted
      self_check: standard normal score of the number of drafts kept
      rounds: rounds counted
      tests: drafts tested
      conventions: conventions of other tools, over emitted tokens of rounds with room for γ + 1
        tokens
      greedy_divergences: where greedy output is not the target's own; null unless greedy
      fallback_share: share of rounds that the model drafted, of n-grams with a model to fall back on;
        null for other drafts
    """

    lookahead: int
    tokens_per_round: Interval
    expected_tokens_per_round: Interval | None
    per_test: Interval
    tar: Interval
    tar_alpha: Interval
    survival: list[Interval]
    self_check: float
    rounds: int
    tests: int
    conventions: dict[str, Interval]
    greedy_divergences: list[Divergence] | None = None
    fallback_share: Interval | None = None

    @classmethod
    def of(cls, result: LookaheadResult) -> LookaheadReport:
        """The report on one lookahead."""
        return document(
            cls,
            result.statistics,
            lookahead=result.lookahead,
            expected_tokens_per_round=result.expected,
            tar=result.tar,
            tar_alpha=result.statistics.tar,
            conventions=result.conventions,
            greedy_divergences=result.divergences,
        )


@dataclass(frozen=True)
class VerifyCost:
    """The cost of a verify pass.

    Attributes:
      lookahead: drafts per round, γ
      target_steps: time of a pass over γ + 1 tokens, in target steps
    """

    lookahead: int
    target_steps: float


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round of one row, by the costs of its parts alone. It leaves out what a model reads to
    catch up after rounds that n-grams drafted.

    Attributes:
      lookahead: drafts per round, γ
      target_steps: mean time of a round, s·γ·d + v, where the draft takes its steps in a share s of the
        rounds, in target steps
      speedup: τ over this time
    """

    lookahead: int
    target_steps: float
    speedup: float


@dataclass(frozen=True)
class CostsReport:
    """The costs of a round's parts, one row at a time on this machine.

    Attributes:
      target_step_seconds: time of one decoding step of the target
      draft_step: d, time of a draft step in target steps, where n-grams draft first that of the model
        to fall back on; null for n-grams and heads
      verify_passes: v at each lookahead
      lookahead_command: the sdsl lookahead command for these costs; null where n-grams draft, for
        heads, or if every draft was accepted
      rounds: the cost of a round at each lookahead; empty for heads, whose steps are not timed
    """

    target_step_seconds: float
    draft_step: float | None
    verify_passes: list[VerifyCost]
    lookahead_command: str | None
    rounds: list[RoundCost]


@dataclass(frozen=True)
class ExpectedReport:
    """Token verification in expectation at one lookahead, from the target's own samples.

    Attributes:
      lookahead: drafts per round, γ
      tokens_per_round: τ
      accepted_per_test: accepted over tested drafts
      alpha: the α whose geometric formula gives τ
    """

    lookahead: int
    tokens_per_round: Interval
    accepted_per_test: Interval
    alpha: Interval


@dataclass(frozen=True)
class OtherTemperature:
    """α at another temperature, in the contexts of the run.

    Attributes:
      temperature: the other temperature
      alpha: mean of Σ min(p, q)
    """

    temperature: float
    alpha: Interval


@dataclass(frozen=True)
class ReplayReport:
    """What one run would have given otherwise, from its stored distributions.

    Attributes:
      lookahead: drafts per round, γ
      rounds: rounds replayed
      token_accepted: accepted drafts per round under token verification
      block_accepted: the same blocks under block verification
      gain: difference of the two, paired by block
      temperatures: α in the contexts of the tested drafts
    """

    lookahead: int
    rounds: int
    token_accepted: Interval
    block_accepted: Interval
    gain: Interval
    temperatures: list[OtherTemperature]

    @classmethod
    def of(cls, replay: Replay) -> ReplayReport:
        """The report on the replay of one run."""
        return document(
            cls,
            replay.verification,
            lookahead=replay.lookahead,
            temperatures=[
                OtherTemperature(float(t.sampling.temperature), t.acceptance)
                for t in replay.temperatures
            ],
        )


@dataclass(frozen=True)
class PromptsReport:
    """The prompts of a measurement.

    Attributes:
      source: what the prompts are
      count: prompts used
      available: prompts to choose from
      cut: prompts that were longer than allowed
      shortest: tokens of the shortest prompt
      longest: tokens of the longest prompt
    """

    source: str
    count: int
    available: int
    cut: int
    shortest: int
    longest: int

    @classmethod
    def of(cls, prompts: Prompts) -> PromptsReport:
        """The report on prompts."""
        lengths = prompts.lengths
        return document(
            cls,
            prompts,
            source=prompts.domain,
            count=len(lengths),
            shortest=int(lengths.min()),
            longest=int(lengths.max()),
        )


@dataclass(frozen=True)
class PairReport:
    """What `sdsl measure` reports on a pair.

    Attributes:
      target: the model to speed up
      draft: the model that proposes, n-grams, or n-grams with a model to fall back on
      temperature: sampling temperature of both models
      top_k: filter of the sampling
      top_p: filter of the sampling
      min_p: filter of the sampling
      verification: token or block
      lossless: whether the output is distributed as the target's own
      how: what all pairs of a folder of records share
      alpha: E Σ min(p, q) on the target's own samples
      alpha_tokens: tokens of these samples
      alpha_on_prompts: E Σ min(p, q) on the prompts
      per_lookahead: a run of the decoder for each lookahead
      generation: times of single requests
      convention_definitions: source and definition of each
      prompts: the prompts
      new_tokens: tokens generated for each prompt
      stop_tokens: ids after which a row stops
      seed: seed of all sampling
      confidence: confidence of the intervals
      warnings: what a reader should know, a sentence each
      expected: token verification in expectation, at every γ
      costs: costs in target steps; null if nothing was timed
      replay: counterfactuals of runs that were asked for
      against: another draft on the same samples; null if there is none
      comparison: the draft (A) compared with the other one (B); null if there is none
    """

    target: ModelReport
    draft: ModelReport | NgramReport | HybridReport
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    verification: str
    lossless: bool
    how: dict[str, Any]
    alpha: Interval | None
    alpha_tokens: int
    alpha_on_prompts: Interval | None
    per_lookahead: list[LookaheadReport]
    generation: list[GenerationTimes]
    convention_definitions: dict[str, dict[str, str]]
    prompts: PromptsReport
    new_tokens: int
    stop_tokens: list[int]
    seed: int
    confidence: float
    warnings: list[str]
    expected: list[ExpectedReport]
    costs: CostsReport | None
    replay: list[ReplayReport]
    against: ModelReport | None
    comparison: DraftComparison | None


@dataclass(frozen=True)
class RetokenisedRole:
    """One of two models with different tokenizers, on the target's text.

    Attributes:
      model_id: name of the model
      folder: where it was read from
      params_total: all parameters
      identity: digest of configuration, weights and tokenizer
      loss_nats: cross-entropy, nats per token
      bits_per_byte: loss per byte of text, bits
      tokens_per_stretch: its tokens per stretch
    """

    model_id: str
    folder: str
    params_total: int
    identity: str
    loss_nats: Interval
    bits_per_byte: Interval
    tokens_per_stretch: float


@dataclass(frozen=True)
class StretchPrompts:
    """The prompts of a re-tokenised comparison.

    Attributes:
      source: what the prompts are
      count: prompts used
      with_stretches: prompts whose continuation held a stretch
    """

    source: str
    count: int
    with_stretches: int


@dataclass(frozen=True)
class RetokenisedReport:
    """What `sdsl measure --retokenised` reports; nothing was decoded.

    Attributes:
      target: the model that writes
      draft: the model that is compared with it
      lossless: always false
      protocol: how the two were compared
      temperature: sampling temperature
      alpha_retokenised: mean of min(1, q/p) over stretches
      stretches: number of stretches
      prompts: the prompts
      new_tokens: tokens generated for each prompt
      seed: seed of all sampling
      confidence: confidence of the intervals
      warnings: what a reader should know, a sentence each
    """

    target: RetokenisedRole
    draft: RetokenisedRole
    lossless: bool
    protocol: str
    temperature: float
    alpha_retokenised: Interval
    stretches: int
    prompts: StretchPrompts
    new_tokens: int
    seed: int
    confidence: float
    warnings: list[str]

    @classmethod
    def of(
        cls,
        draft: LoadedModel,
        target: LoadedModel,
        prompts: Prompts,
        settings: PairSettings,
        result: Retokenised,
    ) -> RetokenisedReport:
        """The report on a re-tokenised comparison."""
        roles = {
            role: document(
                RetokenisedRole,
                result.roles[role],
                model.record,
                folder=str(model.folder),
                identity=identity(model),
            )
            for role, model in (("target", target), ("draft", draft))
        }
        return document(
            cls,
            result,
            settings,
            settings.sampling,
            **roles,
            lossless=False,
            protocol="re-tokenised: the target's text in the draft's tokens, compared between places "
            "where both cut it; nothing was decoded",
            alpha_retokenised=result.alpha,
            prompts=StretchPrompts(prompts.domain, len(prompts.lengths), result.rows),
            warnings=loading_warnings(draft, target),
        )


def write_tokens(path: Path, results: Sequence[LookaheadResult], tokenizer: Tokenizer) -> None:
    """Writes the generated texts, one JSON object per line: row, lookahead, prompt, text, tokens, and
    why the row stopped.

    Raises:
      SdslError: the file cannot be written.
    """
    lines = []
    for result in results:
        decoded = result.decoded
        assert decoded.events is not None
        stopped = (np.asarray(decoded.events.stop_reason) == STOP_TOKEN).any(axis=1)
        for row, (ids, begin, end) in enumerate(
            zip(decoded.tokens, decoded.prompt_lengths, decoded.lengths)
        ):
            line = {
                "lookahead": result.lookahead,
                "row": row,
                "prompt": tokenizer.decode(ids[:begin]),
                "text": tokenizer.decode(ids[begin:end]),
                "tokens": np.asarray(ids[begin:end]).tolist(),
                "stopped_by": "stop token" if stopped[row] else "length",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
