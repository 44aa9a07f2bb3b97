import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from sdsl_jax.theory import (
    acceptance_from_tokens_per_round,
    best_log_speedup,
    optimal_lookahead,
    speedup,
    tokens_per_round,
)

# The whole domain, evenly in logit α and in log cost; costs above 1 too, where nothing pays.
ALPHA = st.floats(-13.8, 13.8).map(lambda x: 1 / (1 + math.exp(-x)))
COST = st.floats(-13.8, 0.7).map(math.exp)
VERIFY = st.floats(1.0, 3.0)


@given(ALPHA, st.integers(0, 40))
def test_tokens_per_round_is_the_geometric_sum(alpha, lookahead):
    with jax.enable_x64(True):
        assert float(tokens_per_round(alpha, lookahead)) == pytest.approx(
            sum(alpha**i for i in range(lookahead + 1)), rel=1e-12
        )


def test_tokens_per_round_at_the_ends_of_its_domain():
    assert float(tokens_per_round(0.0, 5)) == 1.0
    assert float(tokens_per_round(-0.3, 5)) == 1.0
    assert float(tokens_per_round(1.0, 5)) == 6.0


@given(ALPHA, st.floats(0.5, 30))
def test_inversion_returns_the_acceptance(alpha, lookahead):
    with jax.enable_x64(True):
        tau = tokens_per_round(alpha, lookahead)
        assert float(acceptance_from_tokens_per_round(tau, lookahead)) == pytest.approx(
            alpha, rel=1e-9
        )


def test_inversion_is_differentiable_and_takes_arrays(x64):
    check_grads(
        acceptance_from_tokens_per_round, (2.0, 3.0), order=1, modes=("fwd", "rev"), rtol=1e-6
    )
    both = acceptance_from_tokens_per_round(np.array([2, 3]), np.array([5, 7]))
    np.testing.assert_allclose(tokens_per_round(both, np.array([5.0, 7.0])), [2, 3], rtol=1e-12)


def test_inversion_saturates():
    assert float(acceptance_from_tokens_per_round(1.0, 4)) == 0.0
    assert float(acceptance_from_tokens_per_round(5.0, 4)) == 1.0


@given(ALPHA, COST)
def test_closed_form_equals_brute_force(alpha, cost):
    """No point of a fine grid beats the closed form, and the best of them is near it."""
    with jax.enable_x64(True):
        found = optimal_lookahead(alpha, cost)
        grid = np.concatenate([[0.0], np.geomspace(1e-6, 1e8, 40_001)])
        values = np.asarray(speedup(alpha, grid, cost))
        assert float(found.speedup) >= values.max() * (1 - 1e-13)
        assert float(found.speedup) == pytest.approx(values.max(), rel=1e-5)
        assert float(speedup(alpha, found.lookahead, cost)) == pytest.approx(
            float(found.speedup), rel=1e-12
        )


