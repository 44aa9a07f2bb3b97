import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.decoding import draw, overlap, residual, verify_block, verify_tokens
from sdsl_jax.decoding.verification import block_tests, is_accepted


def random_probs(seed, *shape, zeros=True):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(shape[-1], 0.6), shape[:-1])
    if zeros:
        p = np.where(random.random(p.shape) < 0.2, 0, p) + 1e-9 * (np.arange(shape[-1]) == 0)
    return jnp.asarray(p / p.sum(-1, keepdims=True), jnp.float32)


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 30]))
def test_one_position_is_exactly_lossless(seed, vocabulary):
    """Σ_x q_x·[accept x] + P(reject)·residual = p, for random p and q with zeros: the identity behind the method."""
    p, q = random_probs(seed, vocabulary), random_probs(seed + 1, vocabulary)
    accept = np.where(
        np.asarray(q) > 0,
        np.minimum(1, np.asarray(p, float) / np.maximum(np.asarray(q, float), 1e-30)),
        0,
    )
    emitted = np.asarray(q) * accept + (1 - float(overlap(p, q))) * np.asarray(residual(p, q))
    np.testing.assert_allclose(emitted, p, atol=2e-6)


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_acceptance_probability_is_the_ratio(p, q):
    """The set of uniforms that accept is [0, p/q): just below the ratio accepts and just above rejects."""
    ratio = p / q
    assert bool(
        is_accepted(jnp.float32(min(ratio, 1) * (1 - 1e-5)), jnp.float32(p), jnp.float32(q))
    )
    if ratio < 1 - 1e-4:
        assert not bool(
            is_accepted(jnp.float32(ratio * (1 + 1e-5)), jnp.float32(p), jnp.float32(q))
        )


def test_residual_of_equal_distributions_is_the_target():
    p = random_probs(0, 7)
    np.testing.assert_array_equal(residual(p, p), p)


def test_impossible_tokens_are_never_drawn():
    probs = jnp.array([0.0, 0.3, 0.0, 0.7])
    drawn = draw(probs[None], jax.random.gumbel(jax.random.key(0), (20_000, 4)))
    assert set(np.unique(drawn)) == {1, 3}


G, N = 3, 200_000
# Positions independent of one another: q and p depend on the position only, so the target's joint
# is a product.
P_FIXED, Q_FIXED = random_probs(3, G + 1, 5, zeros=False), random_probs(4, G, 5, zeros=False)


@functools.cache
def compiled_rounds(verify):
    """Rounds on fixed p and q for keys [N] and a lookahead: one program for all lookaheads."""
    p, q = P_FIXED, Q_FIXED

    def one_round(key, lookahead):
        draft_key, accept_key, residual_key, rest_key = jax.random.split(key, 4)
        drafts = draw(q, jax.random.gumbel(draft_key, q.shape))
        uniforms, gumbels = (
            jax.random.uniform(accept_key, (G,)),
            jax.random.gumbel(residual_key, (5,)),
        )
        verdict = verify(drafts, q, p, lookahead, uniforms, gumbels)
        rest = draw(p, jax.random.gumbel(rest_key, p.shape))
        at = jnp.arange(G + 1)
        padded = jnp.append(drafts, 0)
        tokens = jnp.where(
            at < verdict.accepted,
            padded,
            jnp.where(at == verdict.accepted, verdict.next_token, rest),
        )
        return tokens, verdict.accepted, verdict.expected_accepted

    return jax.jit(jax.vmap(one_round, (0, None)))


@functools.cache
def many_rounds(verify, lookahead):
    """Tokens [N, G + 1], numbers accepted and chances of rounds, each completed with draws from p."""
    return jax.tree.map(
        np.asarray, compiled_rounds(verify)(jax.random.split(jax.random.key(1), N), lookahead)
    )


