"""A teacher's next-token probabilities on disk: computed once, and read by every rung and every later
start.

    <cache>/teachers/<key>/
      <name>.bin     records of up to `_SHARD_BYTES`, one for each window of the training split
      <name>.json    which windows they are, the SHA-256 of the file, and the error of storing them

The key digests whatever decides a record: the teacher's weights, the corpus, the temperature, and
how many probabilities are kept. Where features are kept too, its blocks follow the digest, and drafts
that need the probabilities alone read them there. A shard without its .json does not count, so a
process that is killed loses one shard. A record depends on its window alone: whichever process of a machine computes it, and
beside which others, it has the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.cache_folders import locked, maker_lock, teachers_folder
from sdsl_jax.checkpoints.loading import load_model, open_model, require_same_text
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.config import DistilConfig, StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.data.shards import id_type
from sdsl_jax.decoding import Sampling, autoregress
from sdsl_jax.digests import file_sha256, json_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.models import ModelConfig, Params, count, outputs
from sdsl_jax.models.feature_head import normalised_features
from sdsl_jax.package_files import user_path
from sdsl_jax.progress import Progress
from sdsl_jax.records import read_json, whole_file, write_json
from sdsl_jax.seeds import derive_seed
from sdsl_jax.training.objectives import DistilBatch, TeacherProbs, coarsened

_FORMAT, _VERSION = "sdsl-teacher", 1
# What a killed process loses at most, and the most that logits may take at a time.
_SHARD_BYTES, _LOGIT_BYTES, _MOST_ROWS = 1 << 26, 1 << 28, 32
_KEYS = ("windows", "sha256", "mtime_ns", "error")


class _Shard(NamedTuple):
    """A readable shard.

    Attributes:
      path: Its file of records.
      record: What is stored of a window.
      windows: The windows in it, in order.
      error: Mean distance in total variation of the stored distributions from the true ones.
    """

    path: Path
    record: np.dtype
    windows: list[int]
    error: float


class TeacherCache:
    """The teacher's view of the training windows: random access by the number of a window.

    Attributes:
      kept_error: Bound on the error in the mean α over the windows that storing causes, whatever the
        draft: the mean distance in total variation of a stored distribution from the true one.
    """

    def __init__(
        self,
        fields: Sequence[str],
        dataset: Dataset,
        shards: Sequence[_Shard],
        needed: Sequence[int],
    ):
        self._fields, self._dataset = fields, dataset
        self._rows = [
            np.memmap(shard.path, shard.record, "r", shape=(len(shard.windows),))
            for shard in shards
        ]
        self._at = {
            window: (number, row)
            for number, shard in enumerate(shards)
            for row, window in enumerate(shard.windows)
        }
        used = np.bincount([self._at[window][0] for window in needed], minlength=len(shards))
        self.kept_error = float(np.average([s.error for s in shards], weights=used))

    def __len__(self) -> int:
        return self._dataset.text("train").window_count

    def __getitem__(self, window: int) -> dict[str, np.ndarray]:
        number, row = self._at[int(window)]
        record = self._rows[number][row]
        fields = {name: np.array(record[name]) for name in self._fields}
        if "tokens" not in fields:
            fields["tokens"] = self._dataset.train_windows[int(window)]
        fields["tokens"] = fields["tokens"].astype(np.int32)
        if "ids" in fields:
            fields["ids"] = fields["ids"].astype(np.int32)
        return fields


def distil_batch(fields: dict[str, np.ndarray]) -> DistilBatch:
    """Records of a cache, stacked, as a batch."""
    arrays: Any = fields  # of numpy, which steps take as they take those of JAX
    probs = TeacherProbs(arrays["log_probs"], arrays.get("ids"))
    return DistilBatch(arrays["tokens"], probs, arrays.get("features"))


def _record(distil: DistilConfig, dataset: Dataset) -> np.dtype:
    """What is stored of a window."""
    vocab_size, T = dataset.tokenizer.vocab_size, dataset.sequence_length
    ids, kept = id_type(vocab_size), distil.kept(vocab_size)
    fields: list[Any] = [("log_probs", "<f2", (T, kept + 1 if kept else vocab_size))]
    if kept:
        fields.append(("ids", ids, (T, kept)))
    if distil.text == "samples":
        fields.append(("tokens", ids, (T + 1,)))
    if distil.taps:
        width = len(distil.taps) * teacher_architecture(distil).width
        fields.append(("features", "<f2", (T, width)))
    return np.dtype(fields)


def cache_folder(config: StudyConfig, dataset: Dataset) -> Path:
    """Where the probabilities of the study's teacher are, or will be.

    Raises:
      SdslError: There is no such teacher.
    """
    distil = config.distil
    parts: list[Any] = [_FORMAT, _VERSION, teacher_digest(distil), dataset.digest]
    parts += [
        dataset.sequence_length,
        distil.temperature,
        distil.kept(dataset.tokenizer.vocab_size),
    ]
    if distil.text == "samples":
        parts += ["samples", distil.prompt_tokens, config.seed]
    home = Path(distil.cache) if distil.cache else teachers_folder()
    taps = "".join(f"-{tap}" for tap in distil.taps)
    return home / (json_sha256(parts)[:20] + taps)


def teacher_digest(distil: DistilConfig) -> str:
    """The digest of the teacher's weights, empty where there is no teacher.

    Raises:
      SdslError: The folder holds no model.
    """
    if not distil.teacher:
        return ""
    return open_model(user_path(distil.teacher)).record.params_digest


def teacher_architecture(distil: DistilConfig) -> ModelConfig:
    """The teacher's architecture, without its weights.

    Raises:
      SdslError: The folder holds no model, or too few blocks for `distil.taps`.
    """
    model = open_model(user_path(distil.teacher)).config
    require(
        all(1 <= tap <= model.layers for tap in distil.taps),
        f"distil.taps is {list(distil.taps)}; the teacher {distil.teacher} has blocks from 1 to {model.layers}.",
    )
    return model


def load_teacher(config: StudyConfig, dataset: Dataset) -> LoadedModel:
    """Loads the teacher.

    Raises:
      SdslError: It cannot be loaded, is no model by itself, has another tokenizer, or a shorter
        context.
    """
    teacher = load_model(user_path(config.distil.teacher))
    require(
        teacher.head is None,
        f"distil.teacher is {config.distil.teacher!r}, a head on the hidden states of another model; it cannot be a teacher.",
    )
    require_same_text(teacher, dataset, f"the teacher {config.distil.teacher}")
    return teacher


def open_teacher(
    config: StudyConfig, dataset: Dataset, windows: Iterable[int], progress: Progress
) -> TeacherCache:
    """The teacher's probabilities of some training windows; those that are missing are computed.

    Only one process computes them; others that need the same teacher wait for it.

    Args:
      config: The study.
      dataset: Its corpus.
      windows: Numbers of the windows.
      progress: Reports progress after every few windows.

    Raises:
      SdslError: The teacher cannot be loaded or does not fit the study, the probabilities would
        take more than `distil.cache_gb`, or the folder cannot be written.
    """
    folder, record = cache_folder(config, dataset), _record(config.distil, dataset)
    needed = sorted({int(window) for window in windows})
    shards = [*_shards(folder, record, progress), *_with_more(config, dataset, folder, progress)]
    if _missing(needed, shards):
        require(
            jax.process_count() == 1,
            f"the probabilities of the teacher {config.distil.teacher} are not in {folder} yet; let one process compute them "
            "before several train together: run the command without --distributed first.",
        )
        _require_room(config, folder, record, len(needed), len(_missing(needed, shards)), progress)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(maker_lock(folder)):
                # Another process may have computed them meanwhile.
                more = list(_with_more(config, dataset, folder, progress))
                shards = [*_shards(folder, record, progress, clean=True), *more]
                if missing := _missing(needed, shards):
                    _fill(config, dataset, folder, record, missing, progress)
                    shards = [*_shards(folder, record, progress), *more]
        except OSError as error:
            raise SdslError(
                f"the teacher's probabilities cannot be written to {folder} ({error.strerror or error})."
            ) from None
    assert record.names is not None
    cache = TeacherCache(record.names, dataset, shards, needed)
    kept = config.distil.kept(dataset.tokenizer.vocab_size)
    how = f"the {kept} most probable tokens and the rest" if kept else "all tokens"
    progress.note(
        f"teacher: the mean α is at most {cache.kept_error:.1e} off, for {how} are kept in half precision"
    )
    return cache


def _missing(needed: list[int], shards: Sequence[_Shard]) -> list[int]:
    there = {window for shard in shards for window in shard.windows}
    return [window for window in needed if window not in there]


def _require_room(
    config: StudyConfig,
    folder: Path,
    record: np.dtype,
    needed: int,
    missing: int,
    progress: Progress,
) -> None:
    """Prints how much is to be computed and written, and refuses more than the limit.

    Raises:
      SdslError: It is more.
    """
    size, limit = needed * record.itemsize / 1e9, config.distil.cache_gb
    length = config.data.sequence_length
    flops = count(teacher_architecture(config.distil), length / 2).flops_per_token
    progress.note(
        f"teacher: {missing:,} of {needed:,} windows are to be computed, {missing * length * flops:.2g} FLOPs; the probabilities "
        f"of all take {size:.2g} GB of at most {limit:g} GB (distil.cache_gb) in {folder}"
    )
    require(
        size <= limit,
        f"the teacher's probabilities of {needed:,} windows take {size:.3g} GB in {folder}; distil.cache_gb allows "
        f"{limit:g}. Raise it, keep fewer probabilities (distil.top), or train fewer seeds or tokens.",
    )


def _shards(
    folder: Path, record: np.dtype, progress: Progress, clean: bool = False
) -> Iterator[_Shard]:
    """The readable shards of a folder. With `clean`, what killed processes left, and what is
    damaged, is deleted."""
    readable = set()
    for index in sorted(folder.glob("*.json")):
        path = index.with_suffix(".bin")
        try:
            values = read_json(index, keys=_KEYS)
            status = path.stat()
            whole = status.st_size == len(values["windows"]) * record.itemsize and (
                status.st_mtime_ns == values["mtime_ns"] or file_sha256(path) == values["sha256"]
            )
        except (SdslError, OSError, TypeError):
            whole = False
        if whole:
            readable |= {index, path}
            yield _Shard(path, record, values["windows"], values["error"])
        elif clean:
            progress.note(f"teacher: {path} is damaged; its windows are computed again")
    for path in set(folder.glob("*")) - readable if clean else ():
        path.unlink(missing_ok=True)


def _with_more(
    config: StudyConfig, dataset: Dataset, folder: Path, progress: Progress
) -> Iterator[_Shard]:
    """The readable shards that have features beside the probabilities, where only these are needed."""
    for other in () if config.distil.taps else sorted(folder.parent.glob(f"{folder.name}-*")):
        taps = tuple(map(int, other.name.split("-")[1:]))
        record = _record(dataclasses.replace(config.distil, taps=taps), dataset)
        yield from _shards(other, record, progress)


def _fill(
    config: StudyConfig,
    dataset: Dataset,
    folder: Path,
    record: np.dtype,
    missing: list[int],
    progress: Progress,
) -> None:
    """Computes windows and writes them shard by shard."""
    teacher = load_teacher(config, dataset)
    kept = config.distil.kept(dataset.tokenizer.vocab_size)
    each = 4 * dataset.sequence_length * teacher.config.ids
    rows = max(1, min(_MOST_ROWS, _LOGIT_BYTES // each))
    per_shard = rows * max(1, _SHARD_BYTES // (record.itemsize * rows))
    progress.start("teacher", len(missing))
    rate = _Rate(dataset.sequence_length, len(missing), progress)
    for begin in range(0, len(missing), per_shard):
        windows = missing[begin : begin + per_shard]
        records, errors = np.empty(len(windows), record), np.empty(len(windows))
        for first in range(0, len(windows), rows):
            at = slice(first, first + rows)
            # Repeats fill up the last rows, so that one program serves all.
            padded = np.resize(windows[at], rows)
            tokens = _tokens(config, dataset, teacher, padded)
            told, errors_here = _teach(
                teacher.params,
                tokens[:, :-1],
                model=teacher.config,
                temperature=config.distil.temperature,
                vocab_size=dataset.tokenizer.vocab_size,
                kept=kept,
                taps=config.distil.taps,
            )
            number = len(windows[at])
            for name, values in told.items():
                records[name][at] = np.asarray(values)[:number]
            errors[at] = np.asarray(errors_here)[:number]
            if config.distil.text == "samples":
                records["tokens"][at] = tokens[:number]
            progress.advance(number, rate.after(begin + first + number))
        require(
            np.isfinite(errors).all(),
            f"the logits of the teacher {config.distil.teacher} are not finite: its weights hold infinities or NaN.",
        )
        _write(folder, windows, records, float(errors.mean()))
    progress.finish()


class _Rate:
    """Tokens per second of the teacher so far, from its second batch on, for the first one compiles.

    Args:
      length: Tokens of a window.
      total: Windows that are to be computed.
      progress: Is told once how long all of them will take.
    """

    def __init__(self, length: int, total: int, progress: Progress):
        self._length, self._total, self._progress = length, total, progress
        self._first, self._began, self._told = 0, 0.0, False

    def after(self, windows: int) -> str:
        """What to show when so many windows are computed."""
        shown = f"{windows:,} of {self._total:,} windows"
        if not self._first:
            self._first, self._began = windows, time.perf_counter()
            return shown
        per_second = (windows - self._first) / (time.perf_counter() - self._began)
        speed = f"{per_second * self._length:,.0f} tokens/s"
        if not self._told:
            self._told, left = True, (self._total - windows) / per_second
            self._progress.note(
                f"teacher: about {left:,.0f} s are left, at the {speed} of its second batch"
            )
        return f"{shown}, {speed}"


def _tokens(
    config: StudyConfig, dataset: Dataset, teacher: LoadedModel, windows: np.ndarray
) -> Int[np.ndarray, "B T+1"]:
    """The windows themselves, or the teacher's continuations of their first tokens."""
    tokens = np.stack([dataset.train_windows[int(window)] for window in windows])
    if config.distil.text == "corpus":
        return tokens
    prompt = config.distil.prompt_tokens
    decoded = autoregress(
        teacher.model,
        tokens[:, :prompt],
        new_tokens=tokens.shape[1] - prompt,
        sampling=Sampling(config.distil.temperature),
        seed=derive_seed("teacher", config.seed),
        # A row's tokens depend on its number and prompt only; repeats fill up a chunk.
        rows=windows,
    )
    return np.asarray(decoded.tokens)


