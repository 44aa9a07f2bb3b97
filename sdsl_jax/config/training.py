"""How a study trains: the recipe of its ladder, what drafts are trained for, and the mesh of devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdsl_jax.counts import WholeCount
from sdsl_jax.errors import require
from sdsl_jax.ranges import require_distinct, require_fields


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

    Attributes:
      batch_size: Sequences per step of a rung of `reference_params`.
      batch_size_exponent: Power of N/`reference_params` that the batch follows.
      learning_rate: Peak learning rate of a rung of `reference_params`.
      learning_rate_exponent: Power of `reference_params`/N that the learning rate follows.
      warmup_tokens: Tokens of warm-up of a rung of `reference_params`.
      warmup_exponent: Power of N/`reference_params` that the warm-up follows.
      reference_params: Non-embedding parameters at which the three laws above are written.
      cooldown_fraction: Share of a token budget in which the learning rate falls to zero.
      adam_b1: Decay rate of the first moment of AdamW.
      adam_b2: Decay rate of the second moment of AdamW.
      weight_decay: Weight decay of AdamW.
      clip_norm: Largest norm of the whole gradient; a longer one is scaled down to it.
      z_loss: Weight of log²Z in what is minimised, Z the normaliser of the softmax.
      compute_dtype: Type of computation; weights and moments stay float32.
      stored_weights: Type of the matrices of finished models.
      remat: Whether to keep only what enters each block and compute the rest again in the backward
        pass, which saves memory.
      on_nonfinite: What a loss or gradient that is not finite does: "stop" its rung, or "skip" the
        step, up to 100 in a row.
      spike_deviations: A loss this many standard deviations above its level counts as a spike.
      checkpoint_every_steps: Steps between two checkpoints.
      evaluation_windows: Windows of each split that losses of finished models are taken over.
      tensorboard: Whether to write TensorBoard files; needs the extra `tensorboard`.

    Attributes:
      batch_size: Sequences per step of a rung of `reference_params`.
      batch_size_exponent: Power of N/`reference_params` that the batch follows.
      learning_rate: Peak learning rate of a rung of `reference_params`.
      learning_rate_exponent: Power of `reference_params`/N that the learning rate follows.
      warmup_tokens: Tokens of warm-up of a rung of `reference_params`.
      warmup_exponent: Power of N/`reference_params` that the warm-up follows.
      reference_params: Non-embedding parameters at which the three laws above are written.
      cooldown_fraction: Share of a token budget in which the learning rate falls to zero.
      adam_b1: Decay rate of the first moment of AdamW.
      adam_b2: Decay rate of the second moment of AdamW.
      weight_decay: Weight decay of AdamW.
      clip_norm: Largest norm of the whole gradient; a longer one is scaled down to it.
      z_loss: Weight of log²Z in what is minimised, Z the normaliser of the softmax.
      compute_dtype: Type of computation; weights and moments stay float32.
      stored_weights: Type of the matrices of finished models.
      remat: Whether to keep only what enters each block and compute the rest again in the backward
        pass, which saves memory.
      on_nonfinite: What a loss or gradient that is not finite does: "stop" its rung, or "skip" the
        step, up to 100 in a row.
      spike_deviations: A loss this many standard deviations above its level counts as a spike.
      checkpoint_every_steps: Steps between two checkpoints.
      evaluation_windows: Windows of each split that losses of finished models are taken over.
      tensorboard: Whether to write TensorBoard files; needs the extra `tensorboard`.

    Attributes:
      batch_size: Sequences per step of a rung of `reference_params`.
      batch_size_exponent: Power of N/`reference_params` that the batch follows.
      learning_rate: Peak learning rate of a rung of `reference_params`.
      learning_rate_exponent: Power of `reference_params`/N that the learning rate follows.
      warmup_tokens: Tokens of warm-up of a rung of `reference_params`.
      warmup_exponent: Power of N/`reference_params` that the warm-up follows.
      reference_params: Non-embedding parameters at which the three laws above are written.
      cooldown_fraction: Share of a token budget in which the learning rate falls to zero.
      adam_b1: Decay rate of the first moment of AdamW.
      adam_b2: Decay rate of the second moment of AdamW.
      weight_decay: Weight decay of AdamW.
      clip_norm: Largest norm of the whole gradient; a longer one is scaled down to it.
      z_loss: Weight of log²Z in what is minimised, Z the normaliser of the softmax.
      compute_dtype: Type of computation; weights and moments stay float32.
      stored_weights: Type of the matrices of finished models.
      remat: Whether to keep only what enters each block and compute the rest again in the backward
        pass, which saves memory.
      on_nonfinite: What a loss or gradient that is not finite does: "stop" its rung, or "skip" the
        step, up to 100 in a row.
      spike_deviations: A loss this many standard deviations above its level counts as a spike.
      checkpoint_every_steps: Steps between two checkpoints.
      evaluation_windows: Windows of each split that losses of finished models are taken over.
      tensorboard: Whether to write TensorBoard files; needs the extra `tensorboard`.

    Attributes:
      batch_size: Sequences per step of a rung of `reference_params`.
      batch_size_exponent: Power of N/`reference_params` that the batch follows.
      learning_rate: Peak learning rate of a rung of `reference_params`.
      learning_rate_exponent: Power of `reference_params`/N that the learning rate follows.
      warmup_tokens: Tokens of warm-up of a rung of `reference_params`.
      warmup_exponent: Power of N/`reference_params` that the warm-up follows.
      reference_params: Non-embedding parameters at which the three laws above are written.
      cooldown_fraction: Share of a token budget in which the learning rate falls to zero.
      adam_b1: Decay rate of the first moment of AdamW.
      adam_b2: Decay rate of the second moment of AdamW.
      weight_decay: Weight decay of AdamW.
      clip_norm: Largest norm of the whole gradient; a longer one is scaled down to it.
      z_loss: Weight of log²Z in what is minimised, Z the normaliser of the softmax.
      compute_dtype: Type of computation; weights and moments stay float32.
      stored_weights: Type of the matrices of finished models.
      remat: Whether to keep only what enters each block and compute the rest again in the backward
        pass, which saves memory.
      on_nonfinite: What a loss or gradient that is not finite does: "stop" its rung, or "skip" the
        step, up to 100 in a row.
      spike_deviations: A loss this many standard deviations above its level counts as a spike.
      checkpoint_every_steps: Steps between two checkpoints.
      evaluation_windows: Windows of each split that losses of finished models are taken over.
      tensorboard: Whether to write TensorBoard files; needs the extra `tensorboard`.

    Attributes:
      batch_size: Sequences per step of a rung of `reference_params`.
      batch_size_exponent: Power of N/`reference_params` that the batch follows.
      learning_rate: Peak learning rate of a rung of `reference_params`.
      learning_rate_exponent: Power of `reference_params`/N that the learning rate follows.
      warmup_tokens: Tokens of warm-up of a rung of `reference_params`.
      warmup_exponent: Power of N/`reference_params` that the warm-up follows.
      reference_params: Non-embedding parameters at which the three laws above are written.
      cooldown_fraction: Share of a token budget in which the learning rate falls to zero.
      adam_b1: Decay rate of the first moment of AdamW.
      adam_b2: Decay rate of the second moment of AdamW.
      weight_decay: Weight decay of AdamW.
      clip_norm: Largest norm of the whole gradient; a longer one is scaled down to it.
      z_loss: Weight of log²Z in what is minimised, Z the normaliser of the softmax.
      compute_dtype: Type of computation; weights and moments stay float32.
      stored_weights: Type of the matrices of finished models.
      remat: Whether to keep only what enters each block and compute the rest again in the backward
        pass, which saves memory.
      on_nonfinite: What a loss or gradient that is not finite does: "stop" its rung, or "skip" the
        step, up to 100 in a row.
      spike_deviations: A loss this many standard deviations above its level counts as a spike.
      checkpoint_every_steps: Steps between two checkpoints.
      evaluation_windows: Windows of each split that losses of finished models are taken over.
      tensorboard: Whether to write TensorBoard files; needs the extra `tensorboard`.
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

    Attributes:
      data: Devices along which only batches are split.
      fsdp: Devices along which parameters and optimiser state are split too.

    Attributes:
      data: Devices along which only batches are split.
      fsdp: Devices along which parameters and optimiser state are split too.

    Attributes:
      data: Devices along which only batches are split.
      fsdp: Devices along which parameters and optimiser state are split too.

    Attributes:
      data: Devices along which only batches are split.
      fsdp: Devices along which parameters and optimiser state are split too.

    Attributes:
      data: Devices along which only batches are split.
      fsdp: Devices along which parameters and optimiser state are split too.
    """

    data: int = 1
    fsdp: int = 1

    def __post_init__(self):
        require_fields("parallel", self, data="[0, inf)", fsdp="[0, inf)")
        require(
            self.data + self.fsdp > 0,
            "parallel.data and parallel.fsdp are both 0; only one of them can be.",
        )
