"""What a ladder consists of before training: rungs, their plans, and parts of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sdsl_jax.checkpoints.loading import is_published, open_model
from sdsl_jax.checkpoints.model_folder import find_model_folder, stored_weights
from sdsl_jax.config import (
    EXIT_KINDS,
    HEAD_KINDS,
    DistilConfig,
    DraftKind,
    ObjectiveName,
    StudyConfig,
    TrainingConfig,
)
from sdsl_jax.data import Dataset
from sdsl_jax.digests import json_sha256
from sdsl_jax.errors import require
from sdsl_jax.models import ModelConfig, ModelCounts, count, member
from sdsl_jax.models.cuts import (
    Nested,
    SharedTrunk,
    exit_of_size,
    nested_of_sizes,
    pruned_of_size,
)
from sdsl_jax.models.feature_head import (
    HeadConfig,
    head_counts,
    later_flops,
    table_head_of_size,
)
from sdsl_jax.package_files import user_path
from sdsl_jax.records import ModelRecord, read_table
from sdsl_jax.seeds import derive_seed
from sdsl_jax.training.closed_form import START_WINDOWS
from sdsl_jax.training.schedule import Schedule, make_schedule
from sdsl_jax.training.teacher import teacher_architecture, teacher_digest

# What of a recipe decides the parameters beside the schedule; the rest says how a rung is computed,
# watched and stored.
_RECIPE = (
    "cooldown_fraction",
    "adam_b1",
    "adam_b2",
    "weight_decay",
    "clip_norm",
    "z_loss",
    "compute_dtype",
)


@dataclass(frozen=True)
class Rung:
    """One size, seed and objective of one role, with the token budgets that its run yields.

    Attributes:
      role: "draft" or "target".
      params: Non-embedding size that was asked for; of nested drafts that of the largest.
      seed: Seed of initialisation and data order.
      budgets: Token budgets, ascending.
      objective: What it is trained for; empty for a model trained on the text alone, from random
        weights.
      kind: What kind of draft it is; empty for a model of its own.
      readout: Ids that it proposes, the most frequent; 0 for all.
    """

    role: str
    params: int
    seed: int
    budgets: tuple[int, ...]
    objective: ObjectiveName | Literal[""] = ""
    kind: DraftKind = ""
    readout: int = 0

    @property
    def _trained_for(self) -> str:
        ids = f"{self.readout}ids" if self.readout else ""
        return "".join(f"-{part}" for part in (ids, self.kind, self.objective) if part)

    @property
    def name(self) -> str:
        """For example draft-14k-s0, draft-14k-tv-s0, or draft-14k-4096ids-tv-s0."""
        return f"{self.role}-{compact(self.params)}{self._trained_for}-s{self.seed}"

    def model_id(self, budget: int, params: int = 0) -> str:
        """For example draft-14k-2M-s0, or draft-14k-2M-tv-s0; of a slice with the size that was asked
        for."""
        tokens, size = compact(self.budgets[budget]), compact(params or self.params)
        return f"{self.role}-{size}-{tokens}{self._trained_for}-s{self.seed}"


def compact(number: float) -> str:
    """A number with the suffix k, M or B and as many digits as it needs, so that different sizes
    have different names.
    """
    for divisor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= divisor:
            return f"{number / divisor:.12g}{suffix}"
    return f"{number:.12g}"


def rungs(config: StudyConfig) -> list[Rung]:
    """All rungs of a study, the smallest first."""
    ladder = config.ladder
    nested = config.distil.kind == "nested"
    drafts = (max(ladder.draft_params),) if nested else ladder.draft_params
    sizes = [("draft", n) for n in drafts] + [("target", n) for n in ladder.target_params]
    distil = config.distil
    objectives: dict[str, tuple[ObjectiveName | Literal[""], ...]] = {
        "draft": distil.objectives if distil.active else ("",),
        "target": ("",),
    }
    kinds: dict[str, DraftKind] = {"draft": distil.kind, "target": ""}
    readouts = {"draft": config.readouts, "target": (0,)}
    ladder_rungs = [
        Rung(role, n, seed, ladder.budgets(role, n), objective, kinds[role], readout)
        for role, n in sizes
        for readout in readouts[role]
        for objective in objectives[role]
        for seed in (
            *ladder.seeds,
            *(ladder.replicate_seeds if n <= ladder.replicate_below else ()),
        )
    ]
    return sorted(
        ladder_rungs,
        key=lambda rung: (rung.params, rung.role, rung.readout, rung.objective, rung.seed),
    )


class Parent(NamedTuple):
    """A trained model that the training of another starts from.

    Attributes:
      folder: Its model folder.
      digest: Digest of its weights.
      train_flops: FLOPs of its training; 0 for a target that drafts are cut out of.
    """

    folder: Path
    digest: str
    train_flops: float = 0.0


def shape(
    config: StudyConfig, rung: Rung, vocab_size: int, readout_ids: tuple[int, ...] = ()
) -> ModelConfig:
    """The architecture of a rung; of a head, that of its body.

    Args:
      config: The study.
      rung: The rung.
      vocab_size: Entries of the vocabulary.
      readout_ids: Ids that it proposes; all if empty.

    Raises:
      SdslError: The family cannot build it, or it cannot be cut out of the teacher.
    """
    if rung.kind == "table-head":
        teacher = _last_tapped(config)
        require(
            teacher.ids == vocab_size or config.distil.kept(vocab_size) or rung.objective == "ce",
            f"distil.teacher has a table of {teacher.ids:,} rows and the study's tokenizer {vocab_size:,} entries, all of whose "
            "probabilities would be kept for a head that gives more; set distil.top below the number of entries.",
        )
        return table_head_of_size(teacher, rung.params, readout_ids).body
    if rung.kind in (*EXIT_KINDS, "pruned"):
        teacher = teacher_architecture(config.distil)
        require(
            teacher.vocab_size == vocab_size,
            f"distil.teacher has a table of {teacher.vocab_size:,} rows and the study's tokenizer {vocab_size:,} "
            "entries; a draft that is cut out of the teacher needs as many of both.",
        )
        if rung.kind in EXIT_KINDS:
            return exit_of_size(teacher, rung.params)
        return pruned_of_size(teacher, rung.params, config.family.layers)
    if rung.kind == "nested":
        return nested_of_sizes(config.family, config.ladder.draft_params, vocab_size)[-1]
    model = member(config.family, rung.params, vocab_size)
    return replace(model, readout_ids=readout_ids, truncated=bool(readout_ids))


def _last_tapped(config: StudyConfig) -> ModelConfig:
    """The teacher's architecture, of whose blocks the last is read.

    Raises:
      SdslError: It is another one.
    """
    teacher = teacher_architecture(config.distil)
    require(
        config.distil.taps == (teacher.layers,),
        f"distil.tables is 'target' and distil.taps {list(config.distil.taps)}; it must be [{teacher.layers}], the last block of "
        "the teacher: the head predicts what its last norm and readout take.",
    )
    return teacher


def head_of(config: StudyConfig, rung: Rung, body: ModelConfig, width: int) -> HeadConfig | None:
    """What makes a rung a head on the teacher's hidden states; None for other models.

    Args:
      config: The study.
      rung: The rung.
      body: Architecture of its body.
      width: Width of the teacher.
    """
    if rung.kind not in HEAD_KINDS:
        return None
    distil = config.distil
    parallel = distil.unrolled if distil.parallel else 0
    return HeadConfig(body, width, distil.taps, parallel, on_tables=distil.tables == "target")


class Slice(NamedTuple):
    """A part of a nested draft that is a model of its own.

    Attributes:
      params: Non-embedding size that was asked for.
      model: Architecture.
      counts: Exact sizes.
    """

    params: int
    model: ModelConfig
    counts: ModelCounts


class Plan(NamedTuple):
    """A rung and everything that follows from the settings.

    Attributes:
      rung: Role, size, seed and budgets.
      model: Architecture; of a head, that of its body.
      counts: Exact sizes, of a head with what it adds to its body.
      schedule: Learning rates by step.
      batch: Sequences per step.
      tokens_per_step: Tokens per step.
      folder: Folder of its checkpoints, named by the rung and a tag of everything that decides its
        parameters.
      parent: The model that its training starts from; None for random weights.
      teacher_digest: Digest of the teacher it learns from; empty without one.
      head: What makes it a head on the teacher's hidden states; None for other models.
      slices: What is trained together with it, the smallest first; empty but for nested drafts.
      frozen_blocks: Blocks of an early exit that stay the teacher's; −1 for other models.
      context: Mean tokens of context, for counts.
      unrolled: Drafts of a round that a head is trained for.
    """

    rung: Rung
    model: ModelConfig
    counts: ModelCounts
    schedule: Schedule
    batch: int
    tokens_per_step: int
    folder: Path
    parent: Parent | None = None
    teacher_digest: str = ""
    head: HeadConfig | None = None
    slices: tuple[Slice, ...] = ()
    frozen_blocks: int = -1
    context: float = 0.0
    unrolled: int = 1

    @property
    def architecture(self) -> ModelConfig | HeadConfig | Nested | SharedTrunk:
        """What steps take as the model."""
        if self.slices:
            return Nested(self.model, tuple(each.model for each in self.slices))
        if self.frozen_blocks >= 0:
            return SharedTrunk(self.model, self.frozen_blocks)
        return self.head or self.model

    @property
    def flops_per_step(self) -> float:
        """FLOPs of a training step, without the teacher's; its time is about proportional to them.

        Gradients take twice the forward pass, and frozen blocks none.
        """
        each = self.counts.flops_per_token
        forward = each + sum(part.counts.flops_per_token for part in self.slices)
        if self.head is not None:
            later = later_flops(self.head, count(self.model, self.context))
            forward += (self.unrolled - 1) * later
        frozen = 0.0
        if self.head is not None and self.head.on_tables:
            # A readout that is not trained passes its gradient on, and has none itself.
            frozen = self.unrolled * self.model.width * self.model.readout_size
        if self.frozen_blocks > 0:
            readout = 2.0 * self.model.width * (self.model.width + self.model.vocab_size)
            frozen = (each - readout) * self.frozen_blocks / self.model.layers
        return (3 * forward - 2 * frozen) * self.tokens_per_step

    @property
    def flops(self) -> float:
        """FLOPs of all its training steps."""
        return self.flops_per_step * self.schedule.total_steps

    @property
    def models(self) -> list[Path]:
        """The model folder of each budget."""
        return [self.folder / f"model-{end}" for end in self.schedule.ends]

    def slice_folder(self, budget: int, part: Slice) -> Path:
        """The model folder of a slice. That of the whole is written last."""
        return self.folder / f"slice-{compact(part.params)}-{self.schedule.ends[budget]}"

    def folders(self, budget: int) -> list[Path]:
        """The model folders of a budget: of every slice, and of the whole."""
        return [*(self.slice_folder(budget, part) for part in self.slices), self.models[budget]]

    @property
    def all_folders(self) -> list[Path]:
        """The model folders of all budgets."""
        return [folder for budget in range(len(self.models)) for folder in self.folders(budget)]


def plan_rungs(config: StudyConfig, dataset: Dataset, folder: Path) -> list[Plan]:
    """Plans every rung of a study.

    Args:
      config: The study.
      dataset: Its tokenised corpus.
      folder: The study's folder.

    Raises:
      SdslError: The family cannot build a size, two budgets are less than a step apart, or
        `[distil]` names a teacher or a parent that is not there.
    """
    plans = []
    distil = config.distil
    teacher, parents = teacher_digest(distil), parent_records(distil)
    width = teacher_architecture(distil).width if distil.taps else 0
    for rung in rungs(config):
        vocab_size = dataset.tokenizer.vocab_size
        ids = dataset.frequent_ids(rung.readout) if rung.readout else ()
        model = shape(config, rung, vocab_size, ids)
        body = counts = count(model, dataset.sequence_length / 2)
        head = head_of(config, rung, model, width)
        if head is not None:
            counts = head_counts(head, body)
        schedule = make_schedule(
            config.training, counts.nonembedding, rung.budgets, dataset.sequence_length
        )
        batch = config.training.batch(counts.nonembedding)
        parent = _parent(config, parents, rung, model, body) if rung.objective else None
        slices: tuple[Slice, ...] = ()
        if rung.kind == "nested":
            asked = sorted(config.ladder.draft_params)
            members = nested_of_sizes(config.family, asked, vocab_size)[:-1]
            sizes = [count(m, dataset.sequence_length / 2) for m in members]
            slices = tuple(map(Slice, asked, members, sizes))
        frozen = max(0, model.layers - distil.trained_blocks) if rung.kind in EXIT_KINDS else -1
        learns_from = teacher if needs_teacher(config, rung) else ""
        step = batch * dataset.sequence_length
        plan = Plan(
            rung,
            model,
            counts,
            schedule,
            batch,
            step,
            folder,
            parent,
            learns_from,
            head,
            slices,
            frozen,
            dataset.sequence_length / 2,
            distil.unrolled if head else 1,
        )
        path = folder / "checkpoints" / f"{rung.name}.{_tag(config, plan, dataset)}"
        plans.append(plan._replace(folder=path))
    return plans


def data_seed(config: StudyConfig, rung: Rung) -> int:
    """Seed of the order in which a rung sees its windows: that of its seed, whatever its size."""
    return derive_seed("data", config.seed, rung.seed)


def needs_teacher(config: StudyConfig, rung: Rung) -> bool:
    """Whether a rung's batches come from the teacher."""
    reads_it = rung.kind in HEAD_KINDS or config.distil.text == "samples"
    told = rung.objective != "ce" or reads_it
    return bool(rung.objective) and told


