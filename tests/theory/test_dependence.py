import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sdsl_jax.theory import (
    BetaAcceptance,
    PersistentAcceptance,
    geometric_error,
    rounds_over_sample,
    tokens_per_round,
    tokens_per_round_from_survival,
)


def test_beta_over_rounds_and_over_prompts_differ_in_sign(x64):
    """Beta(6, 3) at γ = 5: 2.92 over rounds and 2.66 over prompts, against 2.73 by the geometric formula."""
    beta = BetaAcceptance(6.0, 3.0)
    over_rounds, over_prompts = (
        float(x)
        for x in (beta.tokens_per_round_over_rounds(5), beta.tokens_per_round_over_prompts(5))
    )
    assert (round(over_rounds, 2), round(over_prompts, 2)) == (2.92, 2.66)
    assert float(tokens_per_round(beta.mean, 5)) == pytest.approx(2.7366, abs=1e-4)
    assert float(geometric_error(over_rounds, beta.mean, 5)) == pytest.approx(-0.0638, abs=1e-4)
    assert float(geometric_error(over_prompts, beta.mean, 5)) == pytest.approx(0.0287, abs=1e-4)


@given(st.floats(0.6, 40), st.floats(0.6, 40), st.sampled_from([1, 5, 12]))
def test_beta_against_scipy(a, b, lookahead):
    """Moments from the Beta function, and the mean over prompts by scipy's own nodes, four times as many."""
    with jax.enable_x64(True):
        beta, k = BetaAcceptance(a, b), np.arange(1, lookahead + 1)
        moments = np.exp(scipy.special.betaln(a + k, b) - scipy.special.betaln(a, b))
        np.testing.assert_allclose(beta.survival(lookahead), moments, rtol=1e-10)
        nodes, weights = scipy.special.roots_jacobi(128, b - 1, a - 1)
        inverse = (
            weights / np.sum([((1 + nodes) / 2) ** i for i in range(lookahead + 1)], axis=0)
        ).sum() / weights.sum()
        assert float(beta.tokens_per_round_over_prompts(lookahead)) == pytest.approx(
            1 / inverse, rel=1e-9
        )


@settings(max_examples=25)
@given(st.floats(0.1, 0.9), st.sampled_from([1, 4, 10]))
def test_every_model_reduces_to_the_geometric_formula(alpha, lookahead):
    with jax.enable_x64(True):
        geometric = float(tokens_per_round(alpha, lookahead))
        narrow = BetaAcceptance(1e7 * alpha, 1e7 * (1 - alpha))
        assert float(narrow.tokens_per_round_over_rounds(lookahead)) == pytest.approx(
            geometric, rel=1e-5
        )
        assert float(narrow.tokens_per_round_over_prompts(lookahead)) == pytest.approx(
            geometric, rel=1e-5
        )
        assert float(PersistentAcceptance(alpha, 0.0).tokens_per_round(lookahead)) == pytest.approx(
            geometric
        )
        sample = rounds_over_sample(jnp.full(40, alpha), lookahead)
        assert float(sample.tokens_per_round) == pytest.approx(geometric)
        assert float(
            tokens_per_round_from_survival(alpha ** jnp.arange(1, lookahead + 1))
        ) == pytest.approx(geometric)


def simulate_chain(alpha, rho, lookahead, positions, seed):
    """Survival at the block starts of speculative decoding along a two-state chain, the slow and obvious way."""
    random = np.random.default_rng(seed)
    draws, accepted = random.random(positions), np.empty(positions, bool)
    accepted[0] = draws[0] < alpha
    for t in range(1, positions):
        accepted[t] = draws[t] < (
            alpha + rho * (1 - alpha) if accepted[t - 1] else alpha * (1 - rho)
        )
    survived, rounds, t = np.zeros(lookahead), 0, 0
    while t + lookahead < positions:
        block = accepted[t : t + lookahead]
        kept = lookahead if block.all() else int(np.argmin(block))
        survived[:kept] += 1
        rounds += 1
        t += kept + 1
    return survived / rounds, rounds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "rho", "lookahead"), [(0.7, 0.4, 1), (0.7, 0.4, 8), (0.5, 0.8, 3), (0.8, -0.1, 4)]
)
def test_persistent_chain_against_simulation(alpha, rho, lookahead):
    """Within 5 standard errors of a binomial, widened by (1 + ρ)/(1 − ρ) for the correlation of
    rounds: a false alarm of at most 6e-7 per position, 1e-5 in all."""
    found, rounds = simulate_chain(alpha, rho, lookahead, 300_000, 0)
    expected = np.asarray(PersistentAcceptance(alpha, rho).survival(lookahead))
    error = np.sqrt(expected * (1 - expected) / rounds * max(1.0, (1 + rho) / (1 - rho)))
    np.testing.assert_array_less(np.abs(found - expected), 5 * error)


