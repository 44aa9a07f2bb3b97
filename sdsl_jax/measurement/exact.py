"""Exact acceptance in a study: of drafts of every kind, on a text and on a target's own continuations of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Text
from sdsl_jax.data.corpus import held_out_name
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.measurement.overlap import Overlaps, pairwise_overlap
from sdsl_jax.measurement.pair_records import PairName, PairRows
from sdsl_jax.measurement.replay import expected_rounds
from sdsl_jax.measurement.round_costs import RoundCost, round_cost
from sdsl_jax.measurement.shared_parts import Arrays, Part
from sdsl_jax.measurement.study_models import StudyModels
from sdsl_jax.progress import Progress
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    ModelRecord,
)

# Progress is counted in passes of a small model over 32 contexts. A run of a decoder is worth about
# so many.
RUN_UNITS = 20
# Contexts of a part of a measurement.
_CHUNK = 64
# Names of a head's arrays: on text, and the probabilities of the tokens that its target drew.
_TEXT, _DRAWN = "text", "drawn"


class Domain(NamedTuple):
    """A text to measure on, and the temperatures to measure at."""

    name: str
    text: Text
    temperatures: tuple[float, ...]


def domain(config: StudyConfig) -> str:
    """Name of the study's own contexts: the test split of the corpus."""
    return held_out_name(config.data)


def prompts(config: StudyConfig, text: Text, count: int) -> np.ndarray:
    """The first tokens of windows spread over a text, int32 [count, prompt_tokens]."""
    windows = text.windows(count)
    return windows[np.arange(count) % len(windows), : config.measure.prompt_tokens]


def pair_rows(
    config: StudyConfig, pair: tuple[str, str], temperature: float | None = None, name: str = ""
) -> PairRows:
    """The rows of a pair; of the study's own temperature and domain by default."""
    m = config.measure
    temperature = m.temperature if temperature is None else temperature
    return PairRows(PairName(*pair, temperature, name or domain(config)), m.confidence)


def own_samples(
    config: StudyConfig,
    text: Text,
    target: Model,
    temperature: float,
    seed: int,
    rows: range | None = None,
) -> np.ndarray:
    """A target's own continuations of a text, int32 [rows, prompt_tokens + new_tokens]: of all prompts,
    or of some, which continue alike in any company."""
    m = config.measure
    chosen = np.arange(m.prompts) if rows is None else np.asarray(rows)
    decoded = autoregress(
        target,
        prompts(config, text, m.prompts)[chosen],
        new_tokens=m.new_tokens,
        sampling=Sampling(temperature),
        seed=seed,
        rows=chosen,
    )
    return np.asarray(decoded.tokens)


def expected_records(
    config: StudyConfig, rows: PairRows, drawn: np.ndarray, largest: int, cost: RoundCost
) -> list[ExpectedRecord]:
    """The expected rounds of a pair up to a largest lookahead, and what they cost."""
    # Every lookahead counts the same starts: what differs between two is the lookahead alone.
    outcomes = expected_rounds(
        drawn,
        largest,
        lengths=drawn.shape[1] - config.measure.expected_lookahead + 1,
        confidence=config.measure.confidence,
    )
    return [
        rows.expected(each, len(drawn), cost(each.lookahead, each.tokens_per_round.estimate))
        for each in outcomes
    ]


