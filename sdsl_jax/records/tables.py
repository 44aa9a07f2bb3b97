"""The rows of the tables that cross stages: one frozen dataclass per table, every column with its meaning and unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelRecord:
    """One trained model; a row of `models.csv`.

    Attributes:
      model_id: name of the model, unique in the study
      role: draft or target
      params_nonembedding: parameters other than embedding and head
      params_total: all parameters
      train_tokens: tokens trained on, repetitions counted; since its parent, if it has one; 0 of a
        published model, where they are not known
      seed: seed of initialisation and data order
      loss_nats: cross-entropy on the test split, nats per token; of a truncated readout over the
        tokens that the model can give
      perplexity: exp(loss_nats)
      params_digest: SHA-256 over the parameters in canonical order; of a published model,
        configuration, all weights and tokenizer, after the kind of digest and a colon
      loss_nats_low: lower end of the 90% interval of loss_nats, windows as clusters
      loss_nats_high: upper end of the 90% interval of loss_nats
      validation_loss_nats: cross-entropy on the validation split, nats per token
      bits_per_byte: loss_nats / ln 2 / bytes per token
      validation_bits_per_byte: validation_loss_nats / ln 2 / bytes per token
      evaluation_windows: windows of each split that the losses were asked for
      epochs: train_tokens / tokens of the training split
      unique_tokens: different tokens trained on, at most those of the training split
      layers: Transformer blocks
      width: size of the residual stream
      flops_per_token: forward FLOPs per token, head and attention included
      weight_bytes: bytes of the weights in float32
      learning_rate: peak learning rate
      batch_size: sequences per step
      steps: optimiser steps
      train_seconds: wall-clock seconds of training that led to this model
      compile_seconds: of train_seconds, those spent compiling
      data_wait_share: share of the other train_seconds in which the device waited for a batch
      spikes: steps whose loss was a spike
      skipped_steps: steps that changed nothing, their loss or gradient not being finite
      data_digest: SHA-256 over the tokenised corpus and its splits; of a published model, of the
        corpus that its losses are of
      device: device trained on; of a published model, that its losses were measured on
      versions: versions of python, jax and flax
      checkpoint: folder of the weights, relative to the study's folder
      objective: what the model was trained for, such as tv; empty for the text alone, from random
        weights
      teacher_digest: params_digest of the target whose probabilities it learnt from
      parent_digest: params_digest of the model that its training started from
      kind: what kind of draft it is: empty for a model of its own; head for one that reads its
        target's hidden states, parallel-head if one pass of it gives all drafts, table-head if
        embedding and readout are its target's and not counted; early-exit for the
        target's first blocks with a readout of their own, early-exit-trained if the last of these
        blocks is trained as well; pruned for what was cut out of the target
        and trained on; nested for a slice of a model that was trained together with it
      train_flops: FLOPs of its training and of that of its parents, forward and backward, without
        those of a teacher or of a target that it was cut out of
      readout: ids that it can propose, the most frequent of its training text; 0 for all
    """

    model_id: str
    role: str
    params_nonembedding: int
    params_total: int
    train_tokens: int
    seed: int
    loss_nats: float
    perplexity: float
    params_digest: str = ""
    loss_nats_low: float = math.nan
    loss_nats_high: float = math.nan
    validation_loss_nats: float = math.nan
    bits_per_byte: float = math.nan
    validation_bits_per_byte: float = math.nan
    evaluation_windows: int = 0
    epochs: float = math.nan
    unique_tokens: int = 0
    layers: int = 0
    width: int = 0
    flops_per_token: float = math.nan
    weight_bytes: int = 0
    learning_rate: float = math.nan
    batch_size: int = 0
    steps: int = 0
    train_seconds: float = math.nan
    compile_seconds: float = math.nan
    data_wait_share: float = math.nan
    spikes: int = 0
    skipped_steps: int = 0
    data_digest: str = ""
    device: str = ""
    versions: str = ""
    checkpoint: str = ""
    objective: str = ""
    teacher_digest: str = ""
    parent_digest: str = ""
    kind: str = ""
    train_flops: float = math.nan
    readout: int = 0

    @property
    def of_text(self) -> bool:
        """Whether it is a model of its own that was trained on the text alone, from random weights."""
        told = self.teacher_digest or self.parent_digest or self.objective not in ("", "ce")
        return not (told or self.kind)

    @property
    def trained_for(self) -> str:
        """What the model was trained for: "text" from random weights, or else its kind and objective;
        and the ids of a truncated readout, such as "tv of 4096 ids".

        One law describes models of one kind: at equal loss, a draft trained for acceptance has more
        of it, tokens since a parent are not all its tokens, and a truncated readout bounds it.
        """
        objective = "text" if self.of_text else f"{self.kind} {self.objective}".strip()
        return objective + (f" of {self.readout} ids" if self.readout else "")

    @property
    def training_is_known(self) -> bool:
        """Whether a law of size and data can hold for it: of published models the tokens are not on
        record."""
        return self.train_tokens > 0

    @property
    def training_flops(self) -> float:
        """`train_flops`; of records without the column, those of a model trained from random weights."""
        if not math.isnan(self.train_flops) or self.parent_digest or self.kind:
            return self.train_flops
        return 3 * self.flops_per_token * self.train_tokens

    @property
    def tokens_per_second(self) -> float:
        """Speed of training without compilation; not a number where it was not recorded."""
        seconds = self.train_seconds - (
            0.0 if math.isnan(self.compile_seconds) else self.compile_seconds
        )
        return self.train_tokens / seconds if seconds > 0 else math.nan


@dataclass(frozen=True)
class AcceptanceRecord:
    """One estimate of the acceptance probability of a pair; a row of `acceptance.csv`.

    Estimators: `teacher_forced_text` and `teacher_forced_samples` are E Σ_v min(p_v, q_v)
    (Leviathan et al., 2211.17192) on held-out text and on the target's own samples, of a head those
    of its first draft; `by_draft_samples` is that of a head's draft number `lookahead` on samples;
    `decoded_per_test` is accepted over tested drafts in the live decoder; `decoded_tar` inverts 1 +
    γ·TAR = (1 − α^(γ+1))/(1 − α) (arXiv 2603.11053).

    Attributes:
      draft_id: draft model
      target_id: target model
      estimator: how alpha was measured
      lookahead: draft tokens per round, γ; 0 where the estimator has none
      temperature: sampling temperature
      domain: text that the contexts come from
      alpha: acceptance probability
      alpha_low: lower end of its interval, prompts as clusters
      alpha_high: upper end of its interval
      confidence: confidence of the interval
      clusters: windows or prompts
      tokens: positions that were averaged
      alpha_bound: p(K), which alpha cannot exceed: the target's mean probability of the K ids that a
        truncated draft can give; 1 for other drafts, and not a number where it was not measured
    """

    draft_id: str
    target_id: str
    estimator: str
    lookahead: int
    temperature: float
    domain: str
    alpha: float
    alpha_low: float = math.nan
    alpha_high: float = math.nan
    confidence: float = math.nan
    clusters: int = 0
    tokens: int = 0
    alpha_bound: float = math.nan


@dataclass(frozen=True)
class SurvivalRecord:
    """P(the first k drafts of a round are all accepted) at one lookahead; a row of `survival.csv`.

    Attributes:
      draft_id: draft model
      target_id: target model
      lookahead: draft tokens per round, γ
      temperature: sampling temperature
      domain: text that the prompts come from
      position: k, from 1 to the lookahead
      survival: share of rounds whose first k drafts were accepted
      survival_low: lower end of its interval, prompts as clusters
      survival_high: upper end of its interval
      confidence: confidence of the interval
      rounds: rounds observed
      tokens_per_round: tau = 1 + sum of survival over positions, of the same lookahead
      tokens_per_round_low: lower end of its interval
      tokens_per_round_high: upper end of its interval
    """

    draft_id: str
    target_id: str
    lookahead: int
    temperature: float
    domain: str
    position: int
    survival: float
    survival_low: float = math.nan
    survival_high: float = math.nan
    confidence: float = math.nan
    rounds: int = 0
    tokens_per_round: float = math.nan
    tokens_per_round_low: float = math.nan
    tokens_per_round_high: float = math.nan


@dataclass(frozen=True)
class LatencyRecord:
    """The time of one decoding step; a row of `latency.csv`.

    Attributes:
      model_id: model that was timed
      operation: decode (one new token) or verify (several)
      width: new tokens per row in the step
      batch: rows
      context: positions already in the cache
      seconds: median seconds of the step
      seconds_low: lower end of the median's interval
      seconds_high: upper end of the median's interval
      confidence: confidence of the interval
      repetitions: timed repetitions, each of several steps
      device: device timed on
    """

    model_id: str
    operation: str
    width: int
    batch: int
    context: int
    seconds: float
    seconds_low: float = math.nan
    seconds_high: float = math.nan
    confidence: float = math.nan
    repetitions: int = 0
    device: str = ""


@dataclass(frozen=True)
class ClockRecord:
    """Speculative against autoregressive decoding on the clock; a row of `clock.csv`.

    Attributes:
      draft_id: draft model
      target_id: target model
      lookahead: draft tokens per round, γ
      temperature: sampling temperature
      batch: rows
      speculative_tokens_per_second: median over repetitions
      autoregressive_tokens_per_second: median over repetitions, interleaved in the same process
      tokens_per_round: emitted tokens per row and round in the timed runs
      speedup: median of the ratio of the two rates
      speedup_low: smallest ratio
      speedup_high: largest ratio
      repetitions: interleaved repetitions
      device: device timed on
    """

    draft_id: str
    target_id: str
    lookahead: int
    temperature: float
    batch: int
    speculative_tokens_per_second: float
    autoregressive_tokens_per_second: float
    tokens_per_round: float
    speedup: float
    speedup_low: float = math.nan
    speedup_high: float = math.nan
    repetitions: int = 0
    device: str = ""


@dataclass(frozen=True)
class RunRecord:
    """One timed run of a decoder; a row of `runs.csv`. All decoders of a block ran one after
    another, repetition by repetition.

    Speed-ups, and how predictions compare with them, follow from these rows alone.

    Attributes:
      draft_id: draft model; empty for plain decoding
      target_id: target model
      lookahead: draft tokens per round, γ; 0 for plain decoding
      batch: rows decoded together
      block: decoders of one block, plain decoding among them, ran interleaved
      repetition: number of the repetition
      seconds: seconds of all rounds, prefill and compilation not included
      rounds: rounds of the batch; steps, for plain decoding
      tokens: tokens that all rows emitted, up to the first round that could stop one of them
      context: cache positions that every pass reads
      temperature: sampling temperature
      threads: threads that a computation may use; 0 if not set
      device: device timed on
    """

    draft_id: str
    target_id: str
    lookahead: int
    batch: int
    block: int
    repetition: int
    seconds: float
    rounds: int
    tokens: int
    context: int
    temperature: float
    threads: int = 0
    device: str = ""


@dataclass(frozen=True)
class RaceRecord:
    """One decoder on one prompt of a race; a row of `race.csv`. All decoders of one temperature and
    part ran one after another, prompt by prompt.

    Attributes:
      target_id: target model
      draft_id: draft model; "ngram" for n-grams alone; empty for plain decoding
      lookahead: draft tokens per round, γ; 0 for plain decoding
      ngram: n-grams of at least so many tokens drafted first; 0 for the draft alone
      temperature: sampling temperature
      part: "choosing", or "judging" for the winner of it beside plain decoding
      domain: kind of text
      prompt: number of the prompt in its part
      seconds: seconds of all rounds, prefill and compilation not included
      rounds: rounds; steps, for plain decoding
      tokens: tokens emitted
      threads: threads that a computation may use; 0 if not set
      device: device timed on
    """

    target_id: str
    draft_id: str
    lookahead: int
    ngram: int
    temperature: float
    part: str
    domain: str
    prompt: int
    seconds: float
    rounds: int
    tokens: int
    threads: int = 0
    device: str = ""


@dataclass(frozen=True)
class GenerationRecord:
    """The time of single requests, as a caller of the decoder sees it; a row of `generation.csv`.

    Attributes:
      draft_id: draft model; empty for the target alone
      target_id: target model
      lookahead: draft tokens per round, γ; 0 for the target alone
      temperature: sampling temperature
      domain: text that the prompts come from
      new_tokens: tokens of a request
      first_token_seconds: median seconds to the first token (TTFT)
      per_token_seconds: median seconds for each token after the first (TPOT)
      total_seconds: median seconds of a request
      total_seconds_low: lower end of the median's interval
      total_seconds_high: upper end of the median's interval
      speedup: median of the target's total over this total, request by request
      speedup_low: lower end of the median's interval
      speedup_high: upper end of the median's interval
      confidence: confidence of the intervals
      requests: timed requests of one row each
      dtype: type of the target's weights and caches
      device: device timed on
    """

    draft_id: str
    target_id: str
    lookahead: int
    temperature: float
    domain: str
    new_tokens: int
    first_token_seconds: float
    per_token_seconds: float
    total_seconds: float
    total_seconds_low: float = math.nan
    total_seconds_high: float = math.nan
    speedup: float = math.nan
    speedup_low: float = math.nan
    speedup_high: float = math.nan
    confidence: float = math.nan
    requests: int = 0
    dtype: str = "float32"
    device: str = ""


@dataclass(frozen=True)
class ExpectedRecord:
    """What token verification gives at one lookahead in expectation, from the target's samples
    alone; a row of `expected.csv`.

    Nothing is decoded: the tokens per round of every lookahead follow from min(1, q(y)/p(y)) of
    each sampled token y, by `theory.rounds_over_sample`. Intervals take samples as clusters.

    Attributes:
      draft_id: draft model
      target_id: target model
      lookahead: draft tokens per round, γ
      temperature: sampling temperature
      domain: text that the prompts come from
      tokens_per_round: tau = 1 + sum of survival, at block starts of this lookahead
      tokens_per_round_low: lower end of its interval
      tokens_per_round_high: upper end of its interval
      accepted_per_test: expected accepted over expected tested drafts
      accepted_per_test_low: lower end of its interval
      accepted_per_test_high: upper end of its interval
      alpha: the alpha whose geometric formula gives tokens_per_round at this lookahead
      alpha_low: lower end of its interval
      alpha_high: upper end of its interval
      alpha_change: alpha minus alpha at lookahead 1, of the same samples
      alpha_change_low: lower end of its interval
      alpha_change_high: upper end of its interval
      confidence: confidence of the intervals
      samples: samples of the target
      rounds: expected number of rounds behind the row
      round_cost: FLOPs of a round in decoding steps of the target; a verify pass counts as one step
    """

    draft_id: str
    target_id: str
    lookahead: int
    temperature: float
    domain: str
    tokens_per_round: float
    tokens_per_round_low: float = math.nan
    tokens_per_round_high: float = math.nan
    accepted_per_test: float = math.nan
    accepted_per_test_low: float = math.nan
    accepted_per_test_high: float = math.nan
    alpha: float = math.nan
    alpha_low: float = math.nan
    alpha_high: float = math.nan
    alpha_change: float = math.nan
    alpha_change_low: float = math.nan
    alpha_change_high: float = math.nan
    confidence: float = math.nan
    samples: int = 0
    rounds: float = math.nan
    round_cost: float = math.nan


@dataclass(frozen=True)
class LossRecord:
    """The loss of a model on some text; a row of `losses.csv`.

    Attributes:
      model_id: model
      domain: text
      loss_nats: cross-entropy, nats per token; of a truncated readout over the tokens that the model
        can give
      loss_nats_low: lower end of its interval, windows as clusters
      loss_nats_high: upper end of its interval
      entropy_nats: mean entropy of the model's own next-token distributions there
      bits_per_byte: loss_nats / ln 2 / bytes per token of this text
      confidence: confidence of the interval
      windows: windows of text
      tokens: tokens predicted
    """

    model_id: str
    domain: str
    loss_nats: float
    loss_nats_low: float = math.nan
    loss_nats_high: float = math.nan
    entropy_nats: float = math.nan
    bits_per_byte: float = math.nan
    confidence: float = math.nan
    windows: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class TimingRecord:
    """One operation that was timed to calibrate a device; a row of `timings.csv`. Coefficients follow from these rows alone.

    Attributes:
      operation: step (plain decoding), verify (a pass over several tokens) or round (drafts and
        their verification)
      target_id: model of a pass, or target of a round, by width, layers and vocabulary
      tokens: new tokens of each row in a pass; draft tokens, γ, of a round
      batch: rows
      context: cache positions that every pass reads, empty ones included
      seconds: median seconds of the operation
      target_params: non-embedding parameters of the target
      target_layers: Transformer blocks of the target
      target_width: size of the residual stream of the target
      target_query_width: query heads times head size of the target
      target_kv_width: key-value heads times head size of the target
      target_vocab_size: entries of the vocabulary of the target
      target_embedding_tables: 1 where embedding and head share a matrix, 2 where they do not of the
        target
      draft_id: draft of a round; empty for a pass
      draft_params: non-embedding parameters of the draft; 0 without a draft
      draft_layers: Transformer blocks of the draft
      draft_width: size of the residual stream of the draft
      draft_query_width: query heads times head size of the draft
      draft_kv_width: key-value heads times head size of the draft
      draft_vocab_size: entries of the vocabulary of the draft
      draft_embedding_tables: 1 where embedding and head share a matrix, 2 where they do not of the
        draft
      seconds_low: lower end of the median's interval
      seconds_high: upper end of the median's interval
      confidence: confidence of the interval
      repetitions: timed repetitions, each of many operations
      held_out: 1 where a model of the row was held out from the fit whose errors are reported
      threads: threads that a computation may use on a CPU; 0 on an accelerator, or if not known
      dtype: type of weights and caches
      device: device timed on
    """

    operation: str
    target_id: str
    tokens: int
    batch: int
    context: int
    seconds: float
    target_params: int
    target_layers: int
    target_width: int
    target_query_width: int
    target_kv_width: int
    target_vocab_size: int
    target_embedding_tables: int
    draft_id: str = ""
    draft_params: int = 0
    draft_layers: int = 0
    draft_width: int = 0
    draft_query_width: int = 0
    draft_kv_width: int = 0
    draft_vocab_size: int = 0
    draft_embedding_tables: int = 0
    seconds_low: float = math.nan
    seconds_high: float = math.nan
    confidence: float = math.nan
    repetitions: int = 0
    held_out: int = 0
    threads: int = 0
    dtype: str = "float32"
    device: str = ""


TABLES: dict[str, type] = {
    "models": ModelRecord,
    "acceptance": AcceptanceRecord,
    "survival": SurvivalRecord,
    "expected": ExpectedRecord,
    "generation": GenerationRecord,
    "latency": LatencyRecord,
    "clock": ClockRecord,
    "runs": RunRecord,
    # Models of other folders that took part in those runs.
    "timed_models": ModelRecord,
    "race": RaceRecord,
    # Exact acceptance at other temperatures, in other domains and of other drafts; those drafts;
    # everybody's losses there.
    "conditions": AcceptanceRecord,
    "other_models": ModelRecord,
    "losses": LossRecord,
    # What a device was calibrated with; no study writes it.
    "timings": TimingRecord,
}
# Tables that a study may leave empty: clock rows need weights, survival a decoder that ran, and
# conditions must be asked for.
MAY_BE_EMPTY = (
    "survival",
    "clock",
    "generation",
    "timings",
    "runs",
    "timed_models",
    "race",
    "conditions",
    "other_models",
    "losses",
)


def longest_trained(models: Iterable[ModelRecord], role: str) -> list[ModelRecord]:
    """For every size of one role, the model that was trained longest; of several seeds the
    smallest. Sizes ascend.
    """
    best: dict[int, ModelRecord] = {}
    for model in models:
        rival = best.get(model.params_nonembedding)
        if model.role == role and (
            rival is None or (model.train_tokens, -model.seed) > (rival.train_tokens, -rival.seed)
        ):
            best[model.params_nonembedding] = model
    return [best[size] for size in sorted(best)]