def test_survival_belongs_to_its_lookahead():
    """In a persistent chain the first draft survives less often at a longer lookahead: fewer starts follow a full block."""
    chain = PersistentAcceptance(0.7, 0.4)
    assert float(chain.survival(1)[0]) == pytest.approx(0.625)
    assert float(chain.survival(8)[0]) == pytest.approx(0.457, abs=1e-3)


def test_recursion_against_every_outcome(x64):
    """All 2^T patterns of acceptance with their probabilities, decoded one by one."""
    a, lookahead = np.random.default_rng(1).uniform(0.1, 0.95, 11), 3
    started, survived = 0.0, np.zeros(lookahead)
    for pattern in itertools.product([False, True], repeat=len(a)):
        chance = np.prod(np.where(pattern, a, 1 - a))
        t = 0
        while t + lookahead <= len(a):
            block = pattern[t : t + lookahead]
            kept = lookahead if all(block) else block.index(False)
            started += chance
            survived[:kept] += chance
            t += kept + 1
    found = rounds_over_sample(jnp.asarray(a), lookahead)
    assert float(found.started) == pytest.approx(started)
    np.testing.assert_allclose(found.survived, survived)
    np.testing.assert_allclose(found.survival, survived / started)


def test_samples_are_pooled_by_adding(x64):
    samples = jnp.asarray(np.random.default_rng(2).uniform(0.1, 0.95, (5, 30)))
    rows = jax.vmap(lambda a: rounds_over_sample(a, 4))(samples)
    pooled = jax.tree.map(lambda x: x.sum(0), rows)
    assert float(pooled.tokens_per_round) == pytest.approx(
        float((rows.tokens_per_round * rows.started).sum() / rows.started.sum())
    )


def decode_markov(transition, heads, first, lookahead, length):
    """Expected rounds of speculative decoding of a Markov chain, by every course that it can take.

    Draft k comes from row c of heads[k − 1], where c is the last token before the round, whatever was
    drafted meanwhile: a head that gives all drafts at once.
    """
    V = len(transition)
    states = np.zeros((length + 1, V))
    states[0, first] = 1.0
    started, survived = 0.0, np.zeros(lookahead)
    for t in range(length - lookahead + 1):
        for c in range(V):
            weight = states[t, c]
            started += weight
            # Probability of each last kept token, as drafts are kept one after another.
            kept = np.eye(V)[c] * weight
            for k in range(lookahead):
                q, p = heads[k][c], transition
                accepted = kept @ np.minimum(p, q[None])
                survived[k] += accepted.sum()
                # After a rejection the residual is drawn: in all, p less what was accepted.
                following = kept @ np.maximum(p - q[None], 0)
                if t + k + 1 <= length:
                    states[t + k + 1] += following
                kept = accepted
            if t + lookahead + 1 <= length:
                states[t + lookahead + 1] += kept @ transition
    return started, survived


