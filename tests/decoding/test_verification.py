import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.decoding import overlap, probabilities, residual, verify_tokens
from sdsl_jax.decoding.verification import is_accepted, sample


def random_probs(seed, *shape, zeros=True):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(shape[-1], 0.6), shape[:-1])
    if zeros:
        p = np.where(random.random(p.shape) < 0.2, 0, p) + 1e-9 * (np.arange(shape[-1]) == 0)
    return jnp.asarray(p / p.sum(-1, keepdims=True), jnp.float32)


@given(st.integers(0, 10_000), st.integers(2, 30))
def test_one_position_is_exactly_lossless(seed, vocabulary):
    """Σ_x q_x·[accept x] + P(reject)·residual = p, for random p and q with zeros: the identity behind the method."""
    p, q = random_probs(seed, vocabulary), random_probs(seed + 1, vocabulary)
    accept = np.where(
        np.asarray(q) > 0, np.minimum(1, np.asarray(p, float) / np.maximum(np.asarray(q, float), 1e-30)), 0
    )
    emitted = np.asarray(q) * accept + (1 - float(overlap(p, q))) * np.asarray(residual(p, q))
    np.testing.assert_allclose(emitted, p, atol=2e-6)


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_acceptance_probability_is_the_ratio(p, q):
    """The set of uniforms that accept is [0, p/q): just below the ratio accepts and just above rejects."""
    ratio = p / q
    assert bool(is_accepted(jnp.float32(min(ratio, 1) * (1 - 1e-5)), jnp.float32(p), jnp.float32(q)))
    if ratio < 1 - 1e-4:
        assert not bool(is_accepted(jnp.float32(ratio * (1 + 1e-5)), jnp.float32(p), jnp.float32(q)))


def test_residual_of_equal_distributions_is_the_target():
    p = random_probs(0, 7)
    np.testing.assert_array_equal(residual(p, p), p)


def test_probabilities_apply_the_temperature_and_are_greedy_at_zero():
    logits = jnp.array([[1.0, 3.0, 2.0]])
    expected = np.exp(np.array([1, 3, 2]) / 0.7)
    np.testing.assert_allclose(probabilities(logits, 0.7)[0], expected / expected.sum(), rtol=1e-6)
    np.testing.assert_array_equal(probabilities(logits, 0.0)[0], [0, 1, 0])


def test_impossible_tokens_are_never_drawn():
    probs = jnp.array([0.0, 0.3, 0.0, 0.7])
    drawn = jax.vmap(lambda k: sample(k, probs))(jax.random.split(jax.random.key(0), 20_000))
    assert set(np.unique(drawn)) == {1, 3}


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_joint_distribution_of_verified_tokens(lookahead):
    """All outcomes of a round on fixed p and q, enumerated exactly.

    A round of γ drafts emits a prefix; completing it with draws from p makes every outcome γ + 1 tokens long, and those must be
    distributed as γ + 1 draws from the target. χ² over 5^(γ+1) cells, false alarm 1e-6.
    """
    V, G, N = 5, 3, 200_000
    # Positions independent of one another: q and p depend on the position only, so the target's joint is a product.
    p, q = random_probs(3, G + 1, V, zeros=False), random_probs(4, G, V, zeros=False)

    def one_round(key):
        draft_key, accept_key, residual_key, rest_key = jax.random.split(key, 4)
        drafts = jax.vmap(sample)(jax.random.split(draft_key, G), q)
        verdict = verify_tokens(drafts, q, p, lookahead, accept_key, residual_key)
        rest = jax.vmap(sample)(jax.random.split(rest_key, G + 1), p)
        at = jnp.arange(G + 1)
        padded = jnp.append(drafts, 0)
        return jnp.where(
            at < verdict.accepted, padded, jnp.where(at == verdict.accepted, verdict.next_token, rest)
        ), verdict.accepted

    tokens, accepted = jax.jit(jax.vmap(one_round))(jax.random.split(jax.random.key(1), N))
    tokens, accepted = np.asarray(tokens)[:, : lookahead + 1], np.asarray(accepted)
    cells = np.ravel_multi_index(tokens.T, (V,) * (lookahead + 1))
    expected = N * np.asarray(
        [np.prod([p[i, t] for i, t in enumerate(c)]) for c in np.ndindex(*(V,) * (lookahead + 1))]
    )
    counts = np.bincount(cells, minlength=len(expected))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(statistic, len(expected) - 1) > 1e-6
    # The number accepted: survival to k is the product of the overlaps, exactly. Five standard errors: 6e-7.
    for k in range(1, lookahead + 1):
        survival = float(np.prod(np.asarray(overlap(p[:k], q[:k]))))
        assert abs((accepted >= k).mean() - survival) < 5 * np.sqrt(survival * (1 - survival) / N)
    assert accepted.max() <= lookahead
