"""Calibration of a device: whether what is timed identifies its coefficients, and a tiny real one."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.calibration import BYTES, fit_device, timing_of
from sdsl_jax.fitting.hardware import predicted_seconds
from sdsl_jax.measurement import calibration as workloads
from sdsl_jax.measurement.calibration import (
    ACCELERATOR,
    CPU,
    build,
    model_name,
    operations,
    random_params,
    record_of,
    shape_of,
    slots_of,
    time_operations,
    unseen_models,
)
from sdsl_jax.models import abstract_params, count
from sdsl_jax.records import read_table, write_table
from sdsl_jax.statistics import Interval
from sdsl_jax.theory.hardware import Hardware, Precision

ONE_CORE = Hardware(5e-6, 8e-6, 1.5e-6, 1.2e10, 2.5e10, sharpness=3.0, round_seconds=2e-5)
BIG = Hardware(2e-5, 2.5e-5, 2e-7, 2.6e12, 5e14, sharpness=3.0, round_seconds=5e-5)


def simulated(scale, truth, dtype, *, quick=False, batches=(1, 4, 16), noise=0.03, seed=0):
    """What `time_operations` would give on a device whose coefficients are known."""
    ops = operations(scale, batches, quick)
    unseen = unseen_models(ops)
    rows = [
        record_of(
            o,
            Interval(1, 1, 1),
            scale,
            unseen,
            confidence=0.9,
            repetitions=5,
            threads=1,
            dtype=dtype,
            device="simulated",
        )
        for o in ops
    ]
    precision = Precision(BYTES[dtype], BYTES[dtype])
    exact = predicted_seconds(truth, [timing_of(row) for row in rows], precision)
    seconds = exact * np.exp(noise * np.random.default_rng(seed).normal(size=len(rows)))
    return [
        dataclasses.replace(row, seconds=s, seconds_low=s * 0.98, seconds_high=s * 1.02)
        for row, s in zip(rows, seconds.tolist())
    ]


def check(fitted, truth, worst):
    assert fitted.unseen.median < 0.06
    assert fitted.unseen.worst < worst
    assert fitted.everything.median < 0.04
    # The rates to 6%, times to a quarter: the smallest of them are a few percent of most passes.
    for name, tolerance in {
        "bytes_per_second": 0.06,
        "flops_per_second": 0.06,
        "layer_seconds": 0.1,
        "token_seconds": 0.15,
        "pass_seconds": 0.25,
        "round_seconds": 0.25,
    }.items():
        estimate = getattr(fitted.hardware, name)
        assert estimate == pytest.approx(getattr(truth, name), rel=tolerance), name
        low, high = fitted.intervals[name].low, fitted.intervals[name].high
        assert low <= high
        assert low < 1.15 * getattr(truth, name)
        assert high > 0.85 * getattr(truth, name)
    assert fitted.condition_number < 100
    assert not fitted.warnings


@pytest.mark.slow
def test_what_is_timed_identifies_every_coefficient():
    for seed in range(3):
        fitted = fit_device(
            simulated(CPU, ONE_CORE, "float32", seed=seed), starts=8, draws=16, confidence=0.9
        )
        check(fitted, ONE_CORE, worst=0.15)
        assert fitted.precision == Precision(4.0, 4.0)
        assert set(fitted.unseen_kinds) == {"step", "verify", "round"}


@pytest.mark.release
def test_an_accelerator_and_quick_calibrations():
    check(
        fit_device(simulated(ACCELERATOR, BIG, "bfloat16"), starts=16, draws=16, confidence=0.9),
        BIG,
        worst=0.15,
    )
    for scale, truth, dtype in ((CPU, ONE_CORE, "float32"), (ACCELERATOR, BIG, "bfloat16")):
        fitted = fit_device(
            simulated(scale, truth, dtype, quick=True), starts=16, draws=16, confidence=0.9
        )
        assert fitted.unseen.median < 0.1
        assert fitted.everything.median < 0.04


def test_what_is_wrong_is_said():
    rows = simulated(CPU, ONE_CORE, "float32")
    noisy = [
        dataclasses.replace(r, seconds_low=r.seconds * 0.8, seconds_high=r.seconds * 1.2)
        for r in rows
    ]
    # As many rows as elsewhere, all from one kind of model: rows with few layers do not tell layers
    # from passes.
    same = [
        dataclasses.replace(r, target_layers=1, draft_layers=min(r.draft_layers, 1)) for r in noisy
    ]
    fitted = fit_device(same, starts=8, draws=16, confidence=0.9)
    assert any("noisy" in text and "20%" in text for text in fitted.warnings)
    assert any("pass_seconds is not identified" in text for text in fitted.warnings) or any(
        "layer_seconds is not identified" in text for text in fitted.warnings
    )
    with pytest.raises(SdslError, match="none of the timings is held out"):
        fit_device(
            [dataclasses.replace(r, held_out=0) for r in rows], starts=2, draws=2, confidence=0.9
        )
    with pytest.raises(SdslError, match="the timings are in bfloat16, float32"):
        fit_device(
            [rows[0], dataclasses.replace(rows[1], dtype="bfloat16")],
            starts=2,
            draws=2,
            confidence=0.9,
        )


@pytest.mark.parametrize("scale", [CPU, ACCELERATOR])
@pytest.mark.parametrize("quick", [False, True])
def test_the_plan(scale, quick):
    ops = operations(scale, (1, 4, 16), quick)
    assert len(set(ops)) == len(ops)
    for kind in ("step", "verify", "round"):
        cells = {(o.batch, o.prompt_tokens) for o in ops if o.kind == kind}
        assert {b for b, _ in cells} == {1, 4, 16}
        assert {p for _, p in cells} == set(scale.prompt_tokens)
    assert {o.tokens for o in ops if o.kind == "round"} == {1, 2, 4, 8, 12}
    assert {o.tokens for o in ops if o.kind == "verify"} == set(scale.verify_widths)
    for o in ops:
        if o.draft is not None:
            assert o.draft.vocab_size == o.target.vocab_size
            assert count(o.draft, 0).total < count(o.target, 0).total
    names = {model_name(c) for o in ops for c in (o.target, o.draft) if c is not None}
    unseen = unseen_models(ops)
    assert len(names) / 4 <= len(unseen) < len(names) / 2.4
    # Depth changes at about one size, so that a layer is told from its parameters.
    sizes = {c: shape_of(c).params for c in {o.target for o in ops}}
    assert any(
        abs(np.log(float(sizes[a] / sizes[b]))) < 0.7 and a.layers >= 3 * b.layers
        for a in sizes
        for b in sizes
    )
    assert slots_of(ops[0], scale) > ops[0].prompt_tokens


def test_batches_are_checked():
    assert workloads.check_batches((16, 1, 4, 4)) == (1, 4, 16)
    for batches, words in (
        ((), "no batch size"),
        ((0,), "a batch size is 0"),
        ((7, 16), "112 as their least common"),
    ):
        with pytest.raises(SdslError, match=words):
            workloads.check_batches(batches)


def test_random_weights_are_those_of_a_model():
    config = build(CPU, (16, 2, 256))
    params = random_params(config, "bfloat16", np.random.default_rng(0))
    like = abstract_params(config)
    import jax

    assert jax.tree.structure(params) == jax.tree.structure(like)
    for made, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(like)):
        assert made.shape == wanted.shape
        assert made.dtype == "bfloat16"


def test_rows_go_through_a_file(tmp_path):
    rows = simulated(CPU, ONE_CORE, "float32", quick=True)
    write_table(tmp_path, "timings", rows)
    assert read_table(tmp_path, "timings") == rows


THREADS = """
import os, sys
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.threads import available_threads, limit_threads
for wrong in (0, available_threads() + 1):
    try:
        limit_threads(wrong)
    except SdslError as error:
        assert f"is {wrong}; it must lie in [1, {available_threads()}]" in str(error), error
    else:
        sys.exit("not refused")
