"""The explorer of a study: its laws, its device and its targets as choices, and its measured points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdsl_jax.errors import require
from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.evidence.clock import cells
from sdsl_jax.explore.state import Choices, State, doublings
from sdsl_jax.hardware import HardwareFile, save_hardware
from sdsl_jax.records import ModelRecord, write_json, write_text
from sdsl_jax.theory.hardware import Precision

# Folder within the study for the files that a page's command lines name.
FOLDER = "explore"
_DEVICE, _LAW_OF_TEMPERATURE = "this study's device", "logit_gap"


def choices_of_study(records: StudyRecords) -> Choices:
    """What a page on a study offers.

    The problem of the study, its device and its laws by temperature are written into the folder
    `explore` of the study: the command line that the page shows reads them.

    Args:
      records: Records of the study.

    Raises:
      SdslError: The study has no fitted laws, or the files cannot be written.
    """
    require(
        records.has_fits,
        f"{records.folder} holds no fitted laws; an explorer needs a study whose stage fit has run.",
    )
    laws, targets, drafts = records.laws, records.targets, records.of_role("draft")
    folder = records.folder / FOLDER
    device = records.path / "hardware.toml"
    if not device.exists():
        device = folder / "hardware.toml"
        save_hardware(_device(records), device)
    fits = records.path / "fits.json"
    acceptance = {name: f"{fits}#{name}" for name in laws.acceptance}
    acceptance |= _laws_of_temperatures(records, folder)
    counted = records.fits.loss_law.params_count or "non-embedding"
    sizes = sorted({_size(m, counted) for m in drafts})
    problem = folder / "problem.toml"
    write_text(problem, _problem(records, sizes, counted))
    largest = targets[-1]
    start = State(
        target_params=_size(largest, counted),
        target_tokens=float(largest.train_tokens),
        draft_tokens=float(max(m.train_tokens for m in drafts)),
        loss_law="this study's",
        acceptance_law=next(iter(laws.acceptance)),
        hardware=_DEVICE,
        devices=1.0,
        batch=float(laws.batch),
        context=float(laws.context),
        prefill="elsewhere",
        weight_bytes=float(laws.precision.weight_bytes),
        draft_params=sizes[-1],
        acceptance=0.7,
    )
    contexts = sorted({float(laws.context), *doublings(64, 8192)})
    return Choices(
        loss_laws={"this study's": str(fits)},
        acceptance_laws=acceptance,
        hardware={_DEVICE: str(device)},
        engines={},
        target_params=tuple(sorted({_size(m, counted) for m in targets})),
        target_tokens=tuple(sorted({float(m.train_tokens) for m in targets})),
        draft_tokens=tuple(sorted({float(m.train_tokens) for m in drafts})),
        draft_params=tuple(sizes),
        contexts=tuple(contexts),
        devices=(1.0,),
        counted=counted,
        fixed={"file": str(problem)},
        start=start,
    )


def _size(model: ModelRecord, counted: str) -> float:
    """A model's size in the count of the loss law."""
    return float(model.params_total if counted == "total" else model.params_nonembedding)


def _device(records: StudyRecords) -> HardwareFile:
    """The device behind the step times of the study, as a hardware file."""
    laws = records.laws
    return HardwareFile(
        name="study-device",
        hardware=laws.hardware,
        precision=Precision(*map(float, laws.precision)),
        devices=records.models[0].device,
        source=f"fitted to the step times of the study {records.config.name}",
        # A file says so of a device that `sdsl calibrate` timed; the source says what this one rests on.
        measured=False,
    )


def _laws_of_temperatures(records: StudyRecords, folder: Path) -> dict[str, str]:
    """Acceptance laws at other temperatures, where the study measured them."""
    evidence = records.document("evidence", Evidence)
    found = evidence.temperature if evidence else None
    about = next(
        (law for law in records.fits.acceptance_laws if law.law == _LAW_OF_TEMPERATURE), None
    )
    files: dict[str, str] = {}
    for row in found.by_temperature if found and about else []:
        path = folder / f"{_LAW_OF_TEMPERATURE}-temperature-{row.temperature:g}.json"
        law: dict[str, Any] = {
            "law": _LAW_OF_TEMPERATURE,
            "coefficients": {"level": row.level.estimate, "slope": row.slope.estimate},
            "params_count": about.params_count,  # type: ignore[union-attr]
            "text": about.text,  # type: ignore[union-attr]
        }
        write_json(path, {name: value for name, value in law.items() if value is not None})
        files[f"{_LAW_OF_TEMPERATURE} at T = {row.temperature:g}"] = str(path)
    return files


