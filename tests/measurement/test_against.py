"""Two drafts on the same samples of a target, beside sums over all tokens by hand."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, t

from benchmarks.lossless import head, model
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.against import PairedDifference, _answer, compare_drafts
from sdsl_jax.measurement.pair import PairSettings, exact_acceptance, measure_models, sample_target
from sdsl_jax.measurement.replay import expected_rounds
from sdsl_jax.models import forward as eager_forward
from sdsl_jax.models import init_params
from sdsl_jax.statistics import (
    Interval,
    mcnemar_probability,
    ratio_error,
    sign_flip_probability,
)

forward = jax.jit(eager_forward, static_argnums=0)
TARGET, DRAFT, OTHER = model(2, 2), model(1, 1), model(3, 1)
NEW, ROWS = 10, 8
SETTINGS = dict(lookaheads=(2,), new_tokens=NEW, batch=ROWS)


def wider() -> Model:
    """A draft with two ids more than the target."""
    config = dataclasses.replace(model(3, 1).config, vocab_size=6)
    return Model(config, jax.tree.map(lambda x: 1.3 * x, init_params(config, jax.random.key(3))))


def ragged() -> Prompts:
    rng = np.random.default_rng(0)
    lengths = np.asarray([1, 3, 2, 3, 1, 2, 3, 3], np.int32)
    tokens = rng.integers(0, 4, (ROWS, 3)) * (np.arange(3) < lengths[:, None])
    return Prompts(tokens.astype(np.int32), lengths, "random", ROWS, 0)


def by_hand(draft, tokens, start, temperature) -> np.ndarray:
    """Σ_v min(p_v, q_v) at each new token of one sample."""
    logits = [
        np.asarray(forward(m.config, m.params, tokens[None])[0][0, start - 1 : start - 1 + NEW])
        for m in (TARGET, draft)
    ]
    if temperature == 0:
        return (logits[0].argmax(-1) == logits[1].argmax(-1)).astype(float)
    p, q = (np.asarray(jax.nn.softmax(jnp.asarray(x) / temperature)) for x in logits)
    return np.minimum(p, q[:, : p.shape[1]]).sum(-1, dtype=float)


@pytest.mark.parametrize(
    ("other", "temperature"),
    [(lambda: OTHER, 1.0), (lambda: OTHER, 0.0), pytest.param(wider, 1.0, marks=pytest.mark.slow)],
    ids=["at 1", "greedy", "more ids"],
)
def test_the_comparison_is_that_of_sums_over_all_tokens(other, temperature):
    settings = PairSettings(**SETTINGS, sampling=Sampling(temperature), stop_tokens=(3,))
    other, prompts = other(), ragged()
    samples = sample_target(TARGET, prompts, settings, lambda: None)
    scored = [exact_acceptance(m, TARGET, samples, settings) for m in (DRAFT, other)]
    found, rows = compare_drafts(*scored, settings), []
    for ids, start in zip(samples.tokens, prompts.lengths):
        new = ids[start : start + NEW]
        # A stop token counts, and nothing behind it.
        count = next((i + 1 for i, token in enumerate(new) if token == 3), NEW)
        rows.append([by_hand(m, ids, start, temperature)[:count] for m in (DRAFT, other)])
    counts = np.asarray([len(a) for a, _ in rows])
    assert counts.min() < NEW  # a row stops
    a, b = (np.asarray([row[i].sum() for row in rows]) for i in (0, 1))
    total, d = counts.sum(), a - b
    assert (found.tokens, found.prompts) == (total, ROWS)
    assert found.alpha.estimate == pytest.approx(a.sum() / total, abs=1e-5)
    assert found.alpha_against.estimate == pytest.approx(b.sum() / total, abs=1e-5)
    assert found.difference.estimate == pytest.approx(d.sum() / total, abs=1e-5)

    def error(x):
        residuals = x - x.sum() / total * counts
        return math.sqrt(ROWS / (ROWS - 1) * (residuals**2).sum()) / total

    assert found.standard_error == pytest.approx(error(d), rel=1e-4)
    assert found.unpaired_standard_error == pytest.approx(math.hypot(error(a), error(b)), rel=1e-4)
    assert found.pairing_gain == pytest.approx(
        (math.hypot(error(a), error(b)) / error(d)) ** 2, rel=1e-3
    )
    half = t.ppf(0.95, ROWS - 1) * error(d)
    assert found.difference.high - found.difference.estimate == pytest.approx(half, rel=1e-2)
    flips = np.asarray(list(itertools.product((-1, 1), repeat=ROWS))) @ d
    assert found.sign_flip_p == pytest.approx((abs(flips) >= abs(d.sum()) - 1e-9).mean())

    tokens_a, tokens_b = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    change = (1 - tokens_a) - (1 - tokens_b)
    assert found.tv.draft_nearer == (change < -1e-6).mean()
    assert found.tv.against_nearer == (change > 1e-6).mean()
    assert found.tv.draft_nearer + found.tv.against_nearer + found.tv.equal == pytest.approx(1)
    assert found.tv.quantiles == pytest.approx(np.quantile(change, [0.05, 0.5, 0.95]), abs=1e-5)
    assert len(found.tv.by_position) == counts.max()
    for k, mean in enumerate(found.tv.by_position):
        reach = [row[1][k] - row[0][k] for row in rows if len(row[0]) > k]
        assert mean == pytest.approx(np.mean(reach), abs=1e-5)
    if temperature:
        assert found.greedy is None
        return
    g, same = found.greedy, tokens_a == tokens_b
    assert (g.both, g.neither) == ((same & (tokens_a == 1)).sum(), (same & (tokens_a == 0)).sum())
    assert (g.only_draft, g.only_against) == ((tokens_a > tokens_b).sum(), (change > 0).sum())
    assert g.only_draft + g.only_against > 0
    assert g.mcnemar_p == pytest.approx(
        binomtest(g.only_draft, g.only_draft + g.only_against).pvalue
    )


@pytest.mark.slow
def test_a_head_is_compared_by_its_first_draft_and_the_order_turns_the_sign():
    settings = PairSettings(**SETTINGS)
    one = measure_models(DRAFT, TARGET, ragged(), settings, against=head())
    other = measure_models(head(), TARGET, ragged(), settings, against=DRAFT)
    found = compare_drafts(one.exact, one.against, settings)
    turned = compare_drafts(other.exact, other.against, settings)
    # The target's samples do not depend on the draft.
    assert (found.alpha, found.alpha_against) == (one.alpha, other.alpha)
    assert found.difference.estimate == pytest.approx(-turned.difference.estimate, abs=1e-12)
    assert found.difference.low == pytest.approx(-turned.difference.high, abs=1e-12)
    assert (found.standard_error, found.sign_flip_p) == pytest.approx(
        (turned.standard_error, turned.sign_flip_p)
    )
    (tokens,) = found.expected
    assert tokens.lookahead == 2
    assert tokens.draft == one.lookaheads[0].expected
    assert tokens.against == other.lookaheads[0].expected
    assert tokens.difference.estimate == tokens.draft.estimate - tokens.against.estimate
    assert tokens.difference.low < tokens.difference.estimate < tokens.difference.high

    same = compare_drafts(one.exact, one.exact, settings)
    assert same.difference == Interval(0, 0, 0)
    assert (same.sign_flip_p, same.standard_error) == (1, 0)
    assert math.isnan(same.pairing_gain)
    assert same.expected[0].difference == Interval(0, 0, 0)
    assert same.answer == "the two drafts are accepted alike at every token"

    stranger = dataclasses.replace(head().config, taps=(3,))
    with pytest.raises(SdslError, match="the head reads blocks 3 of a target of width 8"):
        measure_models(DRAFT, TARGET, ragged(), settings, against=head()._replace(config=stranger))


def test_residuals_of_tokens_per_round_are_derivatives():
    """A sample that is counted once more among k copies of all moves τ by its residual over k; the rest
    is of order 1/k², 1% at k = 100."""
    acceptance = np.random.default_rng(1).random((5, 8))
    (_, plain) = expected_rounds(acceptance, 2)
    assert plain.residuals.sum() == pytest.approx(0, abs=1e-6)
    copies = np.tile(acceptance, (100, 1))
    base = expected_rounds(copies, 2)[1].tokens_per_round.estimate
    for i in range(5):
        (_, more) = expected_rounds(np.concatenate([copies, acceptance[i : i + 1]]), 2)
        moved = 100 * (more.tokens_per_round.estimate - base)
        assert moved == pytest.approx(plain.residuals[i], rel=0.03, abs=1e-4)


def test_sign_flips_count_sums_as_far_from_zero():
    """Exact to 14 clusters; beyond by draws, within 5 standard errors (a false alarm of 1e-6)."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        d = rng.normal(0.3, 1, n)
        sums = np.asarray(list(itertools.product((-1, 1), repeat=n))) @ d
        assert sign_flip_probability(d) == (abs(sums) >= abs(d.sum()) - 1e-12).mean()
    # Clusters without a difference change nothing, and the order of two drafts neither.
    assert sign_flip_probability([*d, 0, 0]) == sign_flip_probability(-d)
    assert sign_flip_probability(np.zeros(5)) == 1
    assert sign_flip_probability([1.0] * 10) == 2 / 2**10
    # Of 16 ones, sums of 12 and more need at least 14 of a sign.
    d = np.r_[np.ones(14), -np.ones(2)]
    exact = 2 * sum(math.comb(16, k) for k in (14, 15, 16)) / 2**16
    assert sign_flip_probability(d) == pytest.approx(exact, abs=5 * math.sqrt(exact / 2**14))
    assert sign_flip_probability(np.ones(60)) == 1 / 2**14