before = os.sched_getaffinity(0)
limit_threads(1)
assert os.sched_getaffinity(0) == before
limit_threads(1)  # again is no change
own = [os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")]
assert sum(len(cpus) == 1 for cpus in own) > 0, own
if len(before) > 1:
    try:
        limit_threads(2)
    except SdslError as error:
        assert "jax computes with 1 already" in str(error)
    else:
        sys.exit("not refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs processor affinity")
@pytest.mark.slow
def test_threads_are_limited_before_the_first_use():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.release
def test_a_tiny_real_calibration():
    """Few models and operations; whatever else the machine does, the order of magnitude must come out."""
    scale = dataclasses.replace(CPU, new_tokens=20, prompt_tokens=(8, 40))
    ops = [
        o for o in operations(scale, (1, 4), quick=True) if o.target.layers <= 2 or o.kind == "step"
    ]
    ops = [o for o in ops if o.tokens <= 5]
    rows = time_operations(ops, scale, dtype="float32", repetitions=2, confidence=0.9, threads=0)
    assert len(rows) == len(ops)
    for row, o in zip(rows, ops):
        assert 1e-6 < row.seconds < 1
        assert row.seconds_low <= row.seconds <= row.seconds_high
        assert (row.operation, row.tokens, row.batch) == (o.kind, o.tokens, o.batch)
        assert row.context == slots_of(o, scale)
    fitted = fit_device(rows, starts=8, draws=8, confidence=0.9)
    assert fitted.hardware.flops_per_second > 1e8
    assert fitted.everything.median < 0.6