def parent_records(distil: DistilConfig) -> list[ModelRecord]:
    """The models of `distil.init_from`, drafts and targets; none where drafts start from random weights.

    Raises:
      SdslError: The folder holds no ladder.
    """
    folder = distil.init_from
    if not folder:
        return []
    require(
        (Path(folder) / "records" / "models.csv").exists(),
        f"distil.init_from is {folder!r}, where no trained ladder is: records/models.csv is not there.",
    )
    return read_table(Path(folder) / "records", "models")


def _parent(
    config: StudyConfig,
    parents: Sequence[ModelRecord],
    rung: Rung,
    model: ModelConfig,
    counts: ModelCounts,
) -> Parent | None:
    """The model that a rung's training starts from: the teacher that it is cut out of, or a draft of
    its size and seed, of the largest budget.

    Raises:
      SdslError: There is none, or there are several.
    """
    if rung.kind in (*EXIT_KINDS, "pruned"):
        path = user_path(config.distil.teacher)
        rounded = config.training.stored_weights == "bfloat16"
        require(
            rung.kind == "pruned" or not rounded or _is_rounded(path),
            f"training.stored_weights is 'bfloat16' and the teacher {path} is stored in float32: rounded, the blocks of an early "
            'exit would not be the teacher\'s any more. Set training.stored_weights = "float32".',
        )
        return Parent(open_model(path).folder, teacher_digest(config.distil))
    if not config.distil.init_from:
        return None
    sizes = counts.nonembedding, counts.total, model.layers, model.width
    alike = [
        r
        for r in parents
        if (r.seed, r.readout) == (rung.seed, rung.readout)
        and (r.params_nonembedding, r.params_total, r.layers, r.width) == sizes
    ]
    most = max((r.train_tokens for r in alike), default=0)
    longest = [r for r in alike if r.train_tokens == most]
    require(
        len(longest) == 1,
        f"distil.init_from ({config.distil.init_from}) holds {len(longest) or 'no'} draft{'s' * (len(longest) > 1)} of the "
        f"shape of {rung.name} ({model.layers} × {model.width}, {counts.nonembedding:,} non-embedding parameters) and seed "
        f"{rung.seed}; it must hold one of the largest budget.",
    )
    parent = longest[0]
    folder = find_model_folder(Path(config.distil.init_from) / parent.checkpoint)
    return Parent(folder, parent.params_digest, parent.training_flops)


