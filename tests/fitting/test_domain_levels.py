"""Partially pooled levels, against direct computations of the mixed model."""

import json

import numpy as np
import pytest
import scipy.optimize

from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.acceptance_fits import fit_domains
from sdsl_jax.fitting.domain_levels import (
    LevelTable,
    fit_levels,
    held_out_levels,
    predict_levels,
    variance_shares,
)


def table(counts, spread=0.5, noise=0.2, seed=0, kinds=1):
    """Domains with so many rows each."""
    random = np.random.default_rng(seed)
    labels = [d for d, count in enumerate(counts) for _ in range(count)]
    kind = np.arange(len(labels)) % kinds
    levels = random.normal(0, spread, len(counts))
    logit = 1.0 + 0.4 * kind + levels[labels] + random.normal(0, noise, len(labels))
    columns = [np.ones(len(labels)), *((kind == k).astype(float) for k in range(1, kinds))]
    return LevelTable(logit, np.stack(columns, axis=1), ("level",) * kinds, {"domain": labels})


def test_a_balanced_design_has_a_closed_form():
    """m domains × n rows: σ² = MS within, ω² = (MS between − MS within)/n, and levels shrink by
    nω²/(nω² + σ²) (analysis of variance; REML is the same where ω² is positive)."""
    m, n = 7, 5
    rows = table([n] * m)
    fit, y = fit_levels(rows), rows.logit.reshape(m, n)
    within = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum() / (m * (n - 1))
    between = n * ((y.mean(axis=1) - y.mean()) ** 2).sum() / (m - 1)
    variance = (between - within) / n
    assert fit.residual**2 == pytest.approx(within, rel=1e-4)
    assert fit.spreads["domain"] ** 2 == pytest.approx(variance, rel=1e-4)
    shrunk = n * variance / (n * variance + within) * (y.mean(axis=1) - y.mean())
    np.testing.assert_allclose([*fit.levels["domain"].values()], shrunk, rtol=1e-4)
    # A new domain: its own variance, the residual's, and that of the mean of m domains.
    new = predict_levels(fit, np.ones((1, 1)), {"domain": ["new"]})
    expected = variance + within + (variance + within / n) / m
    assert new.logit[0] == pytest.approx(y.mean())
    assert new.error[0] ** 2 == pytest.approx(expected, rel=1e-3)
    assert new.degrees[0] == m - 1


def direct(rows):
    """REML by its likelihood with dense matrices, and the levels by their conditional expectation."""
    y, x = rows.logit, rows.fixed
    blocks = [
        np.asarray([[v == name for name in dict.fromkeys(labels)] for v in labels], float)
        for labels in rows.factors.values()
    ]

    def dense(logs):
        outer = np.exp(logs[0]) * np.eye(len(y))
        for value, block in zip(logs[1:], blocks):
            outer = outer + np.exp(value) * block @ block.T
        inverse = np.linalg.inv(outer)
        beta = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
        return outer, inverse, beta

    def loss(logs):
        outer, inverse, beta = dense(logs)
        rest = y - x @ beta
        terms = np.linalg.slogdet(outer)[1] + np.linalg.slogdet(x.T @ inverse @ x)[1]
        return terms + rest @ inverse @ rest

    start = np.full(1 + len(blocks), -2.0)
    options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000}
    logs = scipy.optimize.minimize(loss, start, method="Nelder-Mead", options=options).x
    _, inverse, beta = dense(logs)
    levels = [np.exp(v) * b.T @ inverse @ (y - x @ beta) for v, b in zip(logs[1:], blocks)]
    return np.exp(logs / 2), beta, levels


def test_unbalanced_rows_against_the_likelihood():
    """Few rows and many, two kinds of drafter; the dense likelihood is maximised by another optimiser."""
    rows = table([1, 2, 9, 4, 12, 3], kinds=2, seed=3)
    fit = fit_levels(rows)
    spreads, beta, levels = direct(rows)
    np.testing.assert_allclose([fit.residual, fit.spreads["domain"]], spreads, rtol=1e-3)
    np.testing.assert_allclose(fit.fixed, beta, rtol=1e-3)
    np.testing.assert_allclose([*fit.levels["domain"].values()], levels[0], rtol=2e-3, atol=1e-4)


def test_two_crossed_factors_against_the_likelihood():
    rows = table([4] * 6, seed=5)
    targets = [i % 4 for i in range(24)]
    shift = np.asarray([0.3, -0.2, 0.25, -0.3])[targets]
    rows = rows._replace(
        logit=rows.logit + shift, factors={"domain": rows.factors["domain"], "target": targets}
    )
    fit, (spreads, _, levels) = fit_levels(rows), direct(rows)
    found = [fit.residual, fit.spreads["domain"], fit.spreads["target"]]
    np.testing.assert_allclose(found, spreads, rtol=5e-3)
    np.testing.assert_allclose([*fit.levels["target"].values()], levels[1], rtol=5e-3, atol=1e-4)


def test_a_level_of_one_row_shrinks_more_than_one_of_many():
    """Both domains lie as far from the rest; shrinkage is nω²/(nω² + σ²)."""
    rows = table([20, 20, 20, 1, 20], noise=0.4, seed=2)
    fit = fit_levels(rows)
    base = fit.fixed[0]
    ratio = {}
    for d in (3, 4):
        mine = np.asarray(rows.factors["domain"]) == d
        ratio[d] = fit.levels["domain"][d] / (rows.logit[mine].mean() - base)
    for d, n in ((3, 1), (4, 20)):
        own = n * fit.spreads["domain"] ** 2
        assert ratio[d] == pytest.approx(own / (own + fit.residual**2), rel=1e-4)
    assert ratio[3] < ratio[4]


