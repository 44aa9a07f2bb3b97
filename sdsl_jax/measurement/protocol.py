"""A protocol: every available pair of published checkpoints, measured in the same way, in one folder
of records.

Absent checkpoints are skipped and named. Pairs that the records hold already are not measured again,
so an interrupted protocol continues where it stopped, and checkpoints may arrive one after another.
Processes may share a folder: each pair is a part, which one of them measures.
Pairs with one tokenizer are decoded. Others are compared on the target's text in the draft's tokens,
which is not lossless decoding; their estimator keeps them apart.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax

from sdsl_jax.checkpoints.loading import LoadOptions, load_model
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.claims import Claim
from sdsl_jax.config import ProtocolConfig, ProtocolModel, to_dict
from sdsl_jax.data.prompts import Prompts, encode_prompts, load_prompts
from sdsl_jax.decoding import Sampling
from sdsl_jax.digests import file_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement import pair_records
from sdsl_jax.measurement.measured_pair import NGRAM, draft_options, measure_and_record, pair_name
from sdsl_jax.measurement.pair import PairSettings, Samples
from sdsl_jax.measurement.pair_records import PART_DONE, merge_parts, part_folder
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
_POLL_SECONDS = 1.0
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
    *,
    shared: bool = False,
) -> ProtocolResult:
    """Measures every available pair that is not in the records yet.

    Any number of processes may do so at once. Each takes a target that nobody has, with its drafts,
    and in the end pairs that are left of the others' targets.

    Args:
      config: The protocol.
      checkpoints: Folder of checkpoints, each in a folder of the name that the protocol gives it.
      prompts: File of prompts.
      out: Folder of the records.
      progress: Reports progress on every pair.
      shared: Whether to leave the records of each pair in a part of its own, for a later call to put
        into the tables.

    Raises:
      SdslError: the checkpoints or the prompts are missing, the folder of the records holds somebody
        else's files, or the records cannot be written.
    """
    progress = progress or Silent()
    begin_protocol(config, checkpoints, prompts, out)
    absent = _absent(config, checkpoints)
    for name in absent:
        progress.note(f"{name} is not in {checkpoints}: passed over")
    pairs = available_pairs(config, checkpoints)
    work = _Work(config, checkpoints, prompts, out, progress, _done(out), {}, {})
    targets = {target.folder: Claim(out / "parts" / target.folder) for target, _ in pairs}
    alone, busy = True, True
    while busy:
        busy = False
        work.refresh()
        for target, drafts in pairs:
            left = [draft for draft in drafts if work.is_left(draft, target)]
            if left and targets[target.folder].acquire():
                with targets[target.folder]:
                    busy |= _measure_target(work, target, left)
            elif left and not alone:
                # Whoever has the target begins at the other end.
                busy |= _measure_target(work, target, left[::-1])
            else:
                busy |= bool(left)
        if busy:
            # There is no target left that nobody has.
            alone = False
            time.sleep(_POLL_SECONDS)
    every = [(draft.folder, target.folder) for target, drafts in pairs for draft in drafts]
    if not shared:
        merge_parts(out, every)
    work.refresh()
    measured = [pair for pair in every if work.is_done(*pair)]
    return ProtocolResult(measured, absent, work.unreadable)


def begin_protocol(config: ProtocolConfig, checkpoints: Path, prompts: str, out: Path) -> None:
    """Checks that a protocol can be measured into a folder, and makes the folder.

    Raises:
      SdslError: the checkpoints or the prompts are missing, or the folder holds somebody else's files
        or was begun with other settings.
    """
    require(checkpoints.is_dir(), f"the folder of checkpoints {checkpoints} does not exist.")
    require_records_folder(out, pair_records.WRITTEN, mark=SETTINGS)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SdslError(f"cannot write {out} ({error.strerror}).") from None
    _require_same_settings(config, user_path(prompts), out)


def pair_cost(config: ProtocolConfig) -> int:
    """How far the progress of a pair goes: batches of its prompts in every pass that it takes."""
    m = config.measure
    return -(-m.prompts // min(m.batch, m.prompts)) * (3 + len(m.lookaheads))


def available_pairs(
    config: ProtocolConfig, checkpoints: Path
) -> list[tuple[ProtocolModel, list[ProtocolModel]]]:
    """The targets that are there, each with those of its drafts that are."""
    absent = _absent(config, checkpoints)
    found = [
        (target, [draft for draft in config.drafts_of(target) if draft.folder not in absent])
        for target in config.targets
        if target.folder not in absent
    ]
    return [(target, drafts) for target, drafts in found if drafts]


def _absent(config: ProtocolConfig, checkpoints: Path) -> list[str]:
    names = [m.folder for m in (*config.targets, *config.drafts)]
    return [name for name in dict.fromkeys(names) if not (checkpoints / name).is_dir()]


class _Work(NamedTuple):
    """What a process does of a protocol.

    Attributes:
      config: The protocol.
      checkpoints: Folder of checkpoints.
      prompts: File of prompts.
      out: Folder of the records.
      progress: Reports progress on every pair.
      done: Pairs (draft, target) in the tables.
      claims: Claims on pairs.
      unreadable: Why checkpoints cannot be read, or pairs not be measured.
    """

    config: ProtocolConfig
    checkpoints: Path
    prompts: str
    out: Path
    progress: Progress
    done: set[tuple[str, str]]
    claims: dict[tuple[str, str], Claim]
    unreadable: dict[str, str]

    def refresh(self) -> None:
        """Takes in what other processes have put into the tables."""
        self.done.update(_done(self.out))

    def is_done(self, draft: str, target: str) -> bool:
        """Whether a pair is in the tables, or in a part of its own."""
        part = part_folder(self.out, draft, target)
        return (draft, target) in self.done or (part / PART_DONE).exists()

    def is_left(self, draft: ProtocolModel, target: ProtocolModel) -> bool:
        """Whether a pair is neither done nor tried by this process in vain."""
        names = (draft.folder, target.folder)
        failed = {*names, " × ".join(names)} & self.unreadable.keys()
        return not failed and not self.is_done(*names)

    def claim(self, draft: ProtocolModel, target: ProtocolModel) -> Claim:
        """The claim on a pair."""
        pair = draft.folder, target.folder
        return self.claims.setdefault(pair, Claim(claim_folder(self.out, *pair)))


def claim_folder(out: Path, draft: str, target: str) -> Path:
    """Where the claim on a pair lies; its part is a folder of records, with a claim for who writes it."""
    return part_folder(out, draft, target) / "measuring"


class _OfPair:
    """Progress on one pair, whose name comes first in every detail."""

    def __init__(self, inner: Progress, name: str):
        self._inner, self._name = inner, name
        self.note, self.start, self.finish = inner.note, inner.start, inner.finish

    def advance(self, amount: float, detail: str = "") -> None:
        self._inner.advance(amount, f"{self._name}  {detail}")


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
    target: LoadedModel | None = None,
) -> LoadedModel:
    """A checkpoint as a target, or as the draft of one."""
    m = config.measure
    options = LoadOptions(dtype=m.dtype, devices=devices, ignore_keys=config.ignore_keys)
    path = checkpoints / model.folder
    at = (options, _settings(config), m.prompt_tokens, progress)
    if target is None:
        draft_options(NGRAM, path, *at)  # says what the target needs before it is read
    else:
        options = draft_options(path, target, *at)
    loaded = load_model(path, options, progress)
    record = dataclasses.replace(
        loaded.record, model_id=model.folder, train_tokens=int(model.train_tokens)
    )
    return loaded._replace(record=record)


def _measure_target(work: _Work, target: ProtocolModel, drafts: list[ProtocolModel]) -> bool:
    """Measures a target, which is read once, with its drafts one after another; returns whether another
    process has some of them."""
    loaded, busy = None, False
    for draft in drafts:
        claim = work.claim(draft, target)
        if not claim.acquire():
            busy = True
            continue
        with claim:
            # Another process may have measured it meanwhile, and even put it into the tables.
            work.refresh()
            if not work.is_left(draft, target):
                continue
            try:
                loaded = loaded or _load_target(work, target, drafts)
            except SdslError as error:
                work.unreadable[target.folder] = str(error)
                work.progress.note(f"{target.folder} cannot be read: {error}")
                return busy
            _measure_pair(work, target, draft, loaded)
    return busy


def _settings(config: ProtocolConfig) -> PairSettings:
    m = config.measure
    return PairSettings(
        lookaheads=m.lookaheads,
        new_tokens=m.new_tokens,
        sampling=Sampling(m.temperature),
        seed=config.seed,
        batch=m.batch,
        confidence=m.confidence,
    )


class _LoadedTarget(NamedTuple):
    """A target with its prompts, the devices that its pairs use, and its samples once they are drawn."""

    model: LoadedModel
    prompts: Prompts
    devices: int
    drawn: dict[int, Samples]


def _load_target(work: _Work, target: ProtocolModel, drafts: list[ProtocolModel]) -> _LoadedTarget:
    m = work.config.measure
    # Both models of a pair use the same devices, as many as the larger one needs.
    devices = devices_for(max(model.params for model in (target, *drafts)), m.dtype)
    loaded = _load(target, work.checkpoints, work.config, devices, work.progress)
    chosen = load_prompts(
        work.prompts, loaded.tokenizer, count=m.prompts, max_tokens=m.prompt_tokens, data=None
    )
    return _LoadedTarget(loaded, chosen, devices, {})


def _measure_pair(
    work: _Work, target: ProtocolModel, draft: ProtocolModel, loaded: _LoadedTarget
) -> None:
    """Measures a pair into a part of its own; that it cannot be is noted."""
    config, progress = work.config, work.progress
    m, name = config.measure, f"{draft.folder} × {target.folder}"
    try:
        proposing = _load(draft, work.checkpoints, config, loaded.devices, progress, loaded.model)
    except SdslError as error:
        work.unreadable[draft.folder] = str(error)
        progress.note(f"{draft.folder} cannot be read: {error}")
        return
    progress.note(name)
    settings = _settings(config)
    part = part_folder(work.out, draft.folder, target.folder)
    shown = _OfPair(progress, name)
    try:
        pair_records.require_same_models(work.out, proposing, loaded.model)
        if share_tokens(proposing, loaded.model):
            measure_and_record(
                proposing,
                loaded.model,
                loaded.prompts,
                settings,
                timed=m.timed,
                out=part,
                options=LoadOptions(dtype=m.dtype),
                requested=m.prompts,
                progress=shown,
                drawn=loaded.drawn,
            )
        else:
            _retokenise(proposing, loaded.model, loaded.prompts, settings, config, part, shown)
        (part / PART_DONE).touch()
    except (SdslError, jax.errors.JaxRuntimeError) as error:
        # Such as too little memory: it fails this pair and no other.
        reason = str(error).splitlines()[0]
        work.unreadable[name] = reason
        progress.note(f"{name} cannot be measured: {reason}")


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
