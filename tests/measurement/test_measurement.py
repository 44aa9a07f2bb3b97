import jax
import numpy as np
import pytest

from sdsl_jax.decoding import Model, autoregress, speculate
from sdsl_jax.measurement.decoded import event_columns, self_check, summarise
from sdsl_jax.measurement.latency import Step, time_steps
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.models import ModelConfig, init_params

V = 6


def make(seed: int, layers: int = 1) -> Model:
    config = ModelConfig(vocab_size=V, width=8, layers=layers, heads=2, kv_heads=1, head_dim=4, hidden=12)
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
    assert found.tokens_per_round.estimate == pytest.approx(1 + sum(s.estimate for s in found.survival))
    alpha = found.tar.estimate
    assert 1 + alpha + alpha**2 + alpha**3 == pytest.approx(found.tokens_per_round.estimate, rel=1e-5)
    # On random tokens of random models positions hardly differ: the two estimators agree within their intervals.
    assert found.per_test.low < found.tar.estimate < found.per_test.high


def test_self_check_of_the_decoder(decoded):
    """Σ(accepted − β)/√Σβ(1 − β) is standard normal: |z| < 5 has a false alarm of 6e-7."""
    found = summarise(decoded, 3, 0.9)
    assert found.tests > 5_000
    assert abs(found.self_check) < 5
    # The check can fail: one draft in twenty counted as rejected moves it far out.
    events = decoded.events
    wrong = decoded._replace(events=events._replace(chance=events.chance * 0.95))
    assert abs(summarise(wrong, 3, 0.9).self_check) > 5


def test_decoded_acceptance_equals_exact_acceptance_on_the_same_positions(decoded):
    """Accepted per test against the mean β of the tested positions: five standard errors."""
    found = summarise(decoded, 3, 0.9)
    beta = np.asarray(decoded.events.chance)
    # Positions that a row reached before it stopped.
    tested = (beta > 0) & (np.arange(3) < np.asarray(decoded.events.emitted)[..., None])
    error = np.sqrt((beta[tested] * (1 - beta[tested])).sum()) / tested.sum()
    assert abs(found.per_test.estimate - beta[tested].mean()) < 5 * error
    assert tested.sum() == found.tests


def test_event_columns_hold_every_round(decoded):
    columns = event_columns(decoded)
    assert columns["emitted"].sum() == 400 * 41
    assert len(set(zip(columns["row"], columns["round"]))) == len(columns["row"])


def test_latencies_are_positive_and_grow_with_the_work(pair):
    _, target = pair
    config = ModelConfig(vocab_size=256, width=256, layers=4, heads=4, kv_heads=4, head_dim=64, hidden=1024)
    large = Model(config, init_params(config, jax.random.key(0)))
    steps = {"small": Step(target, 1), "large": Step(large, 1)}
    timed = time_steps(steps, batch=1, context=8, repetitions=5, confidence=0.9)
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
    # Rounds start where a token was just drawn from residual or bonus, so they see other contexts: .03 beyond the noise.
    assert abs(live.per_test.estimate - mean) < 0.03 + 4 * spread


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
def test_the_self_check_is_standard_normal_whatever_the_acceptance(verification, noise):
    """Sixteen runs of each pair: below 4.5 in size always (1e-4 in all), and neither one-sided nor wide where it is defined."""
    target = make(2, layers=2)
    draft = target._replace(params=jax.tree.map(lambda t, n: t + noise * n, target.params, make(5, layers=2).params))
    prompts = np.random.default_rng(4).integers(0, V, (32, 3))
    found = []
    for seed in range(16):
        run = speculate(draft, target, prompts, lookahead=4, new_tokens=32, seed=seed, verification=verification)
        found.append(self_check(run.events))
    if noise == 0:
        # A draft that is the target leaves nothing to chance but rounding.
        assert all(np.isnan(z) or abs(z) < 1 for z in found)
    else:
        assert max(map(abs, found)) < 4.5
        assert abs(np.mean(found)) < 4 / 4
        assert noise < 0.1 or 0.5 < np.std(found) < 1.7