@pytest.mark.parametrize("verify", [verify_tokens, verify_block])
@pytest.mark.parametrize(
    "lookahead", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 2)), 3]
)
def test_joint_distribution_of_verified_tokens(verify, lookahead):
    """All outcomes of a round on fixed p and q, enumerated exactly.

    A round of γ drafts emits a prefix; completing it with draws from p makes every outcome γ + 1
    tokens long, and those must be distributed as γ + 1 draws from the target. χ² over 5^(γ+1)
    cells, false alarm 1e-6.
    """
    tokens, accepted, chance = many_rounds(verify, lookahead)
    tokens = tokens[:, : lookahead + 1]
    cells = np.ravel_multi_index(tokens.T, (5,) * (lookahead + 1))
    expected = N * np.asarray(
        [
            np.prod([P_FIXED[i, t] for i, t in enumerate(c)])
            for c in np.ndindex(*(5,) * (lookahead + 1))
        ]
    )
    counts = np.bincount(cells, minlength=len(expected))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(statistic, len(expected) - 1) > 1e-6
    assert accepted.max() <= lookahead
    # What the verdict calls its chance is what happens on average, position by position. Five
    # standard errors: 6e-7.
    surplus = accepted - chance.sum(axis=1)
    assert abs(surplus.mean()) <= 5 * surplus.std() / np.sqrt(N)
    assert (chance[:, lookahead:] == 0).all()


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_survival_of_token_verification_is_the_product_of_overlaps(lookahead):
    """Five standard errors: 6e-7."""
    _, accepted, _ = many_rounds(verify_tokens, lookahead)
    for k in range(1, lookahead + 1):
        survival = float(np.prod(np.asarray(overlap(P_FIXED[:k], Q_FIXED[:k]))))
        assert abs((accepted >= k).mean() - survival) < 5 * np.sqrt(survival * (1 - survival) / N)


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_survival_of_block_verification(lookahead):
    """P(k or more kept) = E w_k, w_k = min(1, w_{k−1}·p/q), by enumeration of all drafts. Five standard errors: 6e-7."""
    _, accepted, _ = many_rounds(verify_block, lookahead)
    p, q = np.asarray(P_FIXED, float), np.asarray(Q_FIXED, float)
    survival = np.zeros(lookahead)
    for drafts in np.ndindex(*(5,) * lookahead):
        weight, probability = 1.0, np.prod([q[i, t] for i, t in enumerate(drafts)])
        for k, token in enumerate(drafts):
            weight = min(1, weight * p[k, token] / q[k, token])
            survival[k] += probability * weight
    for k in range(1, lookahead + 1):
        error = np.sqrt(survival[k - 1] * (1 - survival[k - 1]) / N)
        assert abs((accepted >= k).mean() - survival[k - 1]) < 5 * error
    # At one draft the two rules are the same rule; beyond, the block keeps more.
    tokens = np.cumprod([float(overlap(p[i], q[i])) for i in range(lookahead)]).sum()
    assert (
        survival.sum() == pytest.approx(tokens)
        if lookahead == 1
        else survival.sum() > tokens * 1.01
    )


def test_block_verification_is_exactly_lossless(x64):
    """The sum over all drafts and decisions, completed with p, is the product of p to 1e-12: no
    sampling involved.

    q and p depend on the position only, and have zeros; the code under test gives tests, weights
    and residual.
    """
    vocabulary, lookahead = 4, 3
    drafts = np.asarray(list(np.ndindex(*(vocabulary,) * lookahead)))
    tests = jax.jit(jax.vmap(block_tests, (0, None, None, None)), static_argnums=3)
    for seed in range(20):
        p, q = (
            x / x.sum(-1, keepdims=True)
            for x in (
                np.asarray(random_probs(2 * seed, lookahead + 1, vocabulary), float),
                np.asarray(random_probs(2 * seed + 1, lookahead, vocabulary), float),
            )
        )
        if seed == 0:
            q = p[:lookahead]  # nothing left for any residual
        weights, passing = (np.asarray(x) for x in tests(drafts, q, p, lookahead))
        rests = np.asarray(
            residual(
                np.concatenate([np.ones((len(drafts), 1)), weights], 1)[:, :lookahead, None]
                * p[:lookahead],
                q,
            )
        )
        joint = np.zeros((vocabulary,) * (lookahead + 1))
        for d, h, rest in zip(drafts, passing, rests):
            chance = np.prod(q[np.arange(lookahead), d])
            later = 1.0  # probability that no longer prefix was kept
            for kept in range(lookahead, -1, -1):
                test = h[kept - 1] if kept else 1.0
                if chance * later * test > 0:
                    outcome = chance * later * test * (p[kept] if kept == lookahead else rest[kept])
                    for i in range(kept + 1, lookahead + 1):
                        outcome = np.multiply.outer(outcome, p[i])
                    joint[tuple(d[:kept])] += outcome
                later *= 1 - test
        expected = p[0]
        for i in range(1, lookahead + 1):
            expected = np.multiply.outer(expected, p[i])
        np.testing.assert_allclose(joint, expected, atol=1e-12)