@given(ALPHA, COST)
def test_closed_form_equals_the_papers_lambert_form(alpha, cost):
    """γ* = [1 + W₋₁(−α^(1/c − 1)/e)]/ln α − 1/c, where its argument has not underflowed."""
    k = -np.log(alpha)
    argument = -(alpha ** (1 / cost - 1)) / np.e
    if not alpha * k / (1 - alpha) > cost * (1 + 1e-9) or abs(argument) < 1e-280:
        return
    paper = (1 + scipy.special.lambertw(argument, -1).real) / np.log(alpha) - 1 / cost
    with jax.enable_x64(True):
        # Near the branch point the paper's form loses half the digits: 1e-7 there, 1e-9 elsewhere.
        assert float(optimal_lookahead(alpha, cost).lookahead) == pytest.approx(
            paper, rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize(
    ("dtype", "lookahead_bound", "speedup_bound"),
    [(np.float32, 1e-5, 1e-6), (np.float64, 1e-13, 1e-13)],
)
def test_accuracy_against_fifty_digits(dtype, lookahead_bound, speedup_bound):
    random = np.random.default_rng(0)
    alpha = (1 / (1 + np.exp(-random.uniform(-13.8, 13.8, 400)))).astype(dtype)
    cost = (1 / np.exp(random.uniform(np.log(1.01), np.log(1e6), 400))).astype(dtype)
    with jax.enable_x64(dtype is np.float64), mpmath.workdps(50):
        found = optimal_lookahead(alpha, cost)
        for a, c, gamma, best in zip(
            alpha, cost, np.asarray(found.lookahead), np.asarray(found.speedup)
        ):
            a, c = mpmath.mpf(float(a)), mpmath.mpf(float(c))
            k, exact_gamma, exact_best = -mpmath.log(a), mpmath.mpf(0), mpmath.mpf(1)
            if a * k / (1 - a) > c:
                level = 1 + (1 / c - 1) * k
                start = (
                    level + mpmath.log(level) + 1e-9
                    if level > 2
                    else 1 + mpmath.sqrt(2 * (level - 1)) + 2 * (level - 1) / 3
                )
                z = mpmath.findroot(lambda z, level=level: z - mpmath.log(z) - level, start)
                exact_gamma, exact_best = mpmath.log(z) / k - 1, k / (c * (1 - a) * z)
            assert abs(float(gamma) - exact_gamma) <= lookahead_bound * (1 + exact_gamma)
            assert abs(float(best) / exact_best - 1) <= speedup_bound


@pytest.mark.slow
def test_derivatives_of_the_optimum(x64):
    """First and second derivatives against finite differences (good to 1e-3 at second order) where speculation pays."""
    for alpha, cost in ((0.7, 0.05), (0.9, 0.01), (0.4, 0.2), (0.65, 0.003)):
        check_grads(
            lambda a, c: optimal_lookahead(a, c).lookahead,
            (alpha, cost),
            order=2,
            modes=("fwd", "rev"),
            rtol=1e-3,
        )
        check_grads(
            lambda a, c: optimal_lookahead(a, c).speedup,
            (alpha, cost),
            order=2,
            modes=("fwd", "rev"),
            rtol=1e-3,
        )


def test_gradients_are_finite_everywhere():
    """The plateau γ* = 0, the boundary and the extreme corners included."""
    gradient = jax.grad(lambda x: sum(optimal_lookahead(x[0], x[1], x[2])))
    for alpha in (-0.5, 0.0, 1e-6, 0.3, 0.7, 1 - 1e-6):
        for cost in (1e-6, 0.01, 0.516, 1.0, 3.0):
            for verify in (1.0, 1.1, 2.0):
                assert np.isfinite(gradient(jnp.array([alpha, cost, verify]))).all(), (
                    alpha,
                    cost,
                    verify,
                )


def outcome(*arguments) -> tuple[float, float]:
    found = optimal_lookahead(*arguments)
    return float(found.lookahead), float(found.speedup)


def test_when_speculation_does_not_pay():
    assert outcome(0.3, 0.52) == (0.0, 1.0)
    assert outcome(0.3, 0.51)[0] > 0
    assert outcome(-0.1, 0.01) == (0.0, 1.0)
    assert outcome(0.0, 0.01) == (0.0, 1.0)
    # A verify pass of two target steps eats up what a draft this poor saves.
    assert outcome(0.4, 0.1, 2.0) == (0.0, 1.0)


@given(ALPHA, st.floats(1e-3, 0.5), st.floats(1.0, 1.5))
def test_verify_cost_scales_the_problem(alpha, draft, verify):
    """S(d, v) = S(d/v, 1)/v with the same γ*, unless plain decoding is then better."""
    with jax.enable_x64(True):
        scaled, plain = outcome(alpha, draft, verify), outcome(alpha, draft / verify)
        if plain[1] / verify > 1:
            assert scaled == pytest.approx((plain[0], plain[1] / verify))
        else:
            assert scaled == (0.0, 1.0)


@given(st.floats(0.01, 0.99), st.floats(1e-4, 2.0), VERIFY)
def test_whole_lookahead_equals_brute_force(alpha, draft, verify):
    """The best whole γ from 1 on is found among all; it is used exactly if it beats plain decoding."""
    with jax.enable_x64(True):
        found = optimal_lookahead(alpha, draft, verify)
        values = np.asarray(speedup(alpha, np.arange(1, 4001), draft, verify))
        assert float(found.speedup_integer) == pytest.approx(max(values.max(), 1.0), rel=1e-12)
        if abs(values.max() - 1) > 1e-14:  # at a tie rounding decides
            assert bool(found.speculate) == (values.max() > 1)
        assert float(found.speedup) >= float(found.speedup_integer) * (1 - 1e-14)
        if bool(found.speculate):
            whole = int(found.lookahead_integer)
            assert float(speedup(alpha, whole, draft, verify)) == pytest.approx(
                values.max(), rel=1e-12
            )
        else:
            assert float(found.lookahead_integer) == 0


def test_to_speculate_is_the_condition_of_a_whole_lookahead():
    """At α = 0.3 a real γ > 0 pays up to c = 0.516, a whole one up to c = 0.30 (paper.md, section 2: α > c)."""
    between = optimal_lookahead(0.3, 0.4)
    assert float(between.lookahead) > 0
    assert float(between.speedup) > 1
    assert not bool(between.speculate)
    assert bool(optimal_lookahead(0.3, 0.2999).speculate)
    assert not bool(optimal_lookahead(0.3, 0.3001).speculate)


@given(ALPHA, COST, VERIFY, st.floats(1.0001, 1.5))
def test_the_best_speedup_falls_with_cost_and_rises_with_acceptance(alpha, draft, verify, factor):
    with jax.enable_x64(True):
        best = float(optimal_lookahead(alpha, draft, verify).speedup)
        assert float(optimal_lookahead(alpha, draft * factor, verify).speedup) <= best * (1 + 1e-14)
        assert float(
            optimal_lookahead(min(alpha * factor, (alpha + 1) / 2), draft, verify).speedup
        ) >= best * (1 - 1e-14)


@given(ALPHA, COST, st.floats(0, 17).map(math.expm1))
def test_no_lookahead_beats_the_best(alpha, draft, lookahead):
    with jax.enable_x64(True):
        assert float(speedup(alpha, lookahead, draft)) <= float(
            optimal_lookahead(alpha, draft).speedup
        ) * (1 + 1e-13)


@given(st.floats(-0.5, 0.9999), COST, VERIFY)
def test_what_a_search_climbs_is_the_best_speedup_where_it_pays(alpha, draft, verify):
    """Elsewhere it is at most −ln v, and never flat in the acceptance."""
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(best_log_speedup)(alpha, draft, verify)
        plain = float(optimal_lookahead(alpha, draft / verify).speedup)
        if plain > 1:
            assert float(value) == pytest.approx(np.log(plain / verify), abs=1e-13)
        else:
            assert float(value) <= -np.log(verify) + 1e-13
            assert float(slope) > 0


def test_single_precision_over_the_whole_domain():
    """100,000 points with α from 1e-6 to 1 − 1e-6 and 1/c from 1.01 to 1e6, a quarter of them at
    the edge of paying.

    Against float64, which the test above holds to 50 digits: γ* to 1e-5·(1 + γ*), S* and its
    whole-lookahead form to 1e-6, the verdict everywhere, and gradients to 1e-5 where γ* > 0.1
    (nearer to the edge they vanish, and only their size is known).
    """
    random, count = np.random.default_rng(0), 100_000
    alpha = (1 / (1 + np.exp(-random.uniform(-13.8, 13.8, count)))).astype(np.float32)
    cost = 1 / np.exp(random.uniform(np.log(1.01), np.log(1e6), count))
    edge = (
        -np.log(alpha.astype(float))
        * alpha
        / (1 - alpha.astype(float))
        * (1 + 1e-6 * random.normal(size=count))
    )
    at_edge = (np.arange(count) < count // 4) & (edge < 1 / 1.01) & (edge > 1e-6)
    cost = np.where(at_edge, edge, cost).astype(np.float32)

    def gradients(alpha, cost):
        both = (
            jax.grad(lambda a, c: optimal_lookahead(a, c).speedup, (0, 1)),
            jax.grad(lambda a, c: optimal_lookahead(a, c).lookahead, (0, 1)),
        )
        return [np.asarray(g) for f in both for g in jax.jit(jax.vmap(f))(alpha, cost)]

    single, slopes = optimal_lookahead(alpha, cost), gradients(alpha, cost)
    with jax.enable_x64(True):
        inputs = alpha.astype(np.float64), cost.astype(np.float64)
        double, true_slopes = optimal_lookahead(*inputs), gradients(*inputs)
    gamma = np.asarray(double.lookahead)
    np.testing.assert_array_less(np.abs(np.asarray(single.lookahead) - gamma), 1e-5 * (1 + gamma))
    np.testing.assert_allclose(single.speedup, double.speedup, rtol=1e-6)
    np.testing.assert_allclose(single.speedup_integer, double.speedup_integer, rtol=1e-6)
    np.testing.assert_array_equal(single.speculate, double.speculate)
    for found, truth in zip(slopes, true_slopes):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[gamma > 0.1], truth[gamma > 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, 0.1), r"1\.5.*below 1"),
        ((1.0, 0.1), "acceptance is 1; it must be below 1"),
        ((np.nan, 0.1), "not a number"),
        ((0.5, 0.0), "draft step is 0 target steps; it must be positive"),
        ((0.5, 0.1, 0.9), "verify pass is 0.9 target steps; it must be at least 1"),
    ],
)
def test_values_without_an_optimum_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimal_lookahead(*arguments)


def test_certain_acceptance_under_jit_gives_the_limit():
    found = jax.jit(optimal_lookahead)(1.0, 0.1)
    assert np.isinf(found.lookahead)
    assert float(found.speedup) == pytest.approx(10.0)
