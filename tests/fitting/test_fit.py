import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import tiny

from sdsl_jax.config import FitConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.acceptance import fit_acceptance_laws, pair_resamples, pair_table
from sdsl_jax.fitting.loss import fit_loss_law, loss_table
from sdsl_jax.fitting.solver import fit, huber, refit
from sdsl_jax.fitting.stage import fit_all
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord
from sdsl_jax.statistics import bootstrap_weights
from sdsl_jax.theory import (
    AffinePlane,
    ChinchillaLaw,
    LogitGap,
    LogitLogGap,
    LogitPlane,
    LogLinearLength,
    ModelPoint,
    PowerLaw,
)

TRUTH = ChinchillaLaw(E=1.2, A=12.0, B=60.0, a=0.35, b=0.4)
CONFIG = FitConfig(starts=32, bootstrap=50)


def models(
    noise: float,
    seed: int = 0,
    sizes=(1e3, 3e3, 1e4, 3e4, 1e5, 3e5),
    budgets=(1e5, 4e5, 1.6e6, 6.4e6),
) -> list[ModelRecord]:
    random = np.random.default_rng(seed)
    made = []
    for n in sizes:
        for d in budgets:
            loss = float(TRUTH(n, d)) * np.exp(noise * random.normal())
            role = "target" if n == max(sizes) else "draft"
            made.append(
                ModelRecord(
                    f"{role}-{n:g}-{d:g}", role, int(n), int(n), int(d), 0, loss, np.exp(loss)
                )
            )
    return made


def point(model: ModelRecord) -> ModelPoint:
    return ModelPoint(model.params_nonembedding, model.loss_nats, model.train_tokens)


def exponential_residuals(x, data):
    t, y = data
    return x[0] * jnp.exp(-x[1] * t) - y


def test_solver_reaches_scipys_optimum(x64):
    """The same Huber objective, with outliers, against scipy's least_squares from a good start."""
    random = np.random.default_rng(0)
    t = np.linspace(0, 3, 40)
    y = 2 * np.exp(-1.3 * t) + 0.01 * random.normal(size=40)
    y[::9] += 0.5
    starts = jnp.asarray(random.uniform(0.1, 4, (16, 2)))
    found = fit(exponential_residuals, starts, (jnp.asarray(t), jnp.asarray(y)), jnp.ones(40), 0.02)
    theirs = scipy.optimize.least_squares(
        lambda x: np.asarray(exponential_residuals(x, (t, y))),
        [2, 1.3],
        loss="huber",
        f_scale=0.02,
        xtol=1e-15,
        ftol=1e-15,
    )
    assert float(found.objective) <= theirs.cost * (1 + 1e-9)
    np.testing.assert_allclose(found.parameters, theirs.x, rtol=1e-5)
    assert float(found.starts_agreeing) == 1.0
    np.testing.assert_allclose(found.parameters, [2, 1.3], rtol=0.02)  # the outliers did not pull


def test_huber():
    np.testing.assert_allclose(huber(jnp.array([0.5, -2.0]), 1.0), [0.125, 1.5])


def test_weights_are_repetitions(x64):
    """A weight of two is the row twice, and a weight of zero is the row left out."""
    t, y = (
        jnp.linspace(0, 3, 8),
        2 * jnp.exp(-jnp.linspace(0, 3, 8)) + 0.1 * jnp.sin(9 * jnp.linspace(0, 3, 8)),
    )
    weights = jnp.array([2.0, 0, 1, 1, 1, 0, 1, 2])
    repeated = np.repeat(np.arange(8), np.asarray(weights, int))
    start = jnp.array([[1.0, 1.0]])
    one = refit(exponential_residuals, start, (t, y), weights[None], 0.05).parameters[0]
    other = refit(
        exponential_residuals, start, (t[repeated], y[repeated]), jnp.ones((1, len(repeated))), 0.05
    ).parameters[0]
    np.testing.assert_allclose(one, other, rtol=1e-8)


def test_loss_law_recovers_its_coefficients():
    table = models(0.0)
    made = fit_loss_law(loss_table(table), CONFIG, bootstrap_weights(len(table), 20, 0), 0)
    np.testing.assert_allclose(jax.tree.leaves(made.law), jax.tree.leaves(TRUTH), rtol=2e-3)
    assert made.rmse < 1e-6


