"""Engines fitted to published step times: rows that the fit did not see, and what a table can tell."""

from pathlib import Path

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.hardware import Timing
from sdsl_jax.fitting.step_times import fit_step_times, read_step_times
from sdsl_jax.hardware import load_hardware
from sdsl_jax.theory.hardware import Load, Precision, pass_time
from sdsl_jax.theory.published_models import published_shape

PUBLISHED = Path(__file__).parents[2] / "experiments/published/step_times.csv"
H100 = load_hardware("h100").hardware


@pytest.fixture(scope="module")
def published():
    return {
        name: fit_step_times(table.timings, table.precision, H100)
        for name, table in read_step_times(PUBLISHED).items()
    }


def test_half_of_the_published_step_times_predicts_the_other_half(published):
    halves = {name: fit for name, fit in published.items() if fit.left_out == "half"}
    assert {fit.unseen.rows for fit in halves.values()} == {14, 9}
    for fit in halves.values():
        assert fit.unseen.median <= 0.03
        assert fit.unseen.worst <= 0.10
        assert not fit.warnings


def test_the_shipped_engines_are_these_fits(published):
    for engine, fit in zip(load_hardware("h100").engines, published.values()):
        assert set(engine.coefficients) == set(fit.fitted)
        for name, value in engine.coefficients.items():
            assert value == pytest.approx(float(getattr(fit.hardware, name)), rel=0.01)
        assert engine.unseen_median_error == pytest.approx(fit.unseen.median, abs=1e-3)
        assert engine.unseen_worst_error == pytest.approx(fit.unseen.worst, abs=1e-3)


def test_three_rows_that_no_cost_explains_are_reported_as_such(published):
    fit = list(published.values())[-1]
    assert fit.left_out == "one"
    assert fit.unseen.rows == 3
    assert fit.unseen.worst > 0.1
    assert any("does not describe" in text for text in fit.warnings)


def test_a_table_says_what_it_cannot_tell(published):
    graphs = next(iter(published.values()))
    assert "same depth" in graphs.not_told["pass_seconds"]
    assert "several tokens to a row" in graphs.not_told["wide_seconds"]
    assert set(graphs.not_told) | set(graphs.fitted) >= {"layer_seconds", "bytes_per_second"}
    assert not set(graphs.not_told) & set(graphs.fitted)
    # What it cannot tell is the device's, bit for bit.
    assert all(getattr(graphs.hardware, n) == getattr(H100, n) for n in graphs.not_told)


TWO_BYTES = Precision(2.0, 2.0)


def made(engine, models, loads, precision=TWO_BYTES, noise=0.003):
    """Step times of the model itself, with noise."""
    random = np.random.default_rng(0)
    return [
        Timing(
            shape := published_shape(model),
            None,
            width,
            rows,
            context,
            float(pass_time(engine, shape, precision, Load(float(width), float(rows), context)))
            * np.exp(noise * random.normal()),
        )
        for model in models
        for rows, width, context in loads
    ]


def test_rows_that_are_far_off_need_several_coefficients_at_once():
    """Four-bit weights on an engine far from its device: no single coefficient is of use."""
    engine = H100._replace(
        layer_seconds=2.5e-5,
        token_seconds=8e-6,
        wide_seconds=1e-5,
        cache_slowdown=1.8,
        bytes_per_second=2.3e12,
        flops_per_second=4.9e14,
    )
    loads = [(b, w, c) for b in (1, 8, 32, 128) for w in (1, 5) for c in (512.0, 8192.0)]
    precision = Precision(0.5, 2.0)
    timings = made(engine, ["Llama-3.1-8B"], loads, precision)
    fit = fit_step_times(timings, precision, H100)
    assert fit.everything.worst < 0.02
    assert fit.unseen.median < 0.02
    assert not fit.warnings
    # As if the weights had two bytes, the device cannot read them in that time, and it is said.
    assert any(
        "weight_bytes" in text for text in fit_step_times(timings, Precision(), H100).warnings
    )


def test_the_order_of_the_rows_makes_no_bad_half():
    engine = H100._replace(layer_seconds=3.3e-5, token_seconds=7e-6, cache_slowdown=1.5)
    loads = [(b, 1, c) for b in (1, 4, 8, 16, 24, 32, 48, 64) for c in (0.0, 8192.0)]
    fit = fit_step_times(made(engine, ["Qwen3-1.7B"], loads), Precision(), H100)
    assert fit.unseen.worst < 0.03
    assert "same context" not in " ".join(fit.not_told.values())
    one = fit_step_times(made(engine, ["Qwen3-1.7B"], loads[::2]), Precision(), H100)
    assert one.not_told["cache_slowdown"] == "no row has a context"
    same = [(b, w, 512.0) for b, w, _ in loads[::2]]
    one = fit_step_times(made(engine, ["Qwen3-1.7B"], same), Precision(), H100)
    assert "same context" in one.not_told["cache_slowdown"]


@pytest.mark.slow
def test_a_table_of_several_models_gives_back_the_coefficients_it_was_made_with():
    made_with = {
        "layer_seconds": 2.2e-5,
        "token_seconds": 3e-6,
        "wide_seconds": 8e-6,
        "bytes_per_second": 2.6e12,
        "flops_per_second": 6e14,
        "cache_slowdown": 1.2,
    }
    loads = [(b, w, c) for b in (1, 8, 64, 256) for w in (1, 4, 8) for c in (512.0, 8192.0)]
    models = ("Qwen3-0.6B", "Qwen3-8B", "Qwen2.5-32B")
    timings = made(H100._replace(**made_with), models, loads, noise=0.01)
    fit = fit_step_times(timings, Precision(), H100)
    assert set(fit.fitted) == set(made_with)
    # Noise of 1% in 72 rows: a coefficient that a third of the rows hang on is good to a few percent.
    for name, value in made_with.items():
        assert float(getattr(fit.hardware, name)) == pytest.approx(value, rel=0.1), name
    assert fit.unseen.median < 0.015


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,batch\nQwen3-8B,1\n", "lacks the column milliseconds"),
        (
            "model,batch,milliseconds\nmine,1,2\n",
            "line 2: the shape of the model 'mine' is not known",
        ),
        ("model,batch,milliseconds\nQwen3-8B,1,x\n", "line 2 holds 'x' as milliseconds"),
        ("model,batch,milliseconds,context\nQwen3-8B,1,2,-1\n", "must be 0 or a positive number"),
        (
            "model,batch,milliseconds,weight_bytes\nQwen3-8B,1,2,1\nQwen3-8B,1,2,2\n",
            "several weight_bytes",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SdslError, match=message):
        read_step_times(tmp_path / "t.csv")


def test_a_model_may_be_given_by_its_shape(tmp_path):
    shape = published_shape("Qwen3-8B")
    names = (
        "params",
        "layers",
        "width",
        "query_width",
        "kv_width",
        "vocab_size",
        "embedding_tables",
    )
    cells = ",".join(f"{getattr(shape, name):.0f}" for name in names)
    (tmp_path / "t.csv").write_text(f"batch,milliseconds,{','.join(names)}\n4,2,{cells}\n")
    (table,) = read_step_times(tmp_path / "t.csv").values()
    assert table.timings == [Timing(shape, None, 1.0, 4.0, 0.0, 0.002)]
    assert table.precision == Precision(2.0, 2.0)
