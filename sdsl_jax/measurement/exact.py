"""Exact acceptance in a study: of drafts of every kind, on a text and on a target's own continuations of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Text
from sdsl_jax.data.corpus import held_out_name
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.pair_records import PairName, PairRows
from sdsl_jax.measurement.replay import expected_rounds
from sdsl_jax.measurement.round_costs import RoundCost, round_cost
from sdsl_jax.measurement.study_models import StudyModels
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    ModelRecord,
)

# Progress is counted in passes of a small model over 32 contexts. A run of a decoder is worth about
# so many.
RUN_UNITS = 20


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
    config: StudyConfig, text: Text, target: Model, temperature: float, seed: int
) -> np.ndarray:
    """A target's own continuations of a text, int32 [prompts, prompt_tokens + new_tokens]."""
    decoded = autoregress(
        target,
        prompts(config, text, config.measure.prompts),
        new_tokens=config.measure.new_tokens,
        sampling=Sampling(temperature),
        seed=seed,
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


def of_head(
    config: StudyConfig,
    where: Domain,
    temperature: float,
    models: StudyModels,
    name: str,
    samples: np.ndarray,
) -> tuple[list[AcceptanceRecord], np.ndarray]:
    """α of a head on a domain's text and on its target's continuations of it: of its first draft, and
    of each later one; with min(1, q(y)/p(y)) of the continuations, [prompts, tokens, drafts]."""
    m, (head, target_id) = config.measure, models.heads[name]
    rows = pair_rows(config, (name, target_id), temperature, where.name)
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
    return [
        rows.overlap("teacher_forced_text", on_text.drafts[0]),
        rows.overlap("teacher_forced_samples", own.drafts[0]),
        *(rows.overlap("by_draft_samples", o, lookahead=k) for k, o in enumerate(own.drafts, 1)),
    ], own.drawn


def on_samples(
    config: StudyConfig,
    where: Domain,
    temperature: float,
    models: StudyModels,
    target_id: str,
    tokens: np.ndarray,
    advance: Callable[[int], None],
    *,
    by_id: dict[str, ModelRecord] | None = None,
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """α of all drafts on a target's own continuations of a domain, and the expected rounds if records
    say what a round costs."""
    m, target = config.measure, models.targets[target_id]
    scored = pairwise_overlap(
        models.drafts,
        {target_id: target},
        tokens[:, :-1],
        first=m.prompt_tokens - 1,
        samplings=[Sampling(temperature)],
        following=None if by_id is None else tokens[:, m.prompt_tokens :],
        advance=advance,
    )
    rows = {pair: pair_rows(config, pair, temperature, where.name) for pair in scored.pairs}
    acceptance = [
        rows[pair].overlap("teacher_forced_samples", value) for pair, value in scored.pairs.items()
    ]
    expected: list[ExpectedRecord] = []
    if by_id is None:
        return acceptance, []
    for draft_id in scored.drafts:
        drawn = scored.drawn_acceptance(draft_id, target_id)
        cost = round_cost(by_id[draft_id], by_id[target_id])
        pair = rows[draft_id, target_id]
        expected += expected_records(config, pair, drawn, m.expected_lookahead, cost)
    return acceptance, expected
