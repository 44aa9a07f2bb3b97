import dataclasses

import pytest
from evidence_records import law_study

from sdsl_jax.evidence.same_data import same_data


def test_drafts_that_follow_the_same_law():
    """Noise of 0.003 over 10 pairs: the mean difference has a standard error of about 0.001, and 0.01 lies far outside."""
    found = same_data(law_study(shift=0.0))
    assert found.answer == "yes"
    assert found.n == 10
    assert not found.warnings
    assert abs(found.difference.estimate) < 0.005
    assert found.difference.low <= found.difference.estimate <= found.difference.high


def test_drafts_that_do_not():
    """A logit lower by 0.2 is about 0.05 in α."""
    found = same_data(law_study(shift=-0.2))
    assert found.answer == "no"
    assert found.difference.estimate == pytest.approx(-0.049, abs=0.006)
    assert all(row.low <= row.difference <= row.high for row in found.pairs)


def test_little_data_leave_it_undecided():
    """Noise of 0.06 leaves a standard error of about 0.02: an interval within ±0.01 is out of reach, and 0 is excluded in 10%."""
    assert same_data(law_study(seed=3, shift=0.0, noise=0.06)).answer == "undecided"


def test_losses_outside_the_range_are_warned_of():
    study = law_study(shift=0.0)
    kept = [m for m in study.models if m.role == "target" or m.loss_nats < 2.05]
    found = same_data(study.replaced(models=kept))
    assert sum(row.extrapolated for row in found.pairs) == 2
    assert found.difference_inside.n == 8
    assert found.warnings[0].startswith("2 of 10 pairs")


def test_too_few_drafts_of_the_study_hold_no_curve():
    study = law_study(shift=0.0)
    few = [
        m
        for m in study.models
        if m.role == "target" or m.model_id in ("draft-0-0", "draft-2-0", "draft-5-0")
    ]
    assert same_data(study.replaced(models=few)) is None
    assert same_data(law_study()) is None


def test_both_estimators_are_told():
    """The answer is about text, where losses and α are of the same contexts; samples are told beside it."""
    study = law_study(shift=0.0)
    samples = {"estimator": "teacher_forced_samples"}
    both = [
        dataclasses.replace(row, **samples, alpha=row.alpha + 0.05 * (row.draft_id[0] == "o"))
        for row in study.conditions
    ]
    own = [dataclasses.replace(row, **samples) for row in study.acceptance]
    found = same_data(
        study.replaced(conditions=[*both, *study.conditions], acceptance=[*own, *study.acceptance])
    )
    assert (found.estimator, found.answer) == ("teacher_forced_text", "yes")
    (also,) = found.also
    assert (also.estimator, also.answer) == ("teacher_forced_samples", "no")
    assert not hasattr(also, "pairs")