@pytest.mark.slow
def test_loss_law_intervals_hold_the_truth():
    """Noise of 0.3%: the truth lies inside the 98% bootstrap interval of every coefficient for this seed."""
    table = models(0.003, seed=3)
    made = fit_loss_law(loss_table(table), CONFIG, bootstrap_weights(len(table), 200, 0), 0)
    for value, truth, draws in zip(*map(jax.tree.leaves, (made.law, TRUTH, made.draws))):
        low, high = np.quantile(draws, [0.01, 0.99])
        assert low <= truth <= high
        assert low < value < high


@pytest.mark.release
def test_loss_law_says_what_it_cannot_identify():
    """One ratio of tokens to parameters cannot separate a from b, and a flat table shows no E."""
    table = models(0.002)
    diagonal = [
        ModelRecord(f"m{i}", "draft", int(n), int(n), int(20 * n), 0, float(TRUTH(n, 20 * n)), 1.0)
        for i, n in enumerate(np.geomspace(1e3, 1e5, 8))
    ]
    made = fit_loss_law(loss_table(diagonal), CONFIG, bootstrap_weights(8, 20, 0), 0)
    assert any("same tokens per parameter" in w.text for w in made.warnings)
    no_floor = ChinchillaLaw(E=0.0, A=3.5, B=8.0, a=0.07, b=0.3)
    flat = [
        ModelRecord(
            m.model_id,
            m.role,
            m.params_nonembedding,
            1,
            m.train_tokens,
            0,
            float(no_floor(m.params_nonembedding, m.train_tokens)),
            1.0,
        )
        for m in table
    ]
    made = fit_loss_law(loss_table(flat), CONFIG, bootstrap_weights(len(flat), 20, 0), 0)
    assert any(w.text.startswith("E is not identified") for w in made.warnings)


def test_too_few_models_are_refused():
    with pytest.raises(SdslError, match="needs at least 6 models, 2 sizes and 2 budgets"):
        fit_loss_law(loss_table(models(0.0)[:5]), CONFIG, bootstrap_weights(5, 20, 0), 0)


LAWS = {
    "logit_gap": LogitGap(1.7, 2.1),
    "logit_plane": LogitPlane(1.9, 2.1, 1.4),
    "logit_log_gap": LogitLogGap(1.9, 2.0, 0.8, -0.5),
    "affine_plane": AffinePlane(-0.06, 0.05, 0.9),
    "power_law": PowerLaw(0.9, 0.2, 0.05),
    "log_linear_length": LogLinearLength(1.0, 0.3, 0.1, -0.1),
}


@pytest.mark.parametrize("name", LAWS)
def test_acceptance_laws_recover_their_coefficients(name):
    """From pairs without noise, of three targets; the law that made the data predicts left-out drafts best."""
    table, law = models(0.0), LAWS[name]
    drafts = [m for m in table if m.params_nonembedding < 1e5]
    targets = [m for m in table if m.params_nonembedding >= 3e4 and m.train_tokens > 1e6]
    rows = [
        AcceptanceRecord(
            d.model_id,
            t.model_id,
            "teacher_forced_samples",
            0,
            1.0,
            "x",
            float(law(point(d), point(t))),
        )
        for d in drafts
        for t in targets
    ]
    pairs = pair_table(table, rows, "teacher_forced_samples")
    weights = bootstrap_weights(len(table), 20, 0)[:, pairs.draft_model]
    fits = fit_acceptance_laws(pairs, CONFIG, weights, 0, "test")
    (alone,) = fit_acceptance_laws(pairs, CONFIG, weights, 0, "test", laws=(name,))
    assert alone.record == next(f.record for f in fits if f.record.law == name)
    # A gap is a plane with equal slopes: where the truth is a gap, both predict it.
    assert name in [made.record.law for made in fits[: 2 if name == "logit_gap" else 1]]
    made = next(f for f in fits if f.record.law == name)
    np.testing.assert_allclose(jax.tree.leaves(made.law), jax.tree.leaves(law), rtol=1e-4)
    assert made.record.left_out_rmse < 1e-6 < fits[2].record.left_out_rmse


def test_acceptance_of_another_estimator_is_refused():
    with pytest.raises(
        SdslError, match="at least 4 drafts measured by teacher_forced_samples; the records hold 0"
    ):
        pair_table(models(0.0), [], "teacher_forced_samples")


def test_fits_do_not_depend_on_the_default_precision():
    table = models(0.002)
    weights = bootstrap_weights(len(table), 20, 0)
    single = fit_loss_law(loss_table(table), CONFIG, weights, 0)
    with jax.enable_x64(True):
        double = fit_loss_law(loss_table(table), CONFIG, weights, 0)
    np.testing.assert_array_equal(jax.tree.leaves(single.law), jax.tree.leaves(double.law))


