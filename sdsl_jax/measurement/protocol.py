"""A protocol: every pair of published checkpoints that is there, measured the same way, into one
folder of records.

What is absent is passed over and named. A pair that the records hold already is not measured again,
so that an interrupted protocol goes on where it stood, and checkpoints may arrive one after
another. Pairs of one tokenizer are decoded; others are compared on the target's text in the draft's
tokens, which is no lossless decoding, and kept apart by their estimator.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdsl_jax.checkpoints.loading import LoadOptions, load_model
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.config import ProtocolConfig, ProtocolModel, to_dict
from sdsl_jax.data.prompts import Prompts, encode_prompts, load_prompts
from sdsl_jax.decoding import Model, Sampling, one_vocabulary
from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement import pair_records, pair_report
from sdsl_jax.measurement.generation import time_generation
from sdsl_jax.measurement.pair import PairSettings, measure_pair
from sdsl_jax.measurement.retokenised import prompt_losses, retokenised_acceptance
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import (
    AcceptanceRecord,
    read_json,
    read_table,
    require_records_folder,
    write_json,
)

RETOKENISED, SETTINGS = "retokenised", "protocol-settings.json"
# Of a device's memory, what weights may take: caches, logits and programs need the rest.
_SHARE_FOR_WEIGHTS = 0.7
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Progressed(NamedTuple):
    """What became of a protocol.

    Attributes:
      measured: pairs (draft, target) in the records, of this run or an earlier one.
      absent: folders that are not there.
      unreadable: what is wrong with a checkpoint that is there, by folder.
    """

    measured: list[tuple[str, str]]
    absent: list[str]
    unreadable: dict[str, str]


def devices_for(params: float, dtype: str, devices: list[jax.Device] | None = None) -> int:
    """The smallest number of devices that the weights of a model fit on; 1 where a device does not
    say how much it holds.

    Raises:
      SdslError: all of them together hold too little.
    """
    devices = jax.devices() if devices is None else devices
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
) -> Progressed:
    """Measures every pair that is there and not in the records yet.

    Args:
      config: the protocol.
      checkpoints: folder of checkpoints, each in a folder of the name that the protocol gives it.
      prompts: file of prompts.
      out: folder of the records.
      progress: told about every pair.

    Raises:
      SdslError: the folder of checkpoints or the prompts are missing, the folder of the records
        holds files of somebody else, or the records cannot be written.
    """
    progress = progress or Silent()
    require(checkpoints.is_dir(), f"the folder of checkpoints {checkpoints} does not exist.")
    require_records_folder(out, pair_records.WRITTEN, mark=SETTINGS)
    out.mkdir(parents=True, exist_ok=True)
    _require_same_settings(config, Path(prompts), out)
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
        wanted = [draft for draft in drafts if (draft.folder, target.folder) not in done]
        if wanted:
            _measure_target(config, target, wanted, checkpoints, prompts, out, unreadable, progress)
        done = _done(out)
        measured += [
            (draft.folder, target.folder)
            for draft in drafts
            if (draft.folder, target.folder) in done
        ]
    return Progressed(measured, absent, unreadable)


def _require_same_settings(config: ProtocolConfig, prompts: Path, out: Path) -> None:
    """Raises `SdslError` if the folder was begun with other settings or prompts; more models may have been added since."""
    try:
        digest = hashlib.sha256(prompts.read_bytes()).hexdigest()
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
    found = {(name.draft_id, name.target_id) for name in pair_records.measured_pairs(out)}
    if (out / "acceptance.csv").exists():
        rows = read_table(out, "acceptance")
        found |= {(r.draft_id, r.target_id) for r in rows if r.estimator == RETOKENISED}
    return found


def _load(
    model: ProtocolModel,
    checkpoints: Path,
    config: ProtocolConfig,
    devices: int,
    progress: Progress,
) -> LoadedModel:
    reading = LoadOptions(
        dtype=config.measure.dtype, devices=devices, ignore_keys=config.ignore_keys
    )
    loaded = load_model(checkpoints / model.folder, reading, progress)
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
    """One target, which is read once, with its drafts one after another."""
    m = config.measure
    try:
        # A pair lies on the same devices, as many as the larger of the two needs.
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
        measure = _decode if pair_report.share_tokens(proposing, loaded) else _retokenise
        try:
            measure(proposing, loaded, chosen, settings, config, out, progress)
        except (SdslError, jax.errors.JaxRuntimeError) as error:
            # Memory that does not suffice, say: of this pair, and of no other.
            reason = str(error).splitlines()[0]
            unreadable[f"{draft.folder} × {target.folder}"] = reason
            progress.note(f"{draft.folder} × {target.folder} cannot be measured: {reason}")


def _decode(
    draft: LoadedModel,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    config: ProtocolConfig,
    out: Path,
    progress: Progress,
) -> None:
    q, p = one_vocabulary(Model(draft.config, draft.params), Model(target.config, target.params))
    measured = measure_pair(q, p, prompts, settings, progress)
    m = config.measure
    times = time_generation(q, p, prompts, settings, m.timed, progress=progress) if m.timed else []
    source = pair_report.Draft(draft.record.model_id, draft)
    warnings = pair_report.input_warnings(draft, target, prompts, settings, m.prompts)
    warnings += pair_report.result_warnings(measured)
    how = pair_records.how_measured(settings, LoadOptions(dtype=m.dtype)._asdict())
    answer = pair_report.report(source, target, prompts, settings, measured, times, warnings, how)
    pair_records.append_records(out, source, target, prompts, settings, measured, times, answer)


def _retokenise(
    draft: LoadedModel,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    config: ProtocolConfig,
    out: Path,
    progress: Progress,
) -> None:
    """Both losses are those on the prompts, each model in its own tokens of the same text."""
    m = config.measure
    found = retokenised_acceptance(
        Model(draft.config, draft.params),
        Model(target.config, target.params),
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
    own = encode_prompts(texts, draft.tokenizer, 8 * m.prompt_tokens, prompts.domain)
    losses: dict[str, Any] = {
        "draft": prompt_losses(
            "draft", Model(draft.config, draft.params), draft.tokenizer, own, settings
        ),
        "target": prompt_losses(
            "target", Model(target.config, target.params), target.tokenizer, prompts, settings
        ),
    }
    row = AcceptanceRecord(
        draft_id=draft.record.model_id,
        target_id=target.record.model_id,
        estimator=RETOKENISED,
        lookahead=0,
        temperature=m.temperature,
        domain=prompts.domain,
        alpha=found.alpha.estimate,
        alpha_low=found.alpha.low,
        alpha_high=found.alpha.high,
        confidence=m.confidence,
        clusters=found.rows,
        tokens=found.stretches,
    )
    models = [
        pair_records.with_loss(model.record, role, *losses[role])
        for role, model in (("draft", draft), ("target", target))
    ]
    pair_records.require_same_models(out, draft, target)
    answer = pair_report.report_retokenised(draft, target, prompts, settings, found)
    pair_records.append_acceptance(out, models, row, answer)
