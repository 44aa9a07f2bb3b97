import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.config import load_study, to_toml
from sdsl_jax.errors import Diverged, SdslError
from sdsl_jax.training import tune as module
from sdsl_jax.training.tune import find_optimum, fit_law, tune

FACTORS = (0.25, 0.5, 1, 2, 4)


def _parabola(best, curvature=0.1, lowest=2.0):
    return [lowest + curvature / 2 * math.log(f / best) ** 2 for f in FACTORS]


@pytest.mark.parametrize("best", [0.4, 0.7, 1.0, 1.3, 2.6])
def test_a_parabola_is_found_exactly(best):
    found = find_optimum(1000, 0.02, FACTORS, _parabola(best))
    assert found.best == pytest.approx(0.02 * best)
    assert found.best_loss == pytest.approx(2.0)
    assert found.curvature == pytest.approx(0.1)
    reach = math.sqrt(2 * 0.01 * 2.0 / 0.1)
    assert found.within_1pct == pytest.approx(
        (0.02 * best * math.exp(-reach), 0.02 * best * math.exp(reach))
    )
    losses = dict(zip(FACTORS, _parabola(best)))
    assert found.gain_halved == pytest.approx(1 - losses[0.5] / losses[1])
    assert found.gain_doubled == pytest.approx(1 - losses[2] / losses[1])
    assert not found.at_border


def test_borders_and_divergence():
    assert find_optimum(1000, 1.0, FACTORS, _parabola(0.1)).at_border
    found = find_optimum(1000, 1.0, FACTORS, [2.0, 1.9, 2.0, math.nan, math.inf])
    assert found.best == pytest.approx(0.5)
    assert found.losses[-2:] == (math.inf, math.inf)
    beside = find_optimum(1000, 1.0, FACTORS, [2.0, 1.95, 1.9, math.nan, math.inf])
    assert beside.best == pytest.approx(1.0)
    assert math.isnan(beside.curvature)
    with pytest.raises(SdslError, match="every trial of the size 1000 diverged"):
        find_optimum(1000, 1.0, FACTORS, [math.nan] * 5)
    with pytest.raises(SdslError, match="at least 3"):
        find_optimum(1000, 1.0, (1, 2), [1.0, 2.0])


def test_a_law_of_size_is_recovered_and_sharp_optima_count_more():
    sizes = [
        find_optimum(n, 1.0, FACTORS, _parabola((n / 1e5) ** -0.2)) for n in (2_000, 10_000, 50_000)
    ]
    law = fit_law(sizes, 100_000)
    assert law.at_reference == pytest.approx(1.0)
    assert law.slope == pytest.approx(-0.2)
    assert law.slope_error == pytest.approx(0, abs=1e-9)
    bent = [replace(sizes[0], best=sizes[0].best * 2), *sizes[1:]]
    flat = [replace(bent[0], curvature=1e-6), *bent[1:]]
    assert abs(fit_law(flat, 100_000).slope + 0.2) < 1e-3 < abs(fit_law(bent, 100_000).slope + 0.2)
    outside = [replace(bent[0], at_border=True), *bent[1:]]
    assert fit_law(outside, 100_000).slope == pytest.approx(-0.2)
    for few in (sizes[:1], outside[:2]):
        with pytest.raises(SdslError, match="at least 2 sizes with an optimum"):
            fit_law(few, 100_000)


@pytest.mark.parametrize(("warmup", "factors"), [(0, [0.5, 1, 2]), (256, [0.01, 0.1, 1, 1.1])])
def test_factors_that_change_nothing_are_refused_before_training(
    tmp_path, monkeypatch, warmup, factors
):
    """No warm-up and one step of it are the same."""
    monkeypatch.setattr(module, "train_rungs", None)
    with pytest.raises(
        SdslError, match=r"the factors make \[256.0\] the only values of warmup_tokens at 584"
    ):
        tune(
            tiny(training={"warmup_tokens": warmup}),
            tmp_path,
            [600, 1200],
            8_192,
            factors,
            "warmup_tokens",
        )


def test_standard_errors_are_those_of_repeated_draws():
    """Noisy losses on six parabolas of unlike curvature, 3,000 times.

    The mean squared error bar equals the variance of slopes within 20%: each of the two estimates
    has a relative standard error of about 3%, and a noisy curvature as weight costs some per cent
    more. The slope is better determined than with weights in proportion to the curvature itself, by
    the ratio that theory gives for these curvatures, 0.61, within a tenth.
    """
    rng, curvatures = np.random.default_rng(0), np.geomspace(0.03, 0.3, 6)
    sizes = (1_000, 3_000, 9_000, 27_000, 81_000, 243_000)

    def draw():
        return [
            find_optimum(
                n, 1.0, FACTORS, np.array(_parabola(1.1, c)) + 5e-4 * rng.standard_normal(5)
            )
            for n, c in zip(sizes, curvatures)
        ]

    draws = [draw() for _ in range(3_000)]
    laws = [fit_law(d, 1000) for d in draws]
    slopes, errors = (
        np.array([law.slope for law in laws]),
        np.array([law.slope_error for law in laws]),
    )
    assert (errors**2).mean() == pytest.approx(slopes.var(), rel=0.2)
    x = np.log(sizes)

    def deviation(weights):
        centred = x - (weights * x).sum() / weights.sum()
        return (
            math.sqrt(((weights * centred / curvatures) ** 2).sum()) / (weights * centred**2).sum()
        )

    expected = deviation(curvatures**2) / deviation(curvatures)
    worse = np.array(
        [np.polyfit(x, [math.log(s.best) for s in d], 1, w=np.sqrt(curvatures))[0] for d in draws]
    )
    assert slopes.std() / worse.std() == pytest.approx(expected, rel=0.1)


