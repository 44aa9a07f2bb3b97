import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sdsl_jax.theory import (
    BESIROGLU,
    LogitGap,
    Scenario,
    coefficients,
    draws_from_covariance,
    linear_law,
    optima_of_draws,
    point_and_draws,
    sensitivities,
)

SCENARIO = Scenario(30e9, 180e9, 180e9, BESIROGLU, LogitGap(1.0, 1.5))


def covariances(scale=1.0):
    """Small errors, A and a as correlated as in a fit."""
    errors = np.array([0.002, 6.0, 20.0, 0.0008, 0.0005]) * scale
    correlation = np.eye(5)
    correlation[1, 3] = correlation[3, 1] = 0.95
    correlation[2, 4] = correlation[4, 2] = 0.95
    return correlation * np.outer(errors, errors), np.diag([0.01, 0.02]) ** 2 * scale**2


def test_draws_have_the_covariance_asked_for(x64):
    """200,000 draws: means within 5 standard errors, covariances within 2%."""
    wanted, _ = covariances()
    draws = draws_from_covariance(BESIROGLU, wanted, 200_000, jax.random.key(0))
    table = np.stack(jax.tree.leaves(draws))
    misses = (table.mean(1) - jax.tree.leaves(BESIROGLU)) / np.sqrt(np.diag(wanted) / 200_000)
    assert np.abs(misses).max() < 5
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    np.testing.assert_allclose(np.cov(table) / scale, wanted / scale, atol=0.02)
    assert draws.about == BESIROGLU.about


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match="has 5 coefficients"):
        draws_from_covariance(BESIROGLU, np.eye(3), 10, jax.random.key(0))
    with pytest.raises(ValueError, match="semi-definite"):
        draws_from_covariance(
            LogitGap(1.0, 1.0), np.array([[1.0, 2.0], [2.0, 1.0]]), 10, jax.random.key(0)
        )


def delta_method(loss_covariance, acceptance_covariance):
    """First-order standard errors √(gᵀΣg) of ln N*, γ* and ln S*, g the sensitivities."""

    def variance(law, covariance):
        g = jnp.stack(list(coefficients(law).values()))
        return g @ jnp.asarray(covariance) @ g

    return [
        float(
            jnp.sqrt(
                variance(row.loss_law, loss_covariance)
                + variance(row.acceptance_law, acceptance_covariance)
            )
        )
        for row in sensitivities(SCENARIO)
    ]


@pytest.mark.release
def test_draws_and_the_delta_method_agree_for_small_errors(x64):
    """Standard deviations over 4,000 draws against first-order errors: equal within 6%, four standard errors of a deviation."""
    wanted, wanted_acceptance = covariances(0.3)
    keys = jax.random.split(jax.random.key(1))
    found = optima_of_draws(
        SCENARIO,
        draws_from_covariance(BESIROGLU, wanted, 4000, keys[0]),
        draws_from_covariance(LogitGap(1.0, 1.5), wanted_acceptance, 4000, keys[1]),
    )
    first_order = delta_method(wanted, wanted_acceptance)
    for values, error in zip(
        (np.log(found.params), found.lookahead, np.log(found.speedup)), first_order, strict=True
    ):
        assert np.std(values) == pytest.approx(error, rel=0.06)


@pytest.mark.slow
def test_marginal_errors_are_not_a_covariance(x64):
    """The very reason why `sdsl predict` gives no interval for laws with published standard errors only."""
    wanted, wanted_acceptance = covariances()
    honest = delta_method(wanted, wanted_acceptance)[0]
    pretended = delta_method(np.diag(np.diag(wanted)), wanted_acceptance)[0]
    assert abs(pretended / honest - 1) > 0.2


def test_linear_law_against_scipy(x64):
    m = np.array([13.0, 30, 66, 70, 110]) * 1e9
    n = 2.7e-3 * m + 8.7e7 + np.array([1.0, -2, 3, 0, -1]) * 1e7
    found, theirs = linear_law(m, n), scipy.stats.linregress(m, n)
    np.testing.assert_allclose(
        [found.slope, found.intercept, found.slope_error, found.intercept_error, found.r_squared],
        [theirs.slope, theirs.intercept, theirs.stderr, theirs.intercept_stderr, theirs.rvalue**2],
        rtol=1e-9,
    )


def test_the_fitted_law_stands_before_its_draws(x64):
    draws = LogitGap(np.array([2.0, 3.0]), np.array([5.0, 6.0]))
    stacked = point_and_draws(LogitGap(1.0, 4.0), draws)
    assert stacked.level.tolist() == [1.0, 2.0, 3.0]
    assert stacked.slope.tolist() == [4.0, 5.0, 6.0]
    assert point_and_draws(LogitGap(1.0, 4.0), draws, most=1).slope.tolist() == [4.0, 5.0]


def test_coefficients_are_in_the_order_of_the_constructor():
    assert list(coefficients(BESIROGLU)) == ["E", "A", "B", "a", "b"]
