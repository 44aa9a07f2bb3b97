import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsl_jax.errors import SdslError
from sdsl_jax.theory import (
    PersistentAcceptance,
    PositionAcceptance,
    best_whole_lookahead,
    mixed_tokens_per_round,
    optimal_lookahead,
    round_shares,
    tokens_per_round,
    tokens_per_round_between,
)

SHARES = st.floats(0.02, 0.98)
# One program for all examples of a lookahead, instead of one for each operation.
tokens_by_position = jax.jit(PositionAcceptance.tokens_per_round, static_argnums=1)
between_jitted = jax.jit(tokens_per_round_between)


@settings(max_examples=25)
@given(SHARES, SHARES, st.sampled_from([1, 4, 11]))
def test_no_decay_or_no_drop_is_the_geometric_formula(first, other, lookahead):
    """A decay of 0, whatever the floor, and a floor equal to first, whatever the decay."""
    with jax.enable_x64(True):
        geometric = float(tokens_per_round(first, lookahead))
        for law in (PositionAcceptance(first, 0.0, other), PositionAcceptance(first, other, first)):
            found = tokens_by_position(law, lookahead)
            assert float(found) == pytest.approx(geometric, rel=1e-13)


def test_positions_one_by_one(x64):
    """A head that falls as a published one does, and a draft that rises, by plain arithmetic."""
    for first, decay, floor in ((0.92, 0.3, 0.35), (0.53, 0.4, 0.74), (0.9, 1.0, 0.5)):
        expected, survival, alphas = 1.0, 1.0, []
        for k in range(6):
            alphas.append(floor + (first - floor) * (1 - decay) ** k)
            survival *= alphas[-1]
            expected += survival
        law = PositionAcceptance(first, decay, floor)
        np.testing.assert_allclose(law.acceptance(6), alphas, rtol=1e-14)
        assert float(law.tokens_per_round(6)) == pytest.approx(expected, rel=1e-14)
    assert float(PositionAcceptance(0.9, 0.2, 0.5).tokens_per_round(0)) == 1


def test_a_decay_of_one_is_a_persistent_chain(x64):
    """Both have one acceptance for the first draft and another for all others."""
    chain = PersistentAcceptance(0.7, 0.3).survival(5)
    law = PositionAcceptance(chain[0], 1.0, chain[1] / chain[0])
    np.testing.assert_allclose(law.survival(5), chain, rtol=1e-13)


def test_gradients_against_finite_differences(x64):
    """Of τ, and of the speed-up at the best whole γ, in all three coefficients and both costs, of a law
    that falls and of one that rises: all steps in one program."""
    numbers = jnp.asarray([[0.85, 0.35, 0.6, 0.08, 1.1], [0.5, 0.2, 0.8, 0.08, 1.1]])

    def values(x):
        law = PositionAcceptance(*x[:3])
        between = tokens_per_round_between(law.survival(8), 4.3)
        return jnp.stack([law.tokens_per_round(7), law.optimum(x[3], x[4], 12).speedup, between])

    def both(x):
        found, back = jax.vjp(values, x)
        return found, jax.vmap(back)(jnp.eye(3))[0]

    step = 1e-6
    steps = step * jnp.concatenate([jnp.zeros((1, 5)), jnp.eye(5), -jnp.eye(5)])
    found, gradient = jax.jit(jax.vmap(jax.vmap(both)))(numbers[:, None] + steps[None])
    slopes = (found[:, 1:6] - found[:, 6:]) / (2 * step)
    np.testing.assert_allclose(gradient[:, 0], slopes.swapaxes(1, 2), atol=1e-7)


def test_gradients_at_the_ends_are_finite(x64):
    slopes_of = jax.jit(jax.grad(lambda law: law.tokens_per_round(6)))
    for law in (PositionAcceptance(0.8, 0.0, 0.5), PositionAcceptance(0.8, 1.0, 0.5)):
        slopes = slopes_of(law)
        assert all(np.isfinite(float(slope)) for slope in slopes)