def test_values_are_those_that_trials_were_trained_with():
    """Warm-up of 250k tokens is all that a trial of 1M can have, whatever was asked for."""
    factors, values = (0.5, 1, 2, 4, 8), (50e3, 100e3, 200e3, 250e3, 250e3)
    best = 150e3
    losses = [2 + 0.05 * math.log(v / best) ** 2 for v in values]
    found = find_optimum(1000, 100e3, factors, losses, values)
    assert found.best == pytest.approx(best)
    assert found.gain_doubled == pytest.approx(1 - losses[2] / losses[1])
    assert found.values == values
    assert math.isfinite(find_optimum(1000, 7.0, factors, losses, (4, 7, 14, 28, 56)).gain_halved)
    rounded = find_optimum(1000, 1.0, factors, losses, (1, 1, 2, 4, 8))
    assert math.isnan(rounded.gain_halved)


@pytest.mark.parametrize(
    ("setting", "factors", "values"),
    [
        ("batch_size", [0.1, 1, 2], [1, 8, 16]),
        ("warmup_tokens", [1, 4, 8, 99], [1_024, 4_096, 7_936, 8_192]),
    ],
)
def test_sweeps_of_whole_numbers(tmp_path, monkeypatch, setting, factors, values):
    """Batches of less than a sequence, and warm-ups of more than a quarter of 32,768 tokens."""
    losses = iter(np.repeat([2.0, 1.9, 1.95, 2.0], 2))  # of both sizes, factor by factor

    def trained(trial, dataset, folder, plans, progress):
        return SimpleNamespace(records=[SimpleNamespace(validation_loss_nats=next(losses))])

    monkeypatch.setattr(module, "train_rungs", trained)
    config = tiny(training={"warmup_tokens": 1_000})
    found = tune(config, tmp_path, [600, 1200], 32_768, factors, setting)
    assert [list(s.values) for s in found.sizes] == [values, values]
    assert found.study is not None


def test_a_law_without_use_is_none(tmp_path, monkeypatch):
    def sweep(losses, factors=(1, 2, 4)):
        given = iter(losses)

        def trained(trial, dataset, folder, plans, progress):
            return SimpleNamespace(records=[SimpleNamespace(validation_loss_nats=next(given))])

        monkeypatch.setattr(module, "train_rungs", trained)
        return tune(tiny(), tmp_path, [600, 1200], 8_192, factors)

    border = sweep([2.0, 1.9, 2.1, 2.0, 2.2, 2.1])  # factor by factor, the smaller size first
    assert border.study is None
    assert "is the smallest tried" in border.warnings[0]
    assert border.law is None
    assert (
        "no law follows: a law of size needs at least 2 sizes with an optimum between the values"
        in border.warnings[-1]
    )
    one = sweep([2.0, 1.9, 1.9, 2.0, 2.0, 2.1])
    assert (one.law, one.study) == (None, None)
    steep = sweep([2.0, 2.0, 1.9, 2.0, *[2.0] * 5, 1.9, 2.0, 2.0], (1, 2, 4, 64, 128, 256))
    assert steep.study is None
    assert "no law follows: training.learning_rate_exponent is" in steep.warnings[-1]
    beside = sweep([2.0, 2.0, 1.9, 1.9, math.nan, 2.0])
    assert any(
        "a trial beside the best learning_rate at 584 diverged" in w for w in beside.warnings
    )


@pytest.mark.slow
def test_a_sweep_is_made_of_ordinary_rungs_and_outlives_divergence(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(
        "We the people of the United States, to form a more perfect union. " * 600
    )
    config = tiny(data={"source": [str(tmp_path / "text.txt")]}, training={"evaluation_windows": 8})
    arguments = (tmp_path / "out", [600, 1200], 8_192, [0.1, 1, 30])
    first = tune(config, *arguments)
    assert first.study is not None
    assert [s.params for s in first.sizes] == [584, 1224] or len(first.sizes) == 2
    assert all(np.isfinite(s.losses[:2]).all() for s in first.sizes)
    assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 6
    law = first.study.training
    assert law.learning_rate == pytest.approx(first.law.at_reference)
    assert law.learning_rate_exponent == pytest.approx(-first.law.slope)
    (tmp_path / "tuned.toml").write_text(to_toml(first.study))
    assert load_study(tmp_path / "tuned.toml") == first.study

    # The trials are there: nothing is trained again. One that diverges counts as infinitely bad.
    real = module.train_rungs

    def diverges(trial, dataset, folder, plans, progress):
        if trial.training.learning_rate > 0.05:
            raise Diverged("the loss became nan")
        return real(trial, dataset, folder, plans, progress)

    monkeypatch.setattr(module, "train_rungs", diverges)
    second = tune(config, *arguments)
    assert all(s.losses[2] == math.inf for s in second.sizes)
    assert [s.losses[:2] for s in second.sizes] == [s.losses[:2] for s in first.sizes]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([600], 1000, [0.5, 1, 2]), "at least 2 of them"),
        (([600, 900], 1000, [1, 2]), "at least 3, all positive"),
        (([600, 900], 1000, [-1, 1, 2]), "all positive"),
        (([600, 900], 1000, [math.inf, 1, 2]), "all positive, finite"),
        (([600, 900], 0, [0.5, 1, 2]), "is 0 tokens"),
        (([600, 610], 1000, [0.5, 1, 2]), "makes the same model of all sizes"),
    ],
)
def test_senseless_sweeps(tmp_path, arguments, message):
    with pytest.raises(SdslError, match=message):
        tune(tiny(), tmp_path, *arguments)
