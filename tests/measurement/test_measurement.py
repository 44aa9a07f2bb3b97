import functools
from statistics import NormalDist

import jax
import numpy as np
import pytest

from sdsl_jax.decoding import Model, autoregress, speculate
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.events import (
    FALSE_ALARM,
    alarm_score,
    event_columns,
    self_check,
    summarise,
)
from sdsl_jax.measurement.latency import Step, time_steps
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.models import ModelConfig, init_params
from sdsl_jax.statistics import poisson_binomial_score

V = 6


def make(seed: int, layers: int = 1) -> Model:
    config = ModelConfig(
        vocab_size=V, width=8, layers=layers, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    return Model(config, jax.tree.map(lambda x: 2.5 * x, init_params(config, jax.random.key(seed))))


@pytest.fixture(scope="module")
def pair():
    return make(1), make(2, layers=2)


@pytest.fixture(scope="module")
def decoded(pair):
    draft, target = pair
    prompts = np.random.default_rng(1).integers(0, V, (400, 4))
    return speculate(draft, target, prompts, lookahead=3, new_tokens=41)


def test_statistics_from_events(decoded):
    found = summarise(decoded, 3, 0.9)
    events = jax.tree.map(np.asarray, decoded.events)
    full = events.emitted > 0
    assert found.rounds == full.sum()
    for k in range(1, 4):
        assert found.survival[k - 1].estimate == pytest.approx((events.verified[full] >= k).mean())
    assert found.tokens_per_round.estimate == pytest.approx(
        1 + sum(s.estimate for s in found.survival)
    )
    alpha = found.tar.estimate
    assert 1 + alpha + alpha**2 + alpha**3 == pytest.approx(
        found.tokens_per_round.estimate, rel=1e-5
    )
    # On random tokens of random models positions hardly differ: the two estimators agree within
    # their intervals.
    assert found.per_test.low < found.tar.estimate < found.per_test.high


def test_self_check_of_the_decoder(decoded):
    """Σ(accepted − β)/√Σβ(1 − β) is standard normal: |z| < 5 has a false alarm of 6e-7."""
    found = summarise(decoded, 3, 0.9)
    assert found.tests > 5_000
    assert abs(found.self_check) < 5
    # The check can fail: one draft in twenty counted as rejected moves it far out.
    events = decoded.events
    wrong = decoded._replace(
        events=events._replace(expected_accepted=events.expected_accepted * 0.95)
    )
    assert abs(summarise(wrong, 3, 0.9).self_check) > 5


def test_decoded_acceptance_equals_exact_acceptance_on_the_same_positions(decoded):
    """Accepted per test against the mean β of the tested positions: five standard errors."""
    found = summarise(decoded, 3, 0.9)
    beta = np.asarray(decoded.events.expected_accepted)
    # Positions that a row reached before it stopped.
    tested = (beta > 0) & (np.arange(3) < np.asarray(decoded.events.emitted)[..., None])
    error = np.sqrt((beta[tested] * (1 - beta[tested])).sum()) / tested.sum()
    assert abs(found.per_test.estimate - beta[tested].mean()) < 5 * error
    assert tested.sum() == found.tests


def test_event_columns_hold_every_round(decoded):
    columns = event_columns(decoded)
    assert columns["emitted"].sum() == 400 * 41
    assert len(set(zip(columns["row"], columns["round"]))) == len(columns["row"])


@pytest.mark.slow
def test_latencies_are_positive_and_grow_with_the_work(pair):
    _, target = pair
    config = ModelConfig(
        vocab_size=256, width=256, layers=4, heads=4, kv_heads=4, head_dim=64, hidden=1024
    )
    large = Model(config, init_params(config, jax.random.key(0)))
    steps = {"small": Step(target, 1, 8), "large": Step(large, 1, 8)}
    timed = time_steps(steps, repetitions=5, confidence=0.9)
    # A factor of several hundred in work shows through any noise of a machine.
    assert 0 < timed["small"].estimate < timed["large"].estimate
    assert timed["large"].low <= timed["large"].estimate <= timed["large"].high


@pytest.mark.slow
def test_samples_of_the_target_are_what_exact_acceptance_runs_on(pair):
    """Teacher-forced α on the target's samples predicts the live decoder's first-position survival at γ = 1."""
    draft, target = pair
    prompts = np.random.default_rng(3).integers(0, V, (600, 2))
    sampled = np.asarray(autoregress(target, prompts, new_tokens=30, seed=1).tokens)
    exact = pairwise_overlap({"d": draft}, {"t": target}, sampled[:, :-1], first=1).pairs["d", "t"]
    live = summarise(speculate(draft, target, prompts, lookahead=1, new_tokens=30, seed=2), 1, 0.99)
    each = exact.acceptance[0] / exact.positions
    mean, spread = each.mean(), each.std() / np.sqrt(600)
    # Rounds start where a token was just drawn from residual or bonus, so they see other contexts:
    # 0.03 beyond the noise.
    assert abs(live.per_test.estimate - mean) < 0.03 + 4 * spread


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
def test_the_self_check_is_standard_normal_whatever_the_acceptance(verification, noise):
    """Sixteen runs of each pair: below 4.5 in size always (1e-4 in all), and neither one-sided nor wide where it is defined."""
    target = make(2, layers=2)
    draft = target._replace(
        params=jax.tree.map(lambda t, n: t + noise * n, target.params, make(5, layers=2).params)
    )
    prompts = np.random.default_rng(4).integers(0, V, (32, 3))
    found = []
    for seed in range(16):
        run = speculate(
            draft, target, prompts, lookahead=4, new_tokens=32, seed=seed, verification=verification
        )
        found.append(self_check(run.events))
    if noise == 0:
        # A draft that is the target leaves nothing to chance but rounding.
        assert all(np.isnan(z) or abs(z) < 1 for z in found)
    else:
        assert max(map(abs, found)) < 4.5
        assert abs(np.mean(found)) < 4 / 4
        assert noise < 0.1 or 0.5 < np.std(found) < 1.7


def exact_score(successes: int, chances: np.ndarray) -> float:
    """Φ⁻¹(P(K < k) + P(K = k)/2), by convolution."""
    mass = functools.reduce(np.convolve, [[1 - p, p] for p in chances], np.ones(1))
    below, above = mass[:successes].sum(), mass[successes + 1 :].sum()
    tail = min(below, above) + mass[successes] / 2
    return float(np.copysign(NormalDist().inv_cdf(min(tail, 0.5)), above - below) * -1)


@pytest.mark.parametrize("largest", [1e-3, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("failures", [False, True])
def test_the_score_of_unequal_coins_is_that_of_their_exact_distribution(largest, failures):
    """At every count that is not rarer than 1e-12; to 0.06 in the score, and far out to a tenth of the tail's probability."""
    for coins in (1, 2, 5, 40):
        chances = np.random.default_rng(coins).uniform(0, largest, coins)
        chances = 1 - chances if failures else chances
        for k in range(coins + 1):
            exact = exact_score(k, chances)
            if abs(exact) < 7:
                found = float(poisson_binomial_score(k, chances))
                assert found == pytest.approx(exact, abs=0.06), (coins, k)
                assert (
                    abs(exact) < 2
                    or 0.88 < NormalDist().cdf(-abs(found)) / NormalDist().cdf(-abs(exact)) < 1.12
                )


@pytest.mark.parametrize(
    "chances", [[1e-4, 0.999], [1e-6, 0.9999, 0.999], [1e-5] * 30 + [0.9997] * 30]
)
def test_coins_that_are_nearly_certain_of_both_kinds_have_the_exact_score(chances):
    """A sharp target keeps or rejects nearly every draft for certain: what it does nearly always is no alarm."""
    for k in range(len(chances) + 1):
        exact = exact_score(k, np.asarray(chances))
        if abs(exact) < 7:
            assert float(poisson_binomial_score(k, np.asarray(chances))) == pytest.approx(
                exact, abs=1e-6
            ), k


def test_a_single_success_where_few_are_expected_is_no_alarm():
    """One draft kept where 0.05 are expected happens once in twenty runs; in standard errors it looks like 4.2."""
    chances = np.full(250, 0.05 / 250)
    assert float(poisson_binomial_score(1, chances)) == pytest.approx(1.96, abs=0.03)
    assert (
        float(poisson_binomial_score(250, np.full(250, 1e-6))) > 50
    )  # far beyond what a float can say of a probability
    assert poisson_binomial_score(np.zeros(3), np.zeros((3, 4))).tolist() == [0, 0, 0]
    padded = poisson_binomial_score(
        np.array([2, 1]), np.array([[0.3, 0.2, 0.1, 0], [0.3, 0, 0, 0.2]])
    )
    assert padded.tolist() == pytest.approx(
        [exact_score(2, [0.3, 0.2, 0.1]), exact_score(1, [0.3, 0.2])], abs=0.06
    )


def chains(kind: str, runs: int, tests: int, random) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of successes and chances of runs of a right decoder: each test is kept with its chance, given what came before."""
    chances = {
        "hardly any": np.full((runs, tests), 0.05 / tests),
        "one in eight": np.full((runs, tests), 0.125 / tests),
        "a few": random.uniform(0, 0.02, (runs, tests)),
        "nearly all": 1 - random.uniform(0, 0.002, (runs, tests)),
        "half": random.uniform(0, 1, (runs, tests)),
        "bursts": np.full((runs, tests), 0.002),
        "nearly certain": np.where(
            random.random((runs, tests)) < 0.5, 1e-5, 1 - 1e-4 * random.random((runs, tests))
        ),
    }[kind]
    kept, uniforms = np.zeros((runs, tests), bool), random.random((runs, tests))
    for t in range(tests):
        if kind == "bursts" and t:
            # A draft that is kept leads into easy text, which ends with a rejection.
            chances[:, t] = np.where(kept[:, t - 1], 0.95, 0.002)
        kept[:, t] = uniforms[:, t] < chances[:, t]
    return kept.sum(axis=1), chances


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["hardly any", "one in eight", "a few", "nearly all", "half", "bursts", "nearly certain"],
)
def test_the_warning_of_the_self_check_comes_as_seldom_as_it_says(kind):
    """10,000 runs each: at most 1 false alarm is expected, and 7 or fewer come with a probability
    of 1 − 1e-5.

    At one in a hundred, the bound behind the rate is tested with five standard errors: 6e-7.
    """
    kept, chances = chains(kind, 10_000, 200, np.random.default_rng(1))
    score = np.concatenate(
        [poisson_binomial_score(k, p) for k, p in zip(np.split(kept, 10), np.split(chances, 10))]
    )
    assert FALSE_ALARM == 1e-4
    assert (np.abs(score) > alarm_score(1)).sum() <= 7
    assert (np.abs(score) > NormalDist().inv_cdf(1 - 0.01 / 4)).mean() <= 0.01 + 5 * np.sqrt(
        0.01 / 10_000
    )
    variance = (chances * (1 - chances)).sum(axis=1)
    errors = (kept - chances.sum(axis=1)) / np.sqrt(variance)
    if kind == "hardly any":
        assert (
            np.abs(errors) > 4
        ).mean() > 0.04  # what a warning at four standard errors would give
    if kind == "half":
        np.testing.assert_allclose(score, errors, atol=0.15)


def test_more_lookaheads_do_not_make_more_alarms():
    assert alarm_score(1) < alarm_score(4) < alarm_score(100) < 6
    for runs in (1, 4):
        assert 4 * runs * NormalDist().cdf(-alarm_score(runs)) == pytest.approx(
            FALSE_ALARM, rel=1e-6
        )


def test_steps_of_a_broken_model_are_not_timed(pair):
    _, target = pair
    broken = target._replace(params=jax.tree.map(lambda x: x * np.nan, target.params))
    with pytest.raises(SdslError, match="the logits of the model broken are not finite"):
        time_steps({"broken": Step(broken, 1, 8)}, repetitions=5, confidence=0.9)
