"""The results of a race, against arithmetic by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from sdsl_jax.config import StudyConfig, from_dict
from sdsl_jax.evidence.race import race
from sdsl_jax.records import RaceRecord

CONFIG = from_dict(
    StudyConfig,
    {
        "name": "race",
        "ladder": {
            "draft_params": [1e4],
            "draft_tokens": [1e5],
            "target_params": [1e5],
            "target_tokens": [1e5],
        },
    },
)


def runs(part, draft, gamma, seconds, tokens=30, repeats=1):
    """One run on each prompt, or several; kinds of text take turns."""
    return [
        RaceRecord(
            "t", draft, gamma, 0, 1.0, part, "ab"[i % 2], i, s, tokens // (gamma + 1), tokens
        )
        for i, s in enumerate(seconds)
        for _ in range(repeats)
    ]


def test_speed_ups_are_ratios_of_rates_over_all_prompts():
    fast, plain = [1.0, 2.0, 1.5, 2.5], [2.0, 3.0, 3.0, 3.5]
    rows = runs("choosing", "x", 2, [1.0, 1.0]) + runs("choosing", "y", 1, [2.0, 2.0])
    rows += runs("choosing", "", 0, [1.5, 2.0], repeats=2)
    rows += runs("judging", "x", 2, fast) + runs("judging", "", 0, plain, repeats=2)
    found = race(SimpleNamespace(race=rows, config=CONFIG))
    (result,) = found.results
    assert (result.draft_id, result.lookahead, result.prompts) == ("x", 2, 4)
    assert [(r.draft_id, r.lookahead, r.ngram) for r in result.decoders] == [
        ("x", 2, 0),
        ("y", 1, 0),
    ]
    assert [r.speedup.estimate for r in result.decoders] == pytest.approx([3.5 / 2, 3.5 / 4])
    estimates = {name: s.estimate for name, s in result.speedups.items()}
    assert estimates == pytest.approx({"all": 11.5 / 7, "a": 5 / 2.5, "b": 6.5 / 4.5})
    assert result.tokens_per_round == 3
    assert result.predicted == pytest.approx(3.5 / 2)
    assert result.error == pytest.approx(11.5 / 7 / 1.75 - 1)
    assert str(result).startswith(
        "T = 1: x, γ = 2, best of 2. Speed-up on 4 other prompts: all 1.64"
    )


def test_the_interval_resamples_prompts_with_all_their_runs():
    """All resamples of three prompts, by enumeration, against the bootstrap's 4,000 draws; an end is
    the 5% or 95% point of a law on few values, so it may move to the next of them."""
    fast, plain = np.array([1.0, 2.0, 1.5]), np.array([2.0, 3.0, 3.0])
    rows = runs("choosing", "x", 1, fast) + runs("choosing", "", 0, plain)
    rows += runs("judging", "x", 1, fast) + runs("judging", "", 0, plain, repeats=2)
    interval = race(SimpleNamespace(race=rows, config=CONFIG)).results[0].speedups["all"]
    drawn = [list(d) for d in itertools.product(range(3), repeat=3)]
    ratios = np.array([plain[d].sum() / fast[d].sum() for d in drawn])
    for end, share in ((interval.low, 0.05), (interval.high, 0.95)):
        # 4 standard errors of the share in 4,000 draws: false alarm below 1e-4.
        most = 4 * np.sqrt(0.05 * 0.95 / 4000)
        assert (ratios < end - 1e-9).mean() <= share + most
        assert (ratios <= end + 1e-9).mean() >= share - most


def test_without_a_race_there_is_no_result():
    assert race(SimpleNamespace(race=[], config=CONFIG)) is None