@pytest.mark.parametrize(
    ("only_one", "only_other"), [(0, 0), (0, 1), (3, 3), (1, 9), (9, 1), (210, 320), (4000, 4500)]
)
def test_mcnemar_is_the_sign_test(only_one, only_other):
    n = only_one + only_other
    expected = binomtest(only_one, n).pvalue if n else 1
    assert mcnemar_probability(only_one, only_other) == pytest.approx(expected, rel=1e-8)


def test_an_error_needs_two_clusters():
    assert math.isnan(ratio_error(np.ones(1), np.ones(1)))
    assert math.isnan(ratio_error(np.zeros(3), np.zeros(3)))


def test_the_answer_says_who_is_better_only_if_the_interval_does():
    a, b = Interval(0.70, 0.68, 0.72), Interval(0.73, 0.71, 0.75)
    better = _answer(Interval(-0.0306, -0.0366, -0.0246), a, b, 64, 20)
    assert better == "B's α is 0.0306 ± 0.0060 higher than A's: 0.7000 of A, 0.7300 of B"
    assert _answer(Interval(0.1, 0.05, 0.15), b, a, 64, 99).startswith("A's α is 0.100 ± 0.050")
    unsure = _answer(Interval(-0.002, -0.022, 0.018), a, b, 64, 1411)
    assert unsure == (
        "the difference A − B in α is within the noise: -0.002 ± 0.020 (0.700 of A, 0.730 of B); about 1,411 prompts would "
        "show a difference of 0.01 four times out of five"
    )
    sharp = _answer(Interval(-0.001, -0.003, 0.001), a, b, 64, 13)
    assert "64 prompts, as here, show a difference of 0.01" in sharp
    alone = _answer(Interval(0.1, math.nan, math.nan), a, b, 1, None)
    assert alone.startswith("one prompt gives no interval for the difference of +0.100 in α")


