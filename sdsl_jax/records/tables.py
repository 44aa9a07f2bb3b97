"""The rows of the tables that cross stages: one frozen dataclass per table, every column with its meaning and unit."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1


def _column(description: str, **default: Any) -> Any:
    return dataclasses.field(metadata={"description": description}, **default)


@dataclass(frozen=True)
class ModelRecord:
    """One trained model; a row of `models.csv`."""

    model_id: str = _column("name of the model, unique in the study")
    role: str = _column("draft or target")
    params_nonembedding: int = _column("parameters other than embedding and head")
    params_total: int = _column("all parameters")
    train_tokens: int = _column("tokens trained on, repetitions counted")
    seed: int = _column("seed of initialisation and data order")
    loss_nats: float = _column("cross-entropy on the test split, nats per token")
    perplexity: float = _column("exp(loss_nats)")
    params_digest: str = _column(
        "SHA-256 over the parameters in canonical order; of a published model, configuration, all weights and tokenizer, "
        "after the kind of digest and a colon",
        default="",
    )
    loss_nats_low: float = _column(
        "lower end of the 90% interval of loss_nats, windows as clusters", default=math.nan
    )
    loss_nats_high: float = _column("upper end of the 90% interval of loss_nats", default=math.nan)
    validation_loss_nats: float = _column(
        "cross-entropy on the validation split, nats per token", default=math.nan
    )
    bits_per_byte: float = _column("loss_nats / ln 2 / bytes per token", default=math.nan)
    validation_bits_per_byte: float = _column(
        "validation_loss_nats / ln 2 / bytes per token", default=math.nan
    )
    evaluation_windows: int = _column(
        "windows of each split that the losses were asked for", default=0
    )
    epochs: float = _column("train_tokens / tokens of the training split", default=math.nan)
    unique_tokens: int = _column(
        "different tokens trained on, at most those of the training split", default=0
    )
    layers: int = _column("Transformer blocks", default=0)
    width: int = _column("size of the residual stream", default=0)
    flops_per_token: float = _column(
        "forward FLOPs per token, head and attention included", default=math.nan
    )
    weight_bytes: int = _column("bytes of the weights in float32", default=0)
    learning_rate: float = _column("peak learning rate", default=math.nan)
    batch_size: int = _column("sequences per step", default=0)
    steps: int = _column("optimiser steps", default=0)
    train_seconds: float = _column(
        "wall-clock seconds of training that led to this model", default=math.nan
    )
    compile_seconds: float = _column("of train_seconds, those spent compiling", default=math.nan)
    data_wait_share: float = _column(
        "share of the other train_seconds in which the device waited for a batch", default=math.nan
    )
    spikes: int = _column("steps whose loss was a spike", default=0)
    skipped_steps: int = _column(
        "steps that changed nothing, their loss or gradient not being finite", default=0
    )
    data_digest: str = _column("SHA-256 over the tokenised corpus and its splits", default="")
    device: str = _column("device trained on", default="")
    versions: str = _column("versions of python, jax and flax", default="")
    checkpoint: str = _column("folder of the weights, relative to the study's folder", default="")

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
    (Leviathan et al., 2211.17192) on held-out text and on the target's own samples;
    `decoded_per_test` is accepted over tested drafts in the live decoder; `decoded_tar` inverts 1 +
    γ·TAR = (1 − α^(γ+1))/(1 − α) (arXiv 2603.11053).
    """

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    estimator: str = _column("how alpha was measured")
    lookahead: int = _column("draft tokens per round, γ; 0 where the estimator has none")
    temperature: float = _column("sampling temperature")
    domain: str = _column("text that the contexts come from")
    alpha: float = _column("acceptance probability")
    alpha_low: float = _column("lower end of its interval, prompts as clusters", default=math.nan)
    alpha_high: float = _column("upper end of its interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    clusters: int = _column("windows or prompts", default=0)
    tokens: int = _column("positions that were averaged", default=0)


@dataclass(frozen=True)
class SurvivalRecord:
    """P(the first k drafts of a round are all accepted) at one lookahead; a row of `survival.csv`."""

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ")
    temperature: float = _column("sampling temperature")
    domain: str = _column("text that the prompts come from")
    position: int = _column("k, from 1 to the lookahead")
    survival: float = _column("share of rounds whose first k drafts were accepted")
    survival_low: float = _column(
        "lower end of its interval, prompts as clusters", default=math.nan
    )
    survival_high: float = _column("upper end of its interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    rounds: int = _column("rounds observed", default=0)
    tokens_per_round: float = _column(
        "tau = 1 + sum of survival over positions, of the same lookahead", default=math.nan
    )
    tokens_per_round_low: float = _column("lower end of its interval", default=math.nan)
    tokens_per_round_high: float = _column("upper end of its interval", default=math.nan)


@dataclass(frozen=True)
class LatencyRecord:
    """The time of one decoding step; a row of `latency.csv`."""

    model_id: str = _column("model that was timed")
    operation: str = _column("decode (one new token) or verify (several)")
    width: int = _column("new tokens per row in the step")
    batch: int = _column("rows")
    context: int = _column("positions already in the cache")
    seconds: float = _column("median seconds of the step")
    seconds_low: float = _column("lower end of the median's interval", default=math.nan)
    seconds_high: float = _column("upper end of the median's interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    repetitions: int = _column("timed repetitions, each of several steps", default=0)
    device: str = _column("device timed on", default="")


@dataclass(frozen=True)
class ClockRecord:
    """Speculative against autoregressive decoding on the clock; a row of `clock.csv`."""

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ")
    temperature: float = _column("sampling temperature")
    batch: int = _column("rows")
    speculative_tokens_per_second: float = _column("median over repetitions")
    autoregressive_tokens_per_second: float = _column(
        "median over repetitions, interleaved in the same process"
    )
    tokens_per_round: float = _column("emitted tokens per row and round in the timed runs")
    speedup: float = _column("median of the ratio of the two rates")
    speedup_low: float = _column("smallest ratio", default=math.nan)
    speedup_high: float = _column("largest ratio", default=math.nan)
    repetitions: int = _column("interleaved repetitions", default=0)
    device: str = _column("device timed on", default="")


@dataclass(frozen=True)
class RunRecord:
    """One timed run of a decoder; a row of `runs.csv`. All decoders of a block ran one after
    another, repetition by repetition.

    Speed-ups, and how predictions compare with them, follow from these rows alone.
    """

    draft_id: str = _column("draft model; empty for plain decoding")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ; 0 for plain decoding")
    batch: int = _column("rows decoded together")
    block: int = _column("decoders of one block, plain decoding among them, ran interleaved")
    repetition: int = _column("number of the repetition")
    seconds: float = _column("seconds of all rounds, prefill and compilation not included")
    rounds: int = _column("rounds of the batch; steps, for plain decoding")
    tokens: int = _column(
        "tokens that all rows emitted, up to the first round that could stop one of them"
    )
    context: int = _column("cache positions that every pass reads")
    temperature: float = _column("sampling temperature")
    threads: int = _column("threads that a computation may use; 0 if not set", default=0)
    device: str = _column("device timed on", default="")


@dataclass(frozen=True)
class GenerationRecord:
    """The time of single requests, as a caller of the decoder sees it; a row of `generation.csv`."""

    draft_id: str = _column("draft model; empty for the target alone")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ; 0 for the target alone")
    temperature: float = _column("sampling temperature")
    domain: str = _column("text that the prompts come from")
    new_tokens: int = _column("tokens of a request")
    first_token_seconds: float = _column("median seconds to the first token (TTFT)")
    per_token_seconds: float = _column("median seconds for each token after the first (TPOT)")
    total_seconds: float = _column("median seconds of a request")
    total_seconds_low: float = _column("lower end of the median's interval", default=math.nan)
    total_seconds_high: float = _column("upper end of the median's interval", default=math.nan)
    speedup: float = _column(
        "median of the target's total over this total, request by request", default=math.nan
    )
    speedup_low: float = _column("lower end of the median's interval", default=math.nan)
    speedup_high: float = _column("upper end of the median's interval", default=math.nan)
    confidence: float = _column("confidence of the intervals", default=math.nan)
    requests: int = _column("timed requests of one row each", default=0)
    dtype: str = _column("type of the target's weights and caches", default="float32")
    device: str = _column("device timed on", default="")


@dataclass(frozen=True)
class ExpectedRecord:
    """What token verification gives at one lookahead in expectation, from the target's samples
    alone; a row of `expected.csv`.

    Nothing is decoded: the tokens per round of every lookahead follow from min(1, q(y)/p(y)) of
    each sampled token y, by `theory.rounds_over_sample`. Intervals take samples as clusters.
    """

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ")
    temperature: float = _column("sampling temperature")
    domain: str = _column("text that the prompts come from")
    tokens_per_round: float = _column(
        "tau = 1 + sum of survival, at block starts of this lookahead"
    )
    tokens_per_round_low: float = _column("lower end of its interval", default=math.nan)
    tokens_per_round_high: float = _column("upper end of its interval", default=math.nan)
    accepted_per_test: float = _column(
        "expected accepted over expected tested drafts", default=math.nan
    )
    accepted_per_test_low: float = _column("lower end of its interval", default=math.nan)
    accepted_per_test_high: float = _column("upper end of its interval", default=math.nan)
    alpha: float = _column(
        "the alpha whose geometric formula gives tokens_per_round at this lookahead",
        default=math.nan,
    )
    alpha_low: float = _column("lower end of its interval", default=math.nan)
    alpha_high: float = _column("upper end of its interval", default=math.nan)
    alpha_change: float = _column(
        "alpha minus alpha at lookahead 1, of the same samples", default=math.nan
    )
    alpha_change_low: float = _column("lower end of its interval", default=math.nan)
    alpha_change_high: float = _column("upper end of its interval", default=math.nan)
    confidence: float = _column("confidence of the intervals", default=math.nan)
    samples: int = _column("samples of the target", default=0)
    rounds: float = _column("expected number of rounds behind the row", default=math.nan)


@dataclass(frozen=True)
class LossRecord:
    """The loss of a model on some text; a row of `losses.csv`."""

    model_id: str = _column("model")
    domain: str = _column("text")
    loss_nats: float = _column("cross-entropy, nats per token")
    loss_nats_low: float = _column(
        "lower end of its interval, windows as clusters", default=math.nan
    )
    loss_nats_high: float = _column("upper end of its interval", default=math.nan)
    entropy_nats: float = _column(
        "mean entropy of the model's own next-token distributions there", default=math.nan
    )
    bits_per_byte: float = _column(
        "loss_nats / ln 2 / bytes per token of this text", default=math.nan
    )
    confidence: float = _column("confidence of the interval", default=math.nan)
    windows: int = _column("windows of text", default=0)
    tokens: int = _column("tokens predicted", default=0)


@dataclass(frozen=True)
class TimingRecord:
    """One operation that was timed to calibrate a device; a row of `timings.csv`. Coefficients follow from these rows alone."""

    operation: str = _column(
        "step (plain decoding), verify (a pass over several tokens) or round (drafts and their verification)"
    )
    target_id: str = _column(
        "model of a pass, or target of a round, by width, layers and vocabulary"
    )
    tokens: int = _column("new tokens of each row in a pass; draft tokens, γ, of a round")
    batch: int = _column("rows")
    context: int = _column("cache positions that every pass reads, empty ones included")
    seconds: float = _column("median seconds of the operation")
    target_params: int = _column("non-embedding parameters of the target")
    target_layers: int = _column("Transformer blocks of the target")
    target_width: int = _column("size of the residual stream of the target")
    target_query_width: int = _column("query heads times head size of the target")
    target_kv_width: int = _column("key-value heads times head size of the target")
    target_vocab_size: int = _column("entries of the vocabulary of the target")
    target_embedding_tables: int = _column(
        "1 where embedding and head share a matrix, 2 where they do not of the target"
    )
    draft_id: str = _column("draft of a round; empty for a pass", default="")
    draft_params: int = _column(
        "non-embedding parameters of the draft; 0 without a draft", default=0
    )
    draft_layers: int = _column("Transformer blocks of the draft", default=0)
    draft_width: int = _column("size of the residual stream of the draft", default=0)
    draft_query_width: int = _column("query heads times head size of the draft", default=0)
    draft_kv_width: int = _column("key-value heads times head size of the draft", default=0)
    draft_vocab_size: int = _column("entries of the vocabulary of the draft", default=0)
    draft_embedding_tables: int = _column(
        "1 where embedding and head share a matrix, 2 where they do not of the draft", default=0
    )
    seconds_low: float = _column("lower end of the median's interval", default=math.nan)
    seconds_high: float = _column("upper end of the median's interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    repetitions: int = _column("timed repetitions, each of many operations", default=0)
    held_out: int = _column(
        "1 where a model of the row was held out from the fit whose errors are reported", default=0
    )
    threads: int = _column(
        "threads that a computation may use on a CPU; 0 on an accelerator, or if not known",
        default=0,
    )
    dtype: str = _column("type of weights and caches", default="float32")
    device: str = _column("device timed on", default="")


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
    # Exact acceptance at other temperatures, in other domains and of other drafts; those drafts;
    # everybody's losses there.
    "conditions": AcceptanceRecord,
    "other_models": ModelRecord,
    "losses": LossRecord,
    # What a device was calibrated with; no study writes it.
    "timings": TimingRecord,
}
# Tables that a study may leave empty: clock rows need weights, conditions must be asked for.
MAY_BE_EMPTY = (
    "clock",
    "generation",
    "timings",
    "runs",
    "timed_models",
    "conditions",
    "other_models",
    "losses",
)
