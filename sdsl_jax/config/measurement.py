"""The settings of what is measured: acceptance and step times, other conditions, and what is kept back from the fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdsl_jax.counts import WholeCount
from sdsl_jax.errors import require
from sdsl_jax.ranges import require_distinct, require_fields, require_in


@dataclass(frozen=True)
class MeasureConfig:
    """How acceptance, survival and latency are measured.

    Exact α, and from the same pass the expected tokens per round of every lookahead up to
    `expected_lookahead`, is measured for every pair. The live decoder runs for every pair as well,
    with `decode = "largest"` only for models of their largest budget, and with "none" not at all.

    Attributes:
      temperature: Sampling temperature of draft and target.
      lookaheads: Lookaheads γ of the live decoder.
      text_windows: Windows of the test split on which acceptance on text is measured.
      prompts: Prompts from the test split that the target's own samples continue.
      prompt_tokens: Tokens of a prompt.
      new_tokens: Tokens that follow a prompt.
      confidence: Confidence of the intervals.
      latency_repetitions: Times that every step is timed.
      latency_batch: Rows of a timed step.
      decode: Pairs that the live decoder runs for: "all"; "largest" for models of their largest
        budget and first seed; "none".
      expected_lookahead: Largest γ of the expected tokens per round.

    Attributes:
      temperature: Sampling temperature of draft and target.
      lookaheads: Lookaheads γ of the live decoder.
      text_windows: Windows of the test split on which acceptance on text is measured.
      prompts: Prompts from the test split that the target's own samples continue.
      prompt_tokens: Tokens of a prompt.
      new_tokens: Tokens that follow a prompt.
      confidence: Confidence of the intervals.
      latency_repetitions: Times that every step is timed.
      latency_batch: Rows of a timed step.
      decode: Pairs that the live decoder runs for: "all"; "largest" for models of their largest
        budget and first seed; "none".
      expected_lookahead: Largest γ of the expected tokens per round.

    Attributes:
      temperature: Sampling temperature of draft and target.
      lookaheads: Lookaheads γ of the live decoder.
      text_windows: Windows of the test split on which acceptance on text is measured.
      prompts: Prompts from the test split that the target's own samples continue.
      prompt_tokens: Tokens of a prompt.
      new_tokens: Tokens that follow a prompt.
      confidence: Confidence of the intervals.
      latency_repetitions: Times that every step is timed.
      latency_batch: Rows of a timed step.
      decode: Pairs that the live decoder runs for: "all"; "largest" for models of their largest
        budget and first seed; "none".
      expected_lookahead: Largest γ of the expected tokens per round.

    Attributes:
      temperature: Sampling temperature of draft and target.
      lookaheads: Lookaheads γ of the live decoder.
      text_windows: Windows of the test split on which acceptance on text is measured.
      prompts: Prompts from the test split that the target's own samples continue.
      prompt_tokens: Tokens of a prompt.
      new_tokens: Tokens that follow a prompt.
      confidence: Confidence of the intervals.
      latency_repetitions: Times that every step is timed.
      latency_batch: Rows of a timed step.
      decode: Pairs that the live decoder runs for: "all"; "largest" for models of their largest
        budget and first seed; "none".
      expected_lookahead: Largest γ of the expected tokens per round.

    Attributes:
      temperature: Sampling temperature of draft and target.
      lookaheads: Lookaheads γ of the live decoder.
      text_windows: Windows of the test split on which acceptance on text is measured.
      prompts: Prompts from the test split that the target's own samples continue.
      prompt_tokens: Tokens of a prompt.
      new_tokens: Tokens that follow a prompt.
      confidence: Confidence of the intervals.
      latency_repetitions: Times that every step is timed.
      latency_batch: Rows of a timed step.
      decode: Pairs that the live decoder runs for: "all"; "largest" for models of their largest
        budget and first seed; "none".
      expected_lookahead: Largest γ of the expected tokens per round.
    """

    temperature: float = 1.0
    lookaheads: tuple[int, ...] = (1, 2, 4, 8)
    text_windows: int = 256
    prompts: int = 64
    prompt_tokens: WholeCount = 32
    new_tokens: WholeCount = 96
    confidence: float = 0.9
    latency_repetitions: int = 40
    latency_batch: int = 1
    decode: Literal["all", "largest", "none"] = "all"
    expected_lookahead: int = 12

    def __post_init__(self):
        require_in("[1, inf)", "measure.lookaheads", self.lookaheads)
        require_distinct("measure.lookaheads", self.lookaheads)
        for name in ("text_windows", "prompts"):
            value = getattr(self, name)
            require(
                value >= 4, f"measure.{name} is {value}; an interval over them needs at least 4."
            )
        require_fields(
            "measure",
            self,
            temperature="[0, inf)",
            prompt_tokens="[1, inf)",
            new_tokens="[1, inf)",
            latency_repetitions="[1, inf)",
            latency_batch="[1, inf)",
            confidence="(0, 1)",
        )
        require(
            1 <= self.expected_lookahead <= self.new_tokens,
            f"measure.expected_lookahead is {self.expected_lookahead}; it must lie in [1, measure.new_tokens].",
        )


@dataclass(frozen=True)
class DomainConfig:
    """A text to measure on besides the test split.

    Attributes:
      name: Name of the domain.
      source: "validation" for the study's own validation split; the path of a .txt, .jsonl or
        .parquet file, or of a folder of them; or "package:NAME/PATH" for files inside an installed
        Python package, where PATH may hold the wildcards * and **.
      text_column: Column of rows that holds the text, or several: the first of them that a row has.
      held_out: Whether to read only the articles that `data.article` holds out for testing, each text
        once, such as those of one of the study's own sources. Rows are then read by
        `data.text_column`, of which `text_column` may name a part.
      optional: Whether to skip the domain, with a note, if its file or package is missing.
    """

    name: str
    source: str
    text_column: str | tuple[str, ...] = "text"
    held_out: bool = False
    optional: bool = False

    def __post_init__(self):
        require(
            self.name and len(self.source) > 0,
            "conditions.domains holds an entry without a name or source; every domain needs both.",
        )
        require(
            not self.held_out or self.source != "validation",
            f"conditions.domains holds {self.name!r} with held_out, which the validation split is not; leave it out.",
        )


@dataclass(frozen=True)
class ConditionsConfig:
    """Other conditions under which exact acceptance is measured. Nothing is decoded: each condition
    takes one pass of each model.

    Attributes:
      temperatures: Temperatures to try on the study's own domain.
      domains: Texts to try at `measure.temperature`.
      other_drafts: Folder of a ladder trained on other text. Its drafts are measured beside the
        study's own, and enter no fit.
    """

    temperatures: tuple[float, ...] = ()
    domains: tuple[DomainConfig, ...] = ()
    other_drafts: str = ""

    def __post_init__(self):
        require_in("[0, inf)", "conditions.temperatures", self.temperatures)
        require_distinct("conditions.temperatures", self.temperatures, may_be_empty=True)
        names = tuple(domain.name for domain in self.domains)
        require_distinct("conditions.domains", names, may_be_empty=True)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return not (self.temperatures or self.domains or self.other_drafts)


@dataclass(frozen=True)
class HoldoutConfig:
    """Sizes that are kept back. Laws are fitted without them and predict them before they are
    trained, measured or looked at.

    Attributes:
      draft_params: Sizes of drafts that are kept back.
      target_params: Sizes of targets that are kept back.
      smaller_drafts: Whether pairs count only if the draft is smaller than its target. Others have no
        use in speculative decoding: no acceptance law is fitted to them, no goal is held against
        them, and their errors are reported apart.
      largest_loss: Goal: largest mean relative error of the losses of the largest size.
      alpha_mae: Goal: largest mean absolute error of α of the pairs that count.
      alpha_coverage: Goal: lowest and highest share of these pairs inside their intervals.
      regret: Goal: largest share of the best measured speed-up that the predicted draft and
        lookahead may lose.
    """

    draft_params: tuple[WholeCount, ...] = ()
    target_params: tuple[WholeCount, ...] = ()
    smaller_drafts: bool = False
    largest_loss: float = 0.01
    alpha_mae: float = 0.01
    alpha_coverage: tuple[float, ...] = (0.85, 0.95)
    regret: float = 0.03

    def __post_init__(self):
        within = dict.fromkeys(("largest_loss", "alpha_mae", "alpha_coverage", "regret"), "[0, 1]")
        require_fields("holdout", self, **within)
        ends = self.alpha_coverage
        require(
            len(ends) == 2 and ends[0] <= ends[1],
            f"holdout.alpha_coverage is {list(ends)}; it must hold the lowest and the highest share.",
        )

    @property
    def any(self) -> bool:
        """Whether anything is kept back."""
        return bool(self.draft_params or self.target_params)


@dataclass(frozen=True)
class ClockConfig:
    """What is decoded on the clock. Nothing is timed while `lookaheads` is empty.

    Attributes:
      lookaheads: Lookaheads at which the drafts of the largest budget decode with every target, one
        row at a time.
      batches: Batches at which three drafts (the smallest, a middle one, the largest) decode with
        the two largest targets.
      batch_lookaheads: Lookaheads of those batches and of other models' drafts.
      other_models: Folders of further models with the same text and tokenizer, to which no law is
        fitted. Their targets join the others. Their drafts, perhaps of other shapes, are timed with
        the two largest targets beside the ladder's drafts of the same size and tokens.
      repetitions: Number of repetitions; half of them choose and the other half judge.
      prompts: Prompts that each repetition decodes.
      threads: Threads that a computation on a CPU may use, in every stage: models of a few million
        parameters are timed best on one. 0 for one where `lookaheads` are timed, and for all
        processors otherwise.
    """

    lookaheads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    batch_lookaheads: tuple[int, ...] = (1, 2, 4)
    other_models: tuple[str, ...] = ()
    repetitions: int = 8
    prompts: int = 16
    threads: int = 0

    def __post_init__(self):
        for name in ("lookaheads", "batches", "batch_lookaheads"):
            values = getattr(self, name)
            require_in("[1, inf)", f"clock.{name}", values)
            require_distinct(f"clock.{name}", values, may_be_empty=True)
        require(
            self.repetitions >= 2 and self.repetitions % 2 == 0,
            f"clock.repetitions is {self.repetitions}; one half of them chooses and the other judges, so it must be even.",
        )
        require_fields("clock", self, prompts="[1, inf)", threads="[0, inf)")
        for batch in self.batches:
            require(
                self.prompts % batch == 0,
                f"clock.batches holds {batch}, which does not divide clock.prompts ({self.prompts}).",
            )


@dataclass(frozen=True)
class RaceConfig:
    """Which draft decodes fastest on the clock, chosen on some prompts and judged on others. Nothing
    is raced while `drafts` is empty.

    Every draft decodes with the largest target, one request at a time, at every lookahead and with
    each of `ngram_first`. Prompts are the first `measure.prompt_tokens` tokens of documents of the
    domains in `conditions.domains`, of each equally many; without domains, windows of the test split.

    Attributes:
      drafts: Names of the drafts that take part, such as "draft-640k-1M-*"; `*`, `?` and `[…]` are
        wildcards. "ngram" stands for n-grams without another draft.
      lookaheads: Lookaheads that every draft tries.
      ngram_first: n of the n-grams that draft where one occurs earlier; 0 for the draft alone. N-grams
        without another draft take part with each n that is not 0.
      temperatures: Each has a winner of its own.
      choosing_prompts: Prompts of each domain that choose the winner.
      prompts: Further prompts of each domain, on which the winner is judged.
    """

    drafts: tuple[str, ...] = ()
    lookaheads: tuple[int, ...] = (1, 2, 4)
    ngram_first: tuple[int, ...] = (0,)
    temperatures: tuple[float, ...] = (1.0,)
    choosing_prompts: int = 8
    prompts: int = 24

    def __post_init__(self):
        require_in("[1, inf)", "race.lookaheads", self.lookaheads)
        require_in("[0, inf)", "race.ngram_first", self.ngram_first)
        require_in("[0, inf)", "race.temperatures", self.temperatures)
        for name in ("lookaheads", "ngram_first", "temperatures"):
            require_distinct(f"race.{name}", getattr(self, name))
        require(
            "ngram" not in self.drafts or any(self.ngram_first),
            'race.drafts holds "ngram", but race.ngram_first has no n except 0; give one, such as [0, 2].',
        )
        require_fields("race", self, choosing_prompts="[2, inf)", prompts="[4, inf)")
