"""The law of truncated drafts, from tables in which it holds."""

from types import SimpleNamespace

import numpy as np
import pytest

from sdsl_jax.evidence.readouts import readouts
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord

SLOPES = {"size": 0.3, "tokens": 0.2, "readout": -0.1}
BOUND = {2000: 0.8, 8000: 0.9}
SIZES, TOKENS = (1e5, 4e5, 1.6e6), (5e5, 1e6)
PASS = {1: 1.05, 2: 1.1, 3: 1.2}


def reached(size, tokens, readout):
    """α/p(K) by the law."""
    z = -5 + 0.3 * np.log(size) + 0.2 * np.log(tokens) - 0.1 * np.log(readout)
    return 1 / (1 + np.exp(-z))


def width(size):
    return round(size**0.5)


def step(size, readout):
    """Seconds of a draft step, where one of the target takes 0.04."""
    return 1e-3 + 2e-10 * (size + readout * width(size))


@pytest.fixture(scope="module")
def records():
    def model(name, role, size, tokens, readout=0):
        return ModelRecord(
            model_id=name,
            role=role,
            params_nonembedding=int(size),
            params_total=int(size),
            train_tokens=int(tokens),
            seed=0,
            loss_nats=1.0,
            perplexity=2.0,
            width=width(size),
            objective="hybrid" if readout else "",
            teacher_digest="t" if readout else "",
            readout=readout,
        )

    models, rows = [model("t", "target", 1e8, 0)], []
    times = [LatencyRecord("t", "decode", 1, 1, 64, 0.04)]
    times += [LatencyRecord("t", "verify", g + 1, 1, 64, 0.04 * v) for g, v in PASS.items()]
    for size in SIZES:
        for readout, bound in BOUND.items():
            for tokens in TOKENS:
                name = f"d{size:g}-{readout}-{tokens:g}"
                models.append(model(name, "draft", size, tokens, readout))
                alpha = bound * reached(size, tokens, readout)
                rows.append(
                    AcceptanceRecord(
                        name, "t", "teacher_forced_samples", 0, 1.0, "x", alpha, alpha_bound=bound
                    )
                )
            times.append(LatencyRecord(name, "decode", 1, 1, 64, step(size, readout)))
    config = SimpleNamespace(measure=SimpleNamespace(confidence=0.9), seed=0)
    return SimpleNamespace(trained=models, measured_acceptance=rows, latency=times, config=config)


def test_the_law_is_recovered(records):
    found = readouts(records)
    assert (found.target_id, found.objective, found.drafts) == ("t", "hybrid", 12)
    for name, slope in SLOPES.items():
        assert found.coefficients[name].estimate == pytest.approx(slope, abs=1e-9)
    assert found.coefficients["level"].estimate == pytest.approx(-5, abs=1e-8)
    assert found.residual < 1e-9


def test_the_largest_size_is_predicted_from_the_others(records):
    found = readouts(records)
    assert len(found.predictions) == 4
    assert all("d1.6e+06" in p.draft_id for p in found.predictions)
    for each in found.predictions:
        assert each.predicted.estimate == pytest.approx(each.measured, abs=1e-9)
    assert found.error < 1e-9


def test_the_optimum_is_that_of_a_search(records):
    found = {o.readout: o for o in readouts(records).optima}
    for readout, bound in BOUND.items():
        best = (0, 0, 0)
        for size in np.geomspace(1e5 / 8, 1.6e6 * 8, 4001):
            a = bound * reached(size, 1e6, readout)
            d = (1e-3 + 2e-10 * (size + readout * size**0.5)) / 0.04
            for g, v in PASS.items():
                tokens = sum(a**k for k in range(g + 1))
                best = max(best, (tokens / (g * d + v), size, g))
        one = found[readout]
        assert one.speedup.estimate == pytest.approx(best[0], rel=1e-3)
        assert one.lookahead == best[2]
        # The grid's steps, 4%, and a flat top.
        assert one.draft_params.estimate == pytest.approx(best[1], rel=0.15)
        assert one.alpha_bound == pytest.approx(bound)


def test_one_readout_has_no_law(records):
    few = [m for m in records.trained if m.readout in (0, 2000)]
    assert readouts(SimpleNamespace(**{**vars(records), "trained": few})) is None