@settings(max_examples=25)
@given(SHARES, st.floats(0.0, 1.0), SHARES, st.floats(0.005, 0.6), st.floats(1.0, 1.6))
def test_the_best_lookahead_is_that_of_trying_all(first, decay, floor, step, verify):
    with jax.enable_x64(True):
        law = PositionAcceptance(first, decay, floor)
        found = law.optimum(step, verify, 16)
        speeds = [1.0]
        for gamma in range(1, 17):
            alphas = [floor + (first - floor) * (1 - decay) ** k for k in range(gamma)]
            speeds.append((1 + np.cumprod(alphas).sum()) / (gamma * step + verify))
        assert float(found.speedup) == pytest.approx(max(speeds), rel=1e-12)
        assert speeds[int(found.lookahead)] == pytest.approx(max(speeds), rel=1e-12)
        assert bool(found.speculate) == (max(speeds) > 1)


def test_without_decay_the_best_lookahead_is_the_closed_form(x64):
    for alpha, cost in ((0.8, 0.05), (0.6, 0.2), (0.3, 0.4)):
        closed = optimal_lookahead(alpha, cost)
        found = PositionAcceptance(alpha, 0.0, 0.1).optimum(cost)
        assert int(found.lookahead) == int(closed.lookahead_integer)
        assert float(found.speedup) == pytest.approx(float(closed.speedup_integer), rel=1e-12)


def test_a_cell_of_a_schedule_each(x64):
    """Costs of many loads at once: where a verify pass is dear, drafting is off."""
    survival = jnp.asarray([0.8, 0.6, 0.4])
    costs = jnp.asarray([[1.1, 1.2, 1.3], [1.6, 2.2, 2.8], [2.0, 3.0, 4.0]])
    found = best_whole_lookahead(jnp.broadcast_to(survival, costs.shape), costs)
    assert found.lookahead.tolist() == [3, 1, 0]
    np.testing.assert_allclose(found.speedup, [2.8 / 1.3, 1.8 / 1.6, 1.0])


def test_between_whole_lookaheads(x64):
    """Exact at whole γ, continuous across them, and the geometric formula itself where all α are equal."""
    survival = PositionAcceptance(0.85, 0.4, 0.5).survival(6)
    whole = [float(between_jitted(survival, float(g))) for g in range(7)]
    np.testing.assert_allclose(whole, 1 + np.r_[0, np.cumsum(survival)], rtol=1e-14)
    for g in range(1, 6):
        sides = [float(between_jitted(survival, g + d)) for d in (-1e-9, 1e-9)]
        assert sides[0] == pytest.approx(sides[1], abs=1e-8)
    equal = 0.7 ** jnp.arange(1, 7)
    for gamma in (0.4, 3.0, 5.7):
        assert float(between_jitted(equal, gamma)) == pytest.approx(
            float(tokens_per_round(0.7, gamma)), rel=1e-13
        )


def test_a_mix_of_domains_is_weighed_in_rounds(x64):
    """Tokens over rounds, counted: 6,000 tokens of code at 3 a round, 2,000 of chat at 2."""
    rounds = np.asarray([6000 / 3, 2000 / 2])
    taus, shares = np.asarray([3.0, 2.0]), np.asarray([0.75, 0.25])
    assert float(mixed_tokens_per_round(taus, shares)) == pytest.approx(8000 / rounds.sum())
    np.testing.assert_allclose(round_shares(taus, shares), rounds / rounds.sum())
    by_rounds = float((round_shares(taus, shares) * taus).sum())
    assert by_rounds == pytest.approx(float(mixed_tokens_per_round(taus, shares)))
    assert float(mixed_tokens_per_round(taus, shares)) < float(shares @ taus)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PositionAcceptance(1.2, 0.1, 0.5).survival(3), "the acceptance of the first draft is 1.2"),
        (lambda: PositionAcceptance(0.8, -0.1, 0.5).survival(3), "the decay of acceptance"),
        (lambda: PositionAcceptance(0.8, 0.1, 0.5).survival(0), "it must be at least 1"),
        (lambda: tokens_per_round_between(jnp.ones(3), 3.5), "survival is given for 0 to 3 drafts"),
        (lambda: mixed_tokens_per_round(np.ones(2), np.asarray([0.5, 0.6])), "sum to 1"),
        (lambda: mixed_tokens_per_round(np.ones(2), np.ones(3) / 3), "one share for each domain"),
        (lambda: mixed_tokens_per_round(np.asarray([0.5]), np.ones(1)), "none can be below 1"),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(SdslError, match=message):
        call()
