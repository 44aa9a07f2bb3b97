"""A protocol: every available pair of published checkpoints, measured in the same way, in one folder
of records.

Absent checkpoints are skipped and named. Pairs that the records hold already are not measured again,
so an interrupted protocol continues where it stopped, and checkpoints may arrive one after another.
Pairs with one tokenizer are decoded. Others are compared on the target's text in the draft's tokens,
which is not lossless decoding; their estimator keeps them apart.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import jax

from sdsl_jax.checkpoints.loading import LoadOptions, load_model
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.config import ProtocolConfig, ProtocolModel, to_dict
from sdsl_jax.data.prompts import Prompts, encode_prompts, load_prompts
from sdsl_jax.decoding import Sampling
from sdsl_jax.digests import file_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement import pair_records
from sdsl_jax.measurement.measured_pair import measure_and_record, pair_name
from sdsl_jax.measurement.pair import PairSettings
from sdsl_jax.measurement.pair_report import RetokenisedReport
from sdsl_jax.measurement.pair_warnings import share_tokens
from sdsl_jax.measurement.retokenised import prompt_losses, retokenised_acceptance
from sdsl_jax.package_files import user_path
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import (
    read_json,
    read_table,
    require_records_folder,
    write_json,
)

RETOKENISED, SETTINGS = "retokenised", "protocol-settings.json"
# Share of a device's memory that weights may take: caches, logits and programs need the rest.
_SHARE_FOR_WEIGHTS = 0.7
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ProtocolResult(NamedTuple):
    """The outcome of a protocol.

    Attributes:
      measured: Pairs (draft, target) in the records, from this run or an earlier one.
      absent: Folders that do not exist.
      unreadable: Reason for each checkpoint that cannot be read, or pair that cannot be measured.
    """

    measured: list[tuple[str, str]]
    absent: list[str]
    unreadable: dict[str, str]


def devices_for(params: float, dtype: str) -> int:
    """The smallest number of devices that hold the weights of a model; 1 if a device does not report
    its memory.

    Raises:
      SdslError: all devices together hold too little.
    """
    devices = jax.devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    if not limit:
        return 1
    needed = math.ceil(params * _BYTES[dtype] / (_SHARE_FOR_WEIGHTS * limit))
    # Powers of two divide the axes of every published matrix.
    count = 2 ** math.ceil(math.log2(max(needed, 1)))
    require(
        count <= len(devices),
        f"{params:.3g} parameters in {dtype} need {count} devices of {limit / 1e9:.0f} GB; there are {len(devices)}.",
    )
    return count


def run_protocol(
    config: ProtocolConfig,
    checkpoints: Path,
    prompts: str,
    out: Path,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Measures every available pair that is not in the records yet.

    Args:
      config: The protocol.
      checkpoints: Folder of checkpoints, each in a folder of the name that the protocol gives it.
      prompts: File of prompts.
      out: Folder of the records.
      progress: Reports progress on every pair.

    Raises:
      SdslError: the checkpoints or the prompts are missing, the folder of the records holds somebody
        else's files, or the records cannot be written.
    """
    progress = progress or Silent()
    require(checkpoints.is_dir(), f"the folder of checkpoints {checkpoints} does not exist.")
    require_records_folder(out, pair_records.WRITTEN, mark=SETTINGS)
    out.mkdir(parents=True, exist_ok=True)
    _require_same_settings(config, user_path(prompts), out)
    absent = [
        m.folder for m in (*config.targets, *config.drafts) if not (checkpoints / m.folder).is_dir()
    ]
    absent = list(dict.fromkeys(absent))
    for name in absent:
        progress.note(f"{name} is not in {checkpoints}: passed over")
    unreadable: dict[str, str] = {}
    measured = []
    for target in config.targets:
        drafts = [draft for draft in config.drafts_of(target) if draft.folder not in absent]
        if target.folder in absent or not drafts:
            continue
        done = _done(out)
        left = [draft for draft in drafts if (draft.folder, target.folder) not in done]
        if left:
            _measure_target(config, target, left, checkpoints, prompts, out, unreadable, progress)
        done = _done(out)
        measured += [
            (draft.folder, target.folder)
            for draft in drafts
            if (draft.folder, target.folder) in done
        ]
    return ProtocolResult(measured, absent, unreadable)


def _require_same_settings(config: ProtocolConfig, prompts: Path, out: Path) -> None:
    """Raises `SdslError` if the folder was begun with other settings or prompts; other models are no problem."""
    try:
        digest = file_sha256(prompts)
    except OSError as error:
        raise SdslError(
            f"the prompt file {prompts} cannot be read ({error.strerror or error})."
        ) from None
    settings = {"measure": to_dict(config.measure), "seed": config.seed, "prompts_sha256": digest}
    path = out / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    begun = read_json(path)
    for key, value in settings.items():
        require(
            begun.get(key) == value,
            f"the folder {out} was begun with {key} = {begun.get(key)}, and this protocol has {value}; name another folder.",
        )