def _problem(records: StudyRecords, sizes: Sequence[float], counted: str) -> str:
    """The problem file of a study: shapes of its family, and draft sizes around those that it trained."""
    rule, precision = records.laws.rule, records.laws.precision
    low, high = sizes[0] / 2, 2 * sizes[-1]
    shape = (
        f"aspect_ratio = {float(rule.aspect_ratio)!r}\n"
        f"kv_share = {float(rule.kv_share)!r}\n"
        f"embedding_tables = {int(rule.embedding_tables)}\n"
        f"weight_bytes = {float(precision.weight_bytes)!r}\n"
        f"cache_bytes = {float(precision.cache_bytes)!r}\n"
    )
    target = _size(records.targets[-1], counted)
    return (
        f"# Shapes and sizes of the study {records.config.name}, for sdsl codesign and sdsl explore.\n"
        f"[target]\nparams = {target!r}\nvocab_size = {int(rule.vocab_size)}\n{shape}\n"
        f"[draft]\n{shape}\n"
        f'[variables]\ndraft_params = [{low!r}, {high!r}]\nlookahead = "free"\n'
    )


def measured_points(
    records: StudyRecords, choices: Choices, state: State
) -> dict[str, list[dict[str, Any]]]:
    """The study's own measurements of the state: drafts of its target and budget, at its batch.

    None where context, prefill, drafting, weights or temperature are not those of the measurement.

    Decoders that ran on the clock come first; a study without them has measured tokens per round
    over the times of its steps.
    """
    budgets = {m.model_id: m.train_tokens for m in records.models}
    by_id = {m.model_id: m for m in [*records.models, *records.timed_models]}
    target = next(
        (
            m
            for m in records.targets
            if _size(m, choices.counted) == state.target_params
            and m.train_tokens == state.target_tokens
        ),
        None,
    )
    if target is None or not _as_measured(choices, state):
        return {}
    timed = [
        cell.decoder
        for cell in cells(records)
        if cell.target.model_id == target.model_id
        and budgets.get(cell.draft.model_id) == state.draft_tokens
    ]
    rows = [
        _row(by_id[one.draft_id], choices.counted, one.lookahead, one)
        for one in timed
        if one.batch == state.batch
    ]
    if not timed and state.batch == records.laws.batch:
        entry = next(
            (
                e
                for e in records.codesign
                if e.target_id == target.model_id and e.cost_model == "measured"
            ),
            None,
        )
        rows = [
            _row(by_id[one.draft_id], choices.counted, one.lookahead, one)
            for one in (entry.trained if entry else [])
            if one.train_tokens == state.draft_tokens
        ]
    best: dict[int, Any] = {}
    for one in timed:
        if one.batch not in best or one.speedup > best[one.batch].speedup:
            best[one.batch] = one
    loads = [
        _row(by_id[one.draft_id], choices.counted, one.lookahead, one)
        | {"batch": batch, "context": int(state.context)}
        for batch, one in best.items()
    ]
    return {"measured": rows, "measured_schedule": loads}


def _as_measured(choices: Choices, state: State) -> bool:
    """Whether a state differs from the study's own measurements in nothing that they were taken at.

    The page opens where the study measured, so every other control must stand where it stood.
    """
    names = ("hardware", "context", "prefill", "drafting", "weight_bytes")
    same = all(getattr(state, name) == getattr(choices.start, name) for name in names)
    return same and " at T = " not in state.acceptance_law


def _row(draft: ModelRecord, counted: str, lookahead: int, one: Any) -> dict[str, Any]:
    return {
        "name": draft.model_id,
        "size": _size(draft, counted),
        "lookahead": int(lookahead),
        "speedup": float(one.speedup),
        "speedup_low": float(one.speedup_low),
        "speedup_high": float(one.speedup_high),
    }