@pytest.mark.slow
def test_intervals_and_tests_keep_their_promises():
    """2,000 comparisons of 14 prompts of 20 to 60 tokens, with effects that both drafts share, effects
    of each draft on each prompt, and noise of single tokens. Bounds are 5 standard errors of a share
    among 2,000, a false alarm of 1e-6, and 1.5% more for the approximations of interval and power."""
    rng, runs, prompts = np.random.default_rng(0), 2000, 14
    covered, flipped, naive, shown, gains = [], [], [], [], []
    for _ in range(runs):
        counts = rng.integers(20, 61, prompts)
        shared = rng.normal(0, 0.6, (prompts, 1))
        chances = 1 / (1 + np.exp(-(0.8 + shared + rng.normal(0, 0.5, (prompts, 2)))))
        hits = rng.binomial(counts[:, None], chances)
        paired = PairedDifference.of(*hits.T.astype(float), counts, 0.9)
        covered.append(paired.difference.low <= 0 <= paired.difference.high)
        flipped.append(paired.sign_flip <= 0.1)
        gains.append((paired.unpaired_error / paired.error) ** 2)
        both = rng.hypergeometric(hits[:, 0], counts - hits[:, 0], hits[:, 1])
        naive.append(mcnemar_probability(*(hits.sum(axis=0) - both.sum())) <= 0.1)
        # A true difference of the detectable size is shown four times out of five.
        detectable = (t.ppf(0.95, prompts - 1) + 0.8416) * paired.error
        moved = paired.difference.estimate + detectable
        shown.append(moved - t.ppf(0.95, prompts - 1) * paired.error > 0)
    off = 5 * math.sqrt(0.1 * 0.9 / runs) + 0.015
    assert np.mean(covered) == pytest.approx(0.9, abs=off)
    assert np.mean(flipped) <= 0.1 + 5 * math.sqrt(0.1 * 0.9 / runs)
    assert np.mean(shown) == pytest.approx(0.8, abs=5 * math.sqrt(0.8 * 0.2 / runs) + 0.015)
    # What McNemar's test promises does not hold for tokens of one prompt.
    assert np.mean(naive) > 0.2
    assert np.median(gains) > 1