def test_a_head_whose_q_depends_on_the_drafts_number(x64):
    """The target is a Markov chain P; a head that gives all drafts at once guesses draft k by a row of P^k.

    Every sample of the target with its probability gives the rounds that the decoder has in expectation.
    """
    P = np.asarray([[0.7, 0.2, 0.1], [0.25, 0.6, 0.15], [0.05, 0.35, 0.6]])
    lookahead, length, first = 3, 7, 1
    heads = [np.linalg.matrix_power(P, k) for k in range(1, lookahead + 1)]
    started, survived = decode_markov(P, heads, first, lookahead, length)

    samples = np.asarray([*itertools.product(range(3), repeat=length)])
    path = np.concatenate([np.full((len(samples), 1), first), samples], axis=1)
    p = P[path[:, :-1], path[:, 1:]]
    acceptance = np.ones((len(samples), length, lookahead))
    for k in range(lookahead):
        # Draft k + 1 of position t was drawn from what stood k tokens before the last.
        acceptance[:, k:, k] = np.minimum(
            1, heads[k][path[:, : length - k], path[:, k + 1 :]] / p[:, k:]
        )
    rounds = jax.vmap(lambda a: rounds_over_sample(a, lookahead))(jnp.asarray(acceptance))
    weight = p.prod(axis=1)
    assert float(weight @ rounds.started) == pytest.approx(started)
    np.testing.assert_allclose(weight @ np.asarray(rounds.survived), survived)
    # The first draft is the target itself; the later ones know less and less.
    conditional = survived / np.concatenate([[started], survived[:-1]])
    assert conditional[0] == pytest.approx(1.0)
    assert conditional[0] > conditional[1] > conditional[2]
    # That row is what cross-entropy asks for. For acceptance another is better: q maximises
    # Σ_x P[c, x] Σ_v min(P[x, v], q_v), a linear programme in q and the minima.
    better = heads[1].copy()
    for c in range(3):
        eye = np.eye(9)
        programme = linprog(
            np.concatenate([np.zeros(3), -np.repeat(P[c], 3)]),
            A_ub=np.vstack(
                [
                    np.hstack([np.zeros((9, 3)), eye]),
                    np.hstack([-np.tile(np.eye(3), (3, 1)), eye]),
                ]
            ),
            b_ub=np.concatenate([P.ravel(), np.zeros(9)]),
            A_eq=np.concatenate([np.ones(3), np.zeros(9)])[None],
            b_eq=[1.0],
        )
        better[c] = programme.x[:3]
    others = decode_markov(P, [heads[0], better, heads[2]], first, lookahead, length)
    assert others[1][1] / others[0] > survived[1] / started + 0.003


def test_one_acceptance_for_all_drafts_is_the_same_for_each(x64):
    a = jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.95, 20))
    one, other = rounds_over_sample(a, 4), rounds_over_sample(jnp.tile(a[:, None], (1, 6)), 4)
    np.testing.assert_array_equal(one.survived, other.survived)
    assert float(one.started) == float(other.started)
    with pytest.raises(ValueError, match="given for 3 drafts of a round; the lookahead is 4"):
        rounds_over_sample(jnp.ones((20, 3)), 4)


def test_models_are_differentiable(x64):
    gradient = jax.grad(lambda b: BetaAcceptance(b[0], b[1]).tokens_per_round_over_prompts(5))(
        jnp.array([6.0, 3.0])
    )
    h = 1e-5
    difference = [
        float(
            BetaAcceptance(6 + h * i, 3 + h * j).tokens_per_round_over_prompts(5)
            - BetaAcceptance(6 - h * i, 3 - h * j).tokens_per_round_over_prompts(5)
        )
        / (2 * h)
        for i, j in ((1, 0), (0, 1))
    ]
    np.testing.assert_allclose(gradient, difference, rtol=1e-6)


@pytest.mark.parametrize("lookahead", [0, -2])
def test_lookahead_is_checked(lookahead):
    with pytest.raises(ValueError, match="at least 1"):
        BetaAcceptance(2.0, 1.0).survival(lookahead)
    with pytest.raises(ValueError, match="at least 1"):
        rounds_over_sample(jnp.ones(5), lookahead)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="must be positive"):
        BetaAcceptance(0.0, 1.0).survival(3)
    for alpha, rho in ((0.7, 1.0), (1.5, 0.2), (0.3, -0.9)):
        with pytest.raises(ValueError, match="makes no chain"):
            PersistentAcceptance(alpha, rho).survival(3)
    with pytest.raises(ValueError, match="must be probabilities"):
        rounds_over_sample(np.array([0.5, 1.2, 0.1]), 2)


def test_lookahead_longer_than_the_sample():
    with pytest.raises(ValueError, match="holds only 3 tokens"):
        rounds_over_sample(jnp.ones(3), 4)