@functools.partial(jax.jit, static_argnames=("model", "temperature", "vocab_size", "kept", "taps"))
def _teach(
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    model: ModelConfig,
    temperature: float,
    vocab_size: int,
    kept: int,
    taps: tuple[int, ...],
) -> tuple[dict[str, Array], Float[Array, " B"]]:
    """The fields of records: logarithms of probabilities in half precision, the tokens that they
    belong to, and features; and the mean distance in total variation that rounding and leaving out
    cause."""
    with jax.default_matmul_precision("highest"):
        out = outputs(model, params, tokens, taps=taps)
    log_p = jax.nn.log_softmax(out.logits.astype(jnp.float32) / temperature, axis=-1)
    # The table of a published model may have rows that no token uses.
    log_p, unused = log_p[..., :vocab_size], log_p[..., vocab_size:]
    ids = jax.lax.top_k(log_p, kept)[1] if kept else None
    exact = coarsened(log_p, ids)
    stored = exact.astype(jnp.float16)
    read = jax.nn.log_softmax(stored.astype(jnp.float32), axis=-1)
    distance = jnp.abs(jnp.exp(read) - jnp.exp(exact)).sum(axis=-1) / 2
    told = {"log_probs": stored}
    if ids is not None:
        told["ids"] = ids
        distance = distance + jnp.exp(exact[..., -1])
    else:
        distance = distance + jnp.exp(unused).sum(axis=-1) / 2
    if out.features is not None:
        # As a head reads them; what half precision could not hold is gone with the scale.
        told["features"] = normalised_features(out.features, len(taps)).astype(jnp.float16)
    return told, distance.mean(axis=-1)


def _write(folder: Path, windows: list[int], records: np.ndarray, error: float) -> None:
    path = folder / f"{windows[0]:09d}-{secrets.token_hex(4)}.bin"
    with whole_file(path) as partial:
        records.tofile(partial)
    index = {"windows": windows, "sha256": file_sha256(path), "error": error}
    write_json(path.with_suffix(".json"), index | {"mtime_ns": path.stat().st_mtime_ns})