def _is_rounded(path: Path) -> bool:
    return not is_published(path) and stored_weights(path) == "bfloat16"


def _tag(config: StudyConfig, plan: Plan, dataset: Dataset) -> str:
    """A digest of what decides a rung's parameters and of nothing else, so that budgets may be
    added and laws of size rewritten.
    """
    recipe: TrainingConfig = config.training
    rung, schedule = plan.rung, plan.schedule
    identity: dict[str, Any] = {
        "role": rung.role,
        "params": rung.params,
        "seeds": [config.seed, rung.seed],
        "model": plan.model.description(),
        # Twelve digits: laws that differ only in their reference size agree to rounding.
        "learning_rate": f"{schedule.peak:.12g}",
        "batch": plan.batch,
        "warmup": schedule.warmup,
        "recipe": {name: getattr(recipe, name) for name in _RECIPE},
        "data": [dataset.digest, dataset.sequence_length],
    }
    if rung.objective:
        identity["distil"] = [rung.objective, plan.parent.digest if plan.parent else ""]
    if plan.head is not None:
        unrolled = [config.distil.unrolled, config.distil.draft_decay]
        start = [START_WINDOWS] if plan.head.on_tables else []
        identity["head"] = [plan.head.description(), *unrolled, *start]
    if plan.slices:
        identity["slices"] = [each.model.description() for each in plan.slices]
    if plan.frozen_blocks >= 0:
        identity["frozen_blocks"] = plan.frozen_blocks
    if plan.teacher_digest:
        d = config.distil
        samples = [d.text, d.prompt_tokens, config.seed] if d.text == "samples" else [d.text]
        weighted = [d.eta] if rung.objective == "hybrid" else []
        kept = d.kept(dataset.tokenizer.vocab_size)
        identity["teacher"] = [plan.teacher_digest, d.temperature, kept, *samples, *weighted]
    return json_sha256(identity)[:10]