def text_parts(
    config: StudyConfig,
    where: Domain,
    models: StudyModels,
    temperatures: Sequence[float],
    progress: Progress,
    *,
    losses: bool = False,
) -> list[Part]:
    """Every pair on the windows of a text, in chunks of them; each part gives the arrays of `Overlaps`.

    Args:
      config: The study.
      where: The text.
      models: All drafts and targets are scored once in every chunk.
      temperatures: Temperatures to compare them at.
      progress: Reports progress.
      losses: Whether to keep what probability each model gives the text.
    """
    windows = where.text.windows(config.measure.text_windows)

    def part(rows: range) -> Part:
        name, some = f"{where.name}-text-{rows.start}", windows[rows.start : rows.stop]

        def work() -> Arrays:
            scored = pairwise_overlap(
                models.drafts,
                models.targets,
                some[:, :-1],
                first=0,
                samplings=[Sampling(temperature) for temperature in temperatures],
                following=some[:, 1:] if losses else None,
                advance=lambda n: progress.advance(n, f"{name}  exact acceptance on text"),
            )
            return scored.to_arrays()

        passes = -(-len(some) // 32)
        return Part(name, passes * (len(models.drafts) + len(models.targets)), work)

    return [part(rows) for rows in _chunks(len(windows))] if models.drafts else []


def sample_parts(
    config: StudyConfig,
    where: Domain,
    temperature: float,
    models: StudyModels,
    target_id: str,
    seed: int,
    progress: Progress,
    *,
    drawn: bool = False,
) -> list[Part]:
    """All drafts on a target's own continuations of a text, in chunks of them; each part gives the arrays
    of `Overlaps`.

    Args:
      config: The study.
      where: The text.
      temperature: Temperature of the continuations, and of the comparison.
      models: The models.
      target_id: The target.
      seed: Seed of the continuations.
      progress: Reports progress.
      drawn: Whether to keep the probabilities of the tokens that the target drew, for
        `expected_rounds`.
    """
    m, target = config.measure, models.targets[target_id]

    def part(rows: range) -> Part:
        name = f"{where.name}-{temperature:g}-{target_id}-{rows.start}"

        def advance(units: float) -> None:
            progress.advance(units, f"{name}  exact acceptance on its samples")

        def work() -> Arrays:
            tokens = own_samples(config, where.text, target, temperature, seed, rows)
            advance(RUN_UNITS)
            scored = pairwise_overlap(
                models.drafts,
                {target_id: target},
                tokens[:, :-1],
                first=m.prompt_tokens - 1,
                samplings=[Sampling(temperature)],
                following=tokens[:, m.prompt_tokens :] if drawn else None,
                advance=advance,
            )
            return scored.to_arrays()

        passes = -(-len(rows) // 32)
        return Part(name, RUN_UNITS + passes * (len(models.drafts) + 1), work)

    return [part(rows) for rows in _chunks(m.prompts)] if models.drafts else []


def head_parts(
    config: StudyConfig,
    where: Domain,
    temperature: float,
    models: StudyModels,
    target_id: str,
    seed: int,
    progress: Progress,
) -> list[Part]:
    """The heads of a target on a text and on its continuations of it: one part, or none."""
    heads = [name for name, (_, of) in models.heads.items() if of == target_id]
    name = f"{where.name}-{temperature:g}-{target_id}-heads"

    def work() -> Arrays:
        tokens = own_samples(config, where.text, models.targets[target_id], temperature, seed)
        arrays: Arrays = {}
        for head in heads:
            arrays |= _of_head(config, where, temperature, models, head, tokens)
            progress.advance(RUN_UNITS, f"{name}  {head}")
        return arrays

    return [Part(name, RUN_UNITS * len(heads), work)] if heads else []


def _chunks(count: int) -> list[range]:
    """Contexts that a part measures: the same ones, however many processes there are."""
    return [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]


def _of_head(
    config: StudyConfig,
    where: Domain,
    temperature: float,
    models: StudyModels,
    name: str,
    samples: np.ndarray,
) -> Arrays:
    """α of a head on a text and on its target's continuations of it: of its first draft, and of each
    later one; with min(1, q(y)/p(y)) of the continuations, [prompts, tokens, drafts]."""
    m, (head, target_id) = config.measure, models.heads[name]
    drafts = min(m.expected_lookahead, head.config.parallel or m.expected_lookahead)
    compare = functools.partial(
        head_overlap, head, models.targets[target_id], sampling=Sampling(temperature)
    )
    on_text = compare(where.text.windows(m.text_windows)[:, :-1], first=0, drafts=1)
    own = compare(
        samples[:, :-1],
        first=m.prompt_tokens - 1,
        drafts=drafts,
        following=samples[:, m.prompt_tokens :],
    )
    assert own.drawn is not None
    by_draft = {(name, f"{k}"): each for k, each in enumerate(own.drafts, 1)}
    every = Overlaps({(name, _TEXT): on_text.drafts[0]} | by_draft, {}, {})
    return every.to_arrays() | {f"{name}\t{_DRAWN}": own.drawn}


def head_rows(
    rows: PairRows, name: str, arrays: Mapping[str, np.ndarray]
) -> tuple[list[AcceptanceRecord], np.ndarray]:
    """The rows of a head from the arrays of its part, and its `drawn`."""
    drawn = f"{name}\t{_DRAWN}"
    own = {k: v for k, v in arrays.items() if k.partition("\t")[0] == name and k != drawn}
    found = {of: value for (_, of), value in Overlaps.from_arrays(own).pairs.items()}
    on_text = found.pop(_TEXT)
    return [
        rows.overlap("teacher_forced_text", on_text),
        rows.overlap("teacher_forced_samples", found["1"]),
        *(rows.overlap("by_draft_samples", each, lookahead=int(k)) for k, each in found.items()),
    ], arrays[drawn]


def sample_rows(
    config: StudyConfig,
    where: Domain,
    temperature: float,
    scored: Overlaps,
    *,
    by_id: dict[str, ModelRecord] | None = None,
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """α of all drafts on a target's own continuations, and the expected rounds if records say what a
    round costs."""
    m = config.measure
    rows = {pair: pair_rows(config, pair, temperature, where.name) for pair in scored.pairs}
    acceptance = [
        rows[pair].overlap("teacher_forced_samples", value) for pair, value in scored.pairs.items()
    ]
    expected: list[ExpectedRecord] = []
    for draft_id, target_id in scored.pairs if by_id is not None else ():
        assert by_id is not None
        drawn = scored.drawn_acceptance(draft_id, target_id)
        cost = round_cost(by_id[draft_id], by_id[target_id])
        pair = rows[draft_id, target_id]
        expected += expected_records(config, pair, drawn, m.expected_lookahead, cost)
    return acceptance, expected
