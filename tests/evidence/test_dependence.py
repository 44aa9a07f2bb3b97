import numpy as np
import pytest
from evidence_records import chain_study, records

from sdsl_jax.evidence.common import holm, student_p_value
from sdsl_jax.evidence.dependence import dependence
from sdsl_jax.fitting import fit_dependence
from sdsl_jax.records import column
from sdsl_jax.theory import BetaAcceptance, PersistentAcceptance

ALPHA = np.asarray([0.4, 0.6, 0.8])


@pytest.mark.slow
def test_persistence_is_recovered_exactly(x64):
    rho = np.asarray([-0.2, 0.1, 0.3])
    tau = [
        [float(PersistentAcceptance(a, r).tokens_per_round(g)) for g in (1, 4)]
        for a, r in zip(ALPHA, rho)
    ]
    found = fit_dependence(ALPHA, np.asarray(tau), (1, 4), (8,))["persistent"]
    np.testing.assert_allclose(found.parameter, rho, atol=1e-6)
    wanted = [float(PersistentAcceptance(a, r).tokens_per_round(8)) for a, r in zip(ALPHA, rho)]
    np.testing.assert_allclose(found.tokens_per_round[:, 0], wanted, rtol=1e-7)


@pytest.mark.slow
def test_concentration_is_recovered_exactly(x64):
    concentration = np.asarray([3.0, 10.0, 40.0])
    betas = [BetaAcceptance(a * c, (1 - a) * c) for a, c in zip(ALPHA, concentration)]
    tau = [[float(beta.tokens_per_round_over_prompts(g)) for g in (1, 4)] for beta in betas]
    found = fit_dependence(ALPHA, np.asarray(tau), (1, 4), (12,))["beta"]
    np.testing.assert_allclose(found.parameter, concentration, rtol=1e-5)
    wanted = [float(beta.tokens_per_round_over_prompts(12)) for beta in betas]
    np.testing.assert_allclose(found.tokens_per_round[:, 0], wanted, rtol=1e-7)


@pytest.mark.release
def test_a_chain_is_told_from_independence():
    """ρ = 0.3 in 64 samples of 96: its standard error is about 0.03 a pair, and the mean of 4 is held to 4 of its own."""
    found = dependence(chain_study(seed=1, persistence=0.3))
    assert found.models["persistent"].parameter.estimate == pytest.approx(0.3, abs=0.06)
    assert found.constancy.rejected == found.constancy.n == 4
    assert found.constancy.mean_change.low > 0  # the deficit of τ is largest at small γ
    assert found.verdict.least_error == "persistent"
    assert found.verdict.better_than_geometric
    assert found.models["geometric"].mean_error.low > 0
    (survival,) = found.survival
    # S₁ = α/(1 + ρ(1 − α)), at α from 0.45 to 0.75.
    assert survival.ratio.estimate == pytest.approx(
        np.mean(1 / (1 + 0.3 * (1 - np.asarray([0.45, 0.55, 0.65, 0.75])))), abs=0.02
    )
    for row in found.pairs:
        assert row.regret["geometric"] >= 0
        assert row.lookahead_measured >= 1


@pytest.mark.release
def test_independence_is_not_rejected():
    """Holm keeps the chance of any false rejection at 5% a study: 3 or more of 10 studies have a chance of 1.2%."""
    studies = [dependence(chain_study(seed, 0.0, samples=32, length=64)) for seed in range(10)]
    assert sum(study.constancy.rejected > 0 for study in studies) <= 2
    rho = np.asarray([row.persistence for study in studies for row in study.pairs])
    # Of 40 independent pairs, 4 standard errors: a false alarm in 16,000.
    assert abs(rho.mean()) < 4 * rho.std() / np.sqrt(len(rho))
    z = np.asarray([row.z for study in studies for row in study.constancy.pairs])
    # Σz² of 40 nearly standard normal values lies below 73 with 99.9%.
    assert np.square(z).sum() < 80


@pytest.mark.slow
def test_the_best_lookahead_follows_from_tau():
    study = chain_study(seed=3, persistence=0.2)
    found = dependence(study)
    for row in found.pairs:
        tau = np.asarray(
            column([r for r in study.expected if r.draft_id == row.draft_id], "tokens_per_round")
        )
        speedup = np.asarray([1, *tau / (np.arange(1, 13) * row.cost + 1)])
        assert row.lookahead_measured == speedup.argmax()
        chosen = row.lookahead["geometric"]
        assert row.regret["geometric"] == pytest.approx(1 - speedup[chosen] / speedup.max())


@pytest.mark.slow
def test_nothing_is_said_of_too_little():
    study = chain_study(seed=1, persistence=0.3, samples=8, length=24)
    assert dependence(records()) is None
    assert dependence(study.replaced(acceptance=[])) is None
    assert (
        dependence(study.replaced(expected=[r for r in study.expected if r.lookahead < 3])) is None
    )
    assert (
        dependence(study.replaced(expected=[r for r in study.expected if r.lookahead > 1])) is None
    )
    assert (
        dependence(
            study.replaced(expected=[r for r in study.expected if r.lookahead < 4], survival=[])
        )
        is not None
    )


def test_holm_and_student():
    """Holm's own rule by hand, and p = 0.05 at the tabulated 97.5% quantile of 5 degrees of freedom."""
    assert holm([0.04, 0.001, 0.013, 0.4], 0.05).tolist() == [False, True, True, False]
    assert holm([0.3, 0.02], 0.05).tolist() == [False, True]
    assert holm([0.01, 0.02], 0.05).all()
    assert student_p_value(-2.570582, 5) == pytest.approx(0.05, abs=1e-6)