@pytest.mark.slow
def test_models_that_saw_their_text_too_often_stay_out_of_the_loss_law():
    """Repeated text is worth less than new text: with it the law of the others would be another."""
    fresh = [dataclasses.replace(m, epochs=1.0) for m in models(0.001)]
    worn = [
        dataclasses.replace(
            m, model_id=f"{m.model_id}-worn", train_tokens=m.train_tokens * 50, epochs=50.0
        )
        for m in fresh
    ]
    drafts = [m for m in fresh if m.role == "draft"]
    rows = [
        AcceptanceRecord(
            d.model_id, t.model_id, "teacher_forced_samples", 0, 1.0, "text", 0.5 + 0.01 * i
        )
        for t in fresh
        if t.role == "target"
        for i, d in enumerate(drafts)
    ]
    study = tiny(fit={"starts": 16, "bootstrap": 20})
    times = [
        LatencyRecord(m.model_id, "decode", 1, 1, 64, 1e-4 + 1e-9 * m.params_nonembedding)
        for m in fresh
    ]
    fits = [fit_all(study, found, rows, times) for found in (fresh, fresh + worn)]
    assert [fit.loss_law.excluded_for_epochs for fit in fits] == [0, len(worn)]
    assert fits[0].loss_law.coefficients == fits[1].loss_law.coefficients
    # Nor does a model of another recipe enter the loss law.
    given = dataclasses.replace(fresh[-1], model_id="given", learning_rate=1e-4, batch_size=8)
    other = fit_all(study, [*fresh, given], rows, times).loss_law
    assert (other.excluded_for_recipe, other.excluded_for_epochs) == (1, 0)
    assert other.coefficients == fits[0].loss_law.coefficients


@pytest.mark.slow
def test_one_target_tells_nothing_of_targets():
    """24 drafts of one target: slopes in its size and loss stay at 0, and the fit says that they are not known."""
    table = models(0.002)
    target = next(m for m in table if m.role == "target" and m.train_tokens > 6e6)
    rows = [
        AcceptanceRecord(
            d.model_id,
            target.model_id,
            "teacher_forced_samples",
            0,
            1.0,
            "x",
            float(LAWS["logit_gap"](point(d), point(target))),
        )
        for d in table
        if d.role == "draft"
    ]
    pairs = pair_table(table, rows, "teacher_forced_samples")
    fits = {
        f.record.law: f
        for f in fit_acceptance_laws(pairs, CONFIG, pair_resamples(pairs, 20, 0), 0, "test")
    }
    for name, coefficient in (
        ("logit_plane", "target_slope"),
        ("logit_log_gap", "target_slope"),
        ("affine_plane", "B"),
        ("power_law", "target_exponent"),
        ("log_linear_length", "target_slope"),
    ):
        assert float(getattr(fits[name].law, coefficient)) == 0.0
        assert any(coefficient == warning.coefficient for warning in fits[name].warnings)
    assert fits["logit_plane"].rmse < 1e-5


def test_drafts_and_targets_are_drawn_apart():
    """A pair weighs the product of its runs; budgets of a run are drawn together; every draw has drafts and targets."""
    table = models(0.0)
    drafts, targets = (
        [m for m in table if m.params_nonembedding < 3e4],
        [m for m in table if m.params_nonembedding > 5e4],
    )
    rows = [
        AcceptanceRecord(
            d.model_id, t.model_id, "teacher_forced_samples", 0, 1.0, "x", 0.5 + 0.001 * i
        )
        for i, (d, t) in enumerate(itertools.product(drafts, targets))
    ]
    pairs = pair_table(table, rows, "teacher_forced_samples")
    weights = pair_resamples(pairs, 50, 0)
    for run in np.unique(pairs.draft_run):
        of_run = weights[:, pairs.draft_run == run].reshape(50, -1, len(targets))
        assert (of_run == of_run[:, :1]).all()
    by_pair = weights.reshape(50, len(drafts), len(targets))
    np.testing.assert_allclose(by_pair * by_pair[:, :1, :1], by_pair[:, :, :1] * by_pair[:, :1, :])
    assert (weights.sum(axis=1) > 0).all()


def test_tables_without_signal_are_refused():
    table = [dataclasses.replace(m, loss_nats=2.0) for m in models(0.0)]
    with pytest.raises(SdslError, match="every model has the loss 2"):
        fit_loss_law(loss_table(table), CONFIG, np.ones((1, len(table))), 0)
