"""What to tell a serving engine, ready to paste, and which draft that is: a name never stands with
the lookahead of another draft.

Checked in November 2026 against:
  vLLM: docs/features/speculative_decoding/draft_model.md of its main branch; drafting by a model of
  its own came to the V1
    engine by pull request 24322 (versions up to 0.13 refuse it), and asks for the tensor
    parallelism of the target (`_raise_if_draft_tp_mismatch`, so in 0.20 and since). It drafts
    greedily unless `draft_sample_method` says otherwise (pull request 40269; in 0.26 and since).
  SGLang: docs/advanced_features/speculative_decoding.md; with a branching factor of 1, verification
  takes num-steps + 1 tokens. Transformers 4.45 to 5.17: the candidate generator reads the settings
  from the assistant's own generation config, and stops
    early below a confidence of 0.4 unless the threshold is 0.
"""

from __future__ import annotations

import functools
import json
import shlex
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sdsl_jax.codesign.comparison import (
    Candidate,
    ComparedDraft,
    Comparison,
    SuggestedDraft,
)
from sdsl_jax.codesign.drafts import published_draft
from sdsl_jax.config.codesign_problem import DraftConfig, ProblemConfig
from sdsl_jax.counts import short_count
from sdsl_jax.theory.serving import Design

_Row = TypeVar("_Row", Candidate, SuggestedDraft)
_DRAFT, _TARGET = "path/to/draft", "path/to/target"
_LAYERS = "whole layers on devices, one after another"

NOTES = (
    "vLLM and SGLang run the draft on all devices of the target, by tensor parallelism",
    "α is that of sampled drafts, Σ min(p, q): vLLM samples drafts with draft_sample_method probabilistic, SGLang takes the most "
    "likely token, which the target accepts with its own probability of it",
)

# Where several devices share the models.
_BY_LAYERS = 'Transformers with device_map="auto" puts whole layers on devices, one after another: the times here are not for it'
_ONE_ROW = (
    "Transformers speculates for one row at a time: its settings do not serve the batch of {} here"
)


@dataclass(frozen=True)
class ServedDraft:
    """The draft that engine settings are of, at its own best lookahead.

    Attributes:
      name: Name to be loaded; empty where the draft has none yet.
      source: "named" by [draft] name, "published" with the tokenizer of the target,
        "candidate", or "to_train".
      total_params: Size, embeddings included.
      lookahead: Drafts per round.
      acceptance: Probability α that a draft token is accepted.
      speedup: Speed-up S over the target alone.
      within_constraints: Whether every constraint holds.
      pays: Whether it keeps all limits and is faster than the target alone.
      sentence: Which draft it is, with its lookahead and speed-up.
    """

    name: str
    source: str
    total_params: float
    lookahead: int
    acceptance: float
    speedup: float
    within_constraints: bool
    pays: bool
    sentence: str


@dataclass(frozen=True)
class VllmSettings:
    """Settings of vLLM.

    Attributes:
      speculative_config: The value of --speculative-config.
      command: Command that starts the server.
    """

    speculative_config: dict[str, Any]
    command: str


@dataclass(frozen=True)
class SglangSettings:
    """Settings of SGLang.

    Attributes:
      command: Command that starts the server.
    """

    command: str


@dataclass(frozen=True)
class TransformersSettings:
    """Settings of Hugging Face Transformers.

    Attributes:
      code: Python code that generates with the draft as assistant.
    """

    code: str


@dataclass(frozen=True)
class EngineSettings:
    """Settings of three engines for one draft.

    Attributes:
      vllm: Settings of vLLM.
      sglang: Settings of SGLang.
      hugging_face: Settings of Transformers.
      placement: Where each engine puts the models, by engine.
      notes: What to know before pasting them, a sentence each.
      draft: The draft that they are of.
      speedup_with_draft_on_all_devices: Speed-up S of that draft where vLLM and SGLang run it.
    """

    vllm: VllmSettings
    sglang: SglangSettings
    hugging_face: TransformersSettings
    placement: dict[str, str]
    notes: list[str]
    draft: ServedDraft | None = None
    speedup_with_draft_on_all_devices: float | None = None