def test_intervals_of_new_domains_hold_as_often_as_they_say():
    """90% intervals of the mean of a ninth domain over 300 tables of 8 × 3: binomial, standard error 1.7%,
    so that ± 5.2% is a false alarm of 0.3%."""
    inside = 0
    for seed in range(300):
        rows = table([3] * 9, seed=seed)
        kept = np.asarray(rows.factors["domain"]) != 8
        fit = fit_levels(rows, kept)
        low, high = predict_levels(fit, np.ones((1, 1)), {"domain": [8]}).interval(0.9)
        inside += low[0] <= rows.logit[-1] <= high[0]
    assert inside / 300 == pytest.approx(0.9, abs=0.052)


def test_what_is_left_out_is_not_seen():
    """Rows of a left-out domain do not move its prediction; those of others do."""
    rows = table([4] * 6)
    groups = rows.factors["domain"]
    before = held_out_levels(rows, groups).prediction.logit
    moved = rows._replace(logit=rows.logit + np.where(np.asarray(groups) == 2, 3.0, 0.0))
    after = held_out_levels(moved, groups).prediction.logit
    np.testing.assert_allclose(before[8:12], after[8:12])
    assert np.abs(before[:8] - after[:8]).min() > 0.1


def test_a_fixed_column_that_says_nothing_has_no_coefficient():
    """Twice the same column, and one of zeros, as where a kind is left out."""
    rows = table([5] * 4, kinds=2)
    twice = np.concatenate([rows.fixed, rows.fixed[:, 1:], np.zeros((20, 1))], axis=1)
    fit, plain = fit_levels(rows._replace(fixed=twice)), fit_levels(rows)
    np.testing.assert_allclose(fit.fixed, [*plain.fixed, 0, 0], rtol=1e-6)
    assert fit.residual == pytest.approx(plain.residual, rel=1e-6)


def test_shares_of_variance_of_a_balanced_design():
    """y = a + b without interaction: shares of each and nothing else."""
    a, b = np.asarray([0.0, 1.0, 2.0]), np.asarray([0.0, 0.5])
    y = (a[:, None] + b).ravel()
    factors = {"a": [0, 0, 1, 1, 2, 2], "b": [0, 1] * 3}
    found = variance_shares(y, factors)
    total = 4 * 1.0 + 6 * 0.0625
    assert found.balanced
    assert found.shares["a"] == pytest.approx(4 / total)
    assert found.shares["rest"] == pytest.approx(0, abs=1e-12)
    assert not variance_shares(y[:5], {f: v[:5] for f, v in factors.items()}).balanced


def test_equal_rows_have_no_variance_to_share():
    """Twice two drafts with the same α: levels of 0, and no shares instead of parts of nothing."""
    rows = [{"alpha": 0.8, "domain": d, "draft": m} for d in ("code", "chat") for m in "ab"]
    fits = fit_domains(rows)
    assert fits.shares.shares == {}
    assert [level.level for level in fits.domains] == pytest.approx([0, 0], abs=1e-6)
    json.dumps(fits.to_json(), allow_nan=False)


@pytest.mark.slow
def test_the_published_design():
    """82% of the variance of logit α in DSpark's table is domain, 14% drafter, 1% target; a target left out
    is predicted to 0.012 in α, and to 0.065 without domains."""
    from paper_figures.published import DOMAINS

    fits = fit_domains(DOMAINS)
    assert fits.shares.balanced
    shares = {name: round(100 * share) for name, share in fits.shares.shares.items()}
    assert shares == {"domain": 82, "method": 14, "target": 1, "rest": 4}
    by_name = {row.left_out: row for row in fits.errors}
    assert by_name["a target"].median < 0.015
    assert by_name["a target"].without > 0.05
    assert by_name["a domain"].width > 0.3


def test_the_logit_plane_with_a_level_for_each_domain():
    """Tables of losses and α: slopes of the plane beside the levels, without noise."""
    rows = [
        {"domain": d, "draft": f"d{loss}", "draft_loss": loss, "target_loss": target,
         "alpha": 1 / (1 + np.exp(-(2.0 + level - 1.5 * loss + 1.2 * target)))}
        for d, level in (("code", 0.6), ("chat", -0.4), ("prose", -0.2))
        for loss in (2.5, 2.8, 3.1)
        for target in (2.0, 2.2)
    ]  # fmt: skip
    fits = fit_domains(rows)
    assert fits.fixed["draft_slope"] == pytest.approx(1.5, abs=1e-2)
    assert fits.fixed["target_slope"] == pytest.approx(1.2, abs=1e-2)
    assert [level.domain for level in fits.domains] == ["code", "prose", "chat"]
    assert fits.domains[0].level - fits.domains[2].level == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"alpha": 0.5}], "has no column domain"),
        ([{"alpha": 0.5, "domain": "a"}] * 4, "of 1 domain; levels of domains need at least 2"),
        ([{"alpha": 0.5, "domain": d} for d in "ab"], "one acceptance for each of its 2 domains"),
        ([{"alpha": 0.5, "domain": d} for d in "aabb"], "one acceptance for each of its 2 domains"),
        (
            [{"alpha": 0.5, "domain": d, "method": m} for d, m in ("aa", "ab", "bc")],
            "need more rows than that",
        ),
    ],
)
def test_tables_without_levels_are_refused(rows, message):
    with pytest.raises(SdslError, match=message):
        fit_domains(rows)
