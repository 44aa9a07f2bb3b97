import math

import numpy as np
import pytest
import scipy.stats
from evidence_records import chain_study, exact, records

from sdsl_jax.evidence.estimators import estimators


@pytest.mark.slow
def test_differences_and_their_noise():
    """A decoder simulated by normal noise of a known standard error around the recursion."""
    study = chain_study(seed=2, persistence=0.3, alphas=tuple(np.linspace(0.4, 0.8, 12)))
    random = np.random.default_rng(0)
    decoded = []
    for row in study.expected:
        if row.lookahead == 4:
            error = (row.accepted_per_test_high - row.accepted_per_test_low) / 2
            alpha = (
                row.accepted_per_test + random.normal() * error / 1.67
            )  # t of 63 degrees of freedom at 95%
            ends = {"alpha_low": alpha - error, "alpha_high": alpha + error}
            decoded.append(
                exact(
                    row.draft_id,
                    row.target_id,
                    alpha,
                    estimator="decoded_per_test",
                    lookahead=4,
                    **ends,
                )
            )
    text = [
        exact(r.draft_id, r.target_id, r.alpha + 0.02, estimator="teacher_forced_text")
        for r in study.acceptance
    ]
    found = estimators(study.replaced(acceptance=[*study.acceptance, *decoded, *text]))
    rows = {(row.first, row.second, row.lookahead): row for row in found.differences}
    assert rows[
        "teacher_forced_text", "teacher_forced_samples", 0
    ].difference.estimate == pytest.approx(0.02)
    # Hard positions are tested more often than they occur, most of all at γ = 1.
    shortfall = [
        rows["expected_per_test", "teacher_forced_samples", g].difference.estimate
        for g in (1, 4, 12)
    ]
    assert shortfall[0] < shortfall[1] < shortfall[2] < 0.01
    assert rows["expected_per_test", "teacher_forced_samples", 1].difference.high < 0
    noise = rows["decoded_per_test", "expected_per_test", 4]
    # The recursion's own noise is in both, so z has half the variance: Σ2z² of 12 exceeds 33 once
    # in a thousand.
    assert noise.z_rms**2 * 2 * 12 < 33
    assert noise.difference.low < 0 < noise.difference.high


def test_self_checks_of_a_right_and_of_a_wrong_decoder():
    """Each p-value of a right decoder is below 0.001 once in a thousand seeds."""
    z = np.random.default_rng(5).normal(size=60)
    found = estimators(
        records(
            self_checks={str(i): float(v) for i, v in enumerate(z)} | {"nothing random": math.nan}
        )
    ).self_check
    assert found.n == 60
    assert found.kolmogorov_p == pytest.approx(scipy.stats.kstest(z, "norm").pvalue, abs=0.01)
    upper = scipy.stats.chi2.sf((z**2).sum(), 60)
    assert found.chi_squared_p == pytest.approx(2 * min(upper, 1 - upper), rel=1e-6)
    assert min(found.kolmogorov_p, found.chi_squared_p) > 0.001
    # The first test sees a shift, the second a wrong variance.
    for wrong, test in ((z + 1, "kolmogorov_p"), (1.6 * z, "chi_squared_p")):
        found = estimators(
            records(self_checks={str(i): float(v) for i, v in enumerate(wrong)})
        ).self_check
        assert getattr(found, test) < 1e-3


def test_nothing_is_said_of_nothing():
    assert estimators(records()) is None
    assert estimators(records(self_checks={"a": None})) is None