def _done(out: Path) -> set[tuple[str, str]]:
    """Pairs (draft, target) in the records."""
    pairs = {(name.draft_id, name.target_id) for name in pair_records.measured_pairs(out)}
    rows = read_table(out, "acceptance", optional=True)
    return pairs | {(r.draft_id, r.target_id) for r in rows if r.estimator == RETOKENISED}


def _load(
    model: ProtocolModel,
    checkpoints: Path,
    config: ProtocolConfig,
    devices: int,
    progress: Progress,
) -> LoadedModel:
    options = LoadOptions(
        dtype=config.measure.dtype, devices=devices, ignore_keys=config.ignore_keys
    )
    loaded = load_model(checkpoints / model.folder, options, progress)
    record = dataclasses.replace(
        loaded.record, model_id=model.folder, train_tokens=int(model.train_tokens)
    )
    return loaded._replace(record=record)


def _measure_target(
    config: ProtocolConfig,
    target: ProtocolModel,
    drafts: list[ProtocolModel],
    checkpoints: Path,
    prompts: str,
    out: Path,
    unreadable: dict[str, str],
    progress: Progress,
) -> None:
    """Measures one target, which is read once, with its drafts one after another."""
    m = config.measure
    try:
        # Both models of a pair use the same devices, as many as the larger one needs.
        devices = devices_for(max(model.params for model in (target, *drafts)), m.dtype)
        loaded = _load(target, checkpoints, config, devices, progress)
    except SdslError as error:
        unreadable[target.folder] = str(error)
        progress.note(f"{target.folder} cannot be read: {error}")
        return
    chosen = load_prompts(
        prompts, loaded.tokenizer, count=m.prompts, max_tokens=m.prompt_tokens, data=None
    )
    settings = PairSettings(
        lookaheads=m.lookaheads,
        new_tokens=m.new_tokens,
        sampling=Sampling(m.temperature),
        seed=config.seed,
        batch=m.batch,
        confidence=m.confidence,
    )
    for draft in drafts:
        try:
            proposing = _load(draft, checkpoints, config, devices, progress)
        except SdslError as error:
            unreadable[draft.folder] = str(error)
            progress.note(f"{draft.folder} cannot be read: {error}")
            continue
        progress.note(f"{draft.folder} × {target.folder}")
        try:
            if share_tokens(proposing, loaded):
                measure_and_record(
                    proposing,
                    loaded,
                    chosen,
                    settings,
                    timed=m.timed,
                    out=out,
                    options=LoadOptions(dtype=m.dtype),
                    requested=m.prompts,
                    progress=progress,
                )
            else:
                _retokenise(proposing, loaded, chosen, settings, config, out, progress)
        except (SdslError, jax.errors.JaxRuntimeError) as error:
            # Such as too little memory: it fails this pair and no other.
            reason = str(error).splitlines()[0]
            unreadable[f"{draft.folder} × {target.folder}"] = reason
            progress.note(f"{draft.folder} × {target.folder} cannot be measured: {reason}")


def _retokenise(
    draft: LoadedModel,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    config: ProtocolConfig,
    out: Path,
    progress: Progress,
) -> None:
    """Both losses are those on the prompts, with each model in its own tokens of the same text."""
    pair_records.require_same_models(out, draft, target)
    result = retokenised_acceptance(
        draft.model,
        target.model,
        draft.tokenizer,
        target.tokenizer,
        prompts,
        settings,
        progress,
    )
    texts = [
        target.tokenizer.decode(ids[prompts.lead : n])
        for ids, n in zip(prompts.tokens, prompts.lengths)
    ]
    own = encode_prompts(texts, draft.tokenizer, 8 * config.measure.prompt_tokens, prompts.domain)
    models = []
    for role, model, in_own_tokens in (("draft", draft, own), ("target", target, prompts)):
        losses = prompt_losses(role, model.model, model.tokenizer, in_own_tokens, settings)
        models.append(pair_records.with_loss(model.record, role, losses))
    name = pair_name(draft, target, prompts, settings)
    rows = pair_records.PairRows(name, settings.confidence)
    pair_records.append_pair(
        out,
        name,
        models,
        RetokenisedReport.of(draft, target, prompts, settings, result),
        acceptance=[rows.acceptance(RETOKENISED, 0, result.alpha, result.rows, result.stretches)],
    )
