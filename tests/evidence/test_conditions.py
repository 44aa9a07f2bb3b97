import pytest
from evidence_records import law_study

from sdsl_jax.evidence.conditions import domain, temperature
from sdsl_jax.evidence.stage import gather

TEMPERATURES = ((0.0, 2.2, 1.2), (0.5, 1.9, 1.4))


@pytest.mark.slow
def test_levels_and_slopes_by_temperature_are_recovered():
    """24 pairs with noise of 0.003 in α: level and slope are known to about 0.01, and held to 5 times that."""
    found = temperature(law_study(temperatures=TEMPERATURES))
    assert found.reference == 1.0
    assert [row.temperature for row in found.by_temperature] == [0.0, 0.5, 1.0]
    for row, (level, slope) in zip(found.by_temperature, [(2.2, 1.2), (1.9, 1.4), (1.5, 1.8)]):
        assert row.level.estimate == pytest.approx(level, abs=0.05)
        assert row.slope.estimate == pytest.approx(slope, abs=0.1)
        assert row.level.low < row.level.estimate < row.level.high
    assert found.by_temperature[2].change.estimate == 0
    assert found.by_temperature[0].change.low > 0
    error = {law.law: law.left_out_rmse for law in found.laws}
    assert error["level_and_slope"] < error["level"] < error["ignored"]
    assert error["level_and_slope"] == pytest.approx(0.003, rel=0.3)
    assert found.verdict.temperature_needed


@pytest.mark.slow
def test_a_temperature_that_changes_nothing_is_not_needed():
    """Under one law for all, more coefficients seem better at 90% with a chance of at most 5% for each of three laws."""
    found = temperature(law_study(seed=4, temperatures=((0.5, 1.5, 1.8), (2.0, 1.5, 1.8))))
    assert not found.verdict.temperature_needed
    assert all(abs(row.change.estimate) < 0.004 for row in found.by_temperature)


def test_the_loss_of_the_very_domain_carries_the_law_over():
    found = domain(law_study(domains=(("far", 1.0, 0.5), ("near", 0.1, 0.9))))
    assert found.verdict.better_loss == "own"
    assert [row.domain for row in found.by_domain] == ["base text", "far", "near"]
    far = found.left_out[1]
    assert far.own.rmse == pytest.approx(0.003, rel=0.5)
    assert far.base.rmse > 0.03
    assert far.base.bias.high < 0  # gaps are half of what the base says, so α is higher
    assert found.squared_error_change.high < 0


def test_nothing_is_said_without_conditions():
    study = law_study()
    answers = gather(study)
    assert answers.temperature is answers.domain is answers.same_data is answers.dependence is None
    one_size = [
        m
        for m in law_study(temperatures=TEMPERATURES).models
        if m.role == "target" or m.params_nonembedding == 1000
    ]
    assert temperature(law_study(temperatures=TEMPERATURES).replaced(models=one_size)) is None
    unknown = law_study(domains=(("far", 1.0, 0.5),))
    assert domain(unknown.replaced(losses=[])) is None