def select(
    plans: Sequence[Plan], patterns: Sequence[str] = (), part: tuple[int, int] | None = None
) -> list[Plan]:
    """A part of a ladder.

    Args:
      plans: The ladder.
      patterns: Names of rungs, with or without the seed, in which `*`, `?` and `[…]` are wildcards;
        all rungs if empty.
      part: (i, n) for part i, counted from 1, of n parts with about equal FLOPs.

    Raises:
      SdslError: A pattern fits no rung, or there is no such part.
    """
    names = [(plan.rung.name, plan.rung.name.rpartition("-s")[0]) for plan in plans]
    for pattern in patterns:
        require(
            any(fnmatchcase(name, pattern) for both in names for name in both),
            f"no rung is named {pattern!r}; the rungs are {', '.join(name for name, _ in names)}.",
        )
    chosen = [
        plan
        for plan, both in zip(plans, names)
        if not patterns or any(fnmatchcase(name, pattern) for name in both for pattern in patterns)
    ]
    if part is None:
        return chosen
    i, n = part
    require(1 <= i <= n, f"the part is {i}/{n}; it must be i/n with 1 <= i <= n.")
    # The largest first, each to the part with least to do.
    loads, mine = [0.0] * n, set()
    for plan in sorted(chosen, key=lambda p: (-p.flops, p.rung.name)):
        least = loads.index(min(loads))
        loads[least] += plan.flops
        if least == i - 1:
            mine.add(plan.rung.name)
    return [plan for plan in chosen if plan.rung.name in mine]
