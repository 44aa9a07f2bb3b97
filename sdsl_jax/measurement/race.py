"""Which draft decodes fastest: chosen on some prompts, judged on others, beside plain decoding."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.data.domains import domain_prompts
from sdsl_jax.decoding import HybridDraft, Model, NgramDraft, Sampling
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.clock import Decoders, Entrant, Run
from sdsl_jax.measurement.exact import domain, prompts
from sdsl_jax.measurement.measured_pair import NGRAM
from sdsl_jax.measurement.study_models import aligned, load_heads, load_models
from sdsl_jax.measurement.threads import computing_threads
from sdsl_jax.progress import Progress
from sdsl_jax.records import ModelRecord, RaceRecord
from sdsl_jax.seeds import derive_seed

_CHOOSING, _JUDGING = "choosing", "judging"


class Decoder(NamedTuple):
    """A decoder by the name of its draft, its lookahead, and the n of the n-grams that draft first, or
    alone where the draft is `NGRAM`."""

    draft_id: str
    lookahead: int
    ngram: int


_PLAIN = Decoder("", 0, 0)


class _Rows(NamedTuple):
    """Prompts of one part.

    Attributes:
      tokens: The prompts.
      domains: The kind of text of each.
    """

    tokens: Int[np.ndarray, "R T"]
    domains: list[str]


def racing(config: StudyConfig, records: Sequence[ModelRecord]) -> list[ModelRecord]:
    """The trained drafts that `race.drafts` names.

    Raises:
      SdslError: A pattern names none.
    """
    drafts = [r for r in records if r.role == "draft"]
    chosen: dict[str, ModelRecord] = {}
    for pattern in config.race.drafts:
        if pattern == NGRAM:
            continue
        named = [r for r in drafts if fnmatch.fnmatchcase(r.model_id, pattern)]
        require(
            named,
            f"race.drafts holds {pattern!r}, which names none of {', '.join(r.model_id for r in drafts)}.",
        )
        chosen |= {r.model_id: r for r in named}
    return list(chosen.values())


def _parts(config: StudyConfig, dataset: Dataset) -> dict[str, _Rows]:
    """The prompts of both parts, mixed in one order for all kinds of text.

    Raises:
      SdslError: A domain holds too few documents of the length.
    """
    r, length = config.race, config.measure.prompt_tokens
    count = r.choosing_prompts + r.prompts
    texts = {
        each.name: domain_prompts(each, dataset, count, length, config.data)
        for each in config.conditions.domains
    }
    texts = texts or {domain(config): prompts(config, dataset.text("test"), count)}
    random = np.random.default_rng(config.seed)
    orders = {name: random.permutation(count) for name in texts}

    def rows(part: slice) -> _Rows:
        chosen = {name: texts[name][orders[name][part]] for name in texts}
        # Kinds take turns, so that a machine that is busy for a while slows all of them alike.
        tokens = np.stack(list(chosen.values()), axis=1).reshape(-1, length)
        return _Rows(tokens, [*texts] * (len(tokens) // len(texts)))

    split = r.choosing_prompts
    return {_CHOOSING: rows(slice(split)), _JUDGING: rows(slice(split, None))}


def race_study(
    config: StudyConfig,
    dataset: Dataset,
    records: Sequence[ModelRecord],
    study: Path,
    progress: Progress,
) -> list[RaceRecord]:
    """Races the drafts of `config.race` with the largest target.

    At every temperature all of them, at every lookahead and with each choice of n-grams, decode the
    choosing prompts. The one of the most tokens per second then decodes the judging prompts. Plain
    decoding takes part in both.

    Args:
      config: The study.
      dataset: Its corpus.
      records: Its models.
      study: Its folder, which holds their weights.
      progress: Reports progress after every decoder and prompt.

    Raises:
      SdslError: A pattern names no draft, a checkpoint is missing or damaged, or there are too few
        prompts.
    """
    r = config.race
    if not r.drafts:
        return []
    drafts = racing(config, records)
    largest = max((m for m in records if m.role == "target"), key=lambda m: m.params_nonembedding)
    named = [*drafts, largest]
    models: dict[str, Any] = dict(load_models(named, study))
    models |= {name: head for name, (head, _) in load_heads(named, study, models).items()}
    models = aligned(models)
    target: Model = models[largest.model_id]
    parts = _parts(config, dataset)
    names = [draft.model_id for draft in drafts] + [NGRAM] * (NGRAM in r.drafts)
    rivals = [
        Decoder(name, lookahead, ngram)
        for name in names
        for ngram in r.ngram_first
        for lookahead in r.lookaheads
        if ngram or name != NGRAM
    ]
    decoders = [_PLAIN, *rivals]
    # Every decoder is compiled and run; at each temperature all take part, and then two.
    progress.start("race", len(decoders) + len(r.temperatures) * (len(decoders) + 2))
    compiled = Decoders(
        [Entrant(target), *(_entrant(each, target, models) for each in rivals)],
        parts[_CHOOSING].tokens[:1],
        new_tokens=config.measure.new_tokens,
        sampling=Sampling(),
        seed=config.seed,
        progress=progress,
    )
    rows: list[RaceRecord] = []

    def run(part: str, which: list[int], temperature: float) -> list[Run]:
        tokens, domains = parts[part]
        runs = compiled.time(
            tokens[:, None],
            sampling=Sampling(temperature),
            # Other prompts are decoded with other noise.
            seed=derive_seed("race", config.seed, part, temperature),
            which=which,
        )
        rows.extend(
            RaceRecord(
                largest.model_id,
                *decoders[i],
                temperature,
                part,
                kind,
                number,
                float(timed.seconds[number]),
                int(timed.rounds[number]),
                int(timed.tokens[number]),
                computing_threads(),
                device_name(),
            )
            for i, timed in zip(which, runs)
            for number, kind in enumerate(domains)
        )
        return runs

    for temperature in r.temperatures:
        runs = run(_CHOOSING, [*range(len(decoders))], temperature)
        speed = [timed.tokens.sum() / timed.seconds.sum() for timed in runs]
        run(_JUDGING, [0, 1 + int(np.argmax(speed[1:]))], temperature)
    # Each program maps many small pieces of memory, and the number per process is limited.
    jax.clear_caches()
    progress.finish()
    return rows


def _entrant(decoder: Decoder, target: Model, models: dict[str, Any]) -> Entrant:
    ngrams = NgramDraft(target.config.ids, max(3, decoder.ngram), max(1, decoder.ngram))
    if decoder.draft_id == NGRAM:
        return Entrant(target, ngrams, decoder.lookahead)
    draft = models[decoder.draft_id]
    if decoder.ngram:
        draft = HybridDraft(ngrams, draft)
    return Entrant(target, draft, decoder.lookahead)