def engine_settings(
    lookahead: int, devices: int, draft: str = "", target: str = "", batch: int = 1
) -> EngineSettings:
    """Settings for three engines.

    Args:
      lookahead: Drafts per round, γ ≥ 1.
      devices: Devices of the target (its tensor-parallel size).
      draft: Path or name of the draft; a placeholder if empty.
      target: Path or name of the target; a placeholder if empty.
      batch: Rows that are decoded together.
    """
    draft, target = draft or _DRAFT, target or _TARGET
    # Names may hold blanks, quotes and $(...): the commands are quoted for a POSIX shell, and the
    # code for Python.
    in_python = functools.partial(json.dumps, ensure_ascii=False)
    vllm = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": lookahead,
        "draft_tensor_parallel_size": devices,
        "draft_sample_method": "probabilistic",
    }
    together = f"draft and target on all {devices} devices, tensor parallel"
    return EngineSettings(
        vllm=VllmSettings(
            vllm,
            f"vllm serve {shlex.quote(target)} --tensor-parallel-size {devices} --speculative-config "
            f"{shlex.quote(json.dumps(vllm))}",
        ),
        sglang=SglangSettings(
            f"python3 -m sglang.launch_server --model-path {shlex.quote(target)} --tp-size {devices} "
            f"--speculative-algorithm STANDALONE --speculative-draft-model-path {shlex.quote(draft)} "
            f"--speculative-num-steps {lookahead} --speculative-eagle-topk 1 --speculative-num-draft-tokens {lookahead + 1}"
        ),
        hugging_face=TransformersSettings(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"tokenizer = AutoTokenizer.from_pretrained({in_python(target)})\n"
            f'target = AutoModelForCausalLM.from_pretrained({in_python(target)}, dtype="auto", device_map="auto")\n'
            f'draft = AutoModelForCausalLM.from_pretrained({in_python(draft)}, dtype="auto", device_map="auto")\n'
            'inputs = tokenizer("a prompt", return_tensors="pt").to(target.device)\n'
            f"draft.generation_config.num_assistant_tokens = {lookahead}\n"
            'draft.generation_config.num_assistant_tokens_schedule = "constant"\n'
            "draft.generation_config.assistant_confidence_threshold = 0.0\n"
            "target.generate(**inputs, assistant_model=draft, do_sample=True)"
        ),
        placement={"vllm": together, "sglang": together, "hugging_face": _LAYERS},
        notes=[
            *NOTES,
            *([_BY_LAYERS] if devices > 1 else []),
            *([_ONE_ROW.format(batch)] if batch > 1 else []),
        ],
    )


def settings_of_best_draft(
    config: ProblemConfig, design: Design, comparison: Comparison
) -> EngineSettings:
    """Settings of engines for the draft to serve with.

    Args:
      config: What was asked.
      design: The optimum in whole numbers.
      comparison: The drafts where the engines put them: on all devices of the target.
    """
    served = served_draft(config.draft, comparison)
    devices = config.hardware.devices
    batch = round(float(design.batch))
    settings = engine_settings(served.lookahead, devices, served.name, config.target.name, batch)
    return replace(
        settings,
        draft=served,
        notes=settings.notes + notes_of(served.name, devices),
        speedup_with_draft_on_all_devices=served.speedup,
    )


def served_draft(draft: DraftConfig, comparison: Comparison) -> ServedDraft:
    """The named draft; else the best published one with the target's tokenizer, the best candidate,
    or the optimum, if it pays.

    Args:
      draft: The draft that was asked about.
      comparison: The drafts, where the engines put them.
    """
    if comparison.named is not None:
        return _served(draft.name, "named", comparison.named)
    shared = [row for row in comparison.published if row.tokenizer == "shared"]
    # Where an acceptance was measured, it is the candidate's, whatever its name.
    if not draft.acceptance:
        best = _best([row for row in shared if row.divides_among_devices])
        if best is not None:
            return _served(best.name, "published", best)
    candidate = _best(comparison.candidates)
    if candidate is None:
        return _served("", "to_train", comparison.optimum)
    loadable = candidate.published in {row.name for row in shared}
    return _served((candidate.published or "") if loadable else "", "candidate", candidate)


def notes_of(name: str, devices: int) -> list[str]:
    """What stands in the way of engines that are to run a published model as the draft."""
    model = published_draft(name) if name else None
    if model is None:
        return []
    notes = []
    if model.heads % devices:
        notes.append(
            f"{name} has {model.heads} query heads, which {devices} devices cannot share evenly: engines refuse it"
        )
    if model.padded:
        notes.append(
            f"{name} has a vocabulary of {model.vocab_size:,} rows and larger models of its family pad theirs further: "
            "vLLM compares the two, so pad the draft's embedding first"
        )
    return notes


def _best(rows: list[_Row]) -> _Row | None:
    paying = [row for row in rows if row.within_constraints and row.speedup > 1]
    return min(paying, key=lambda row: row.objective_loss, default=None)


def _served(name: str, source: str, row: ComparedDraft) -> ServedDraft:
    size = row.total_params if isinstance(row, SuggestedDraft) else row.draft_params.total
    pays = row.within_constraints and row.speedup > 1
    shown = short_count(size)
    who = {
        "named": f"{name} ({shown})",
        "published": f"{name} ({shown}), the best published draft with the tokenizer of the target",
        "candidate": f"your candidate of {shown}" + (f", {name}" if name else ""),
        "to_train": f"a draft of {shown} that is yet to be trained",
    }[source]
    gain = f"its best lookahead is γ = {row.lookahead}, {row.speedup:.2f} times as fast as the target alone"
    if not row.within_constraints:
        sentence = f"no settings for {who}: it breaks a limit at every lookahead"
    elif pays:
        sentence = f"settings for {who}: {gain}"
    else:
        sentence = f"no settings for {who}: {gain}, so do not speculate with it"
    numbers = row.lookahead, row.acceptance, row.speedup, row.within_constraints
    return ServedDraft(name, source, size, *numbers, pays, sentence)
