"""`python -m benchmarks.accelerator`: its budget, what a part leaves behind, and its small form."""

import dataclasses
import io
import json
import sys
import time
import types

import numpy as np
import pytest
from rich.console import Console

from benchmarks.accelerator.__main__ import run, run_all, show
from benchmarks.accelerator.parts import KEYS, PARTS, Measured, Part, run_part
from sdsl_jax.fitting.calibration import fit_device, timing_of
from sdsl_jax.fitting.hardware import predicted_seconds
from sdsl_jax.hardware import load_hardware
from sdsl_jax.measurement.calibration import record_of, unseen_models
from sdsl_jax.statistics import Interval
from sdsl_jax.theory.hardware import Hardware, Precision


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_parts_that_do_not_fit_are_named(tmp_path):
    console = Console(file=io.StringIO(), width=140)
    outcomes = run_all(list(PARTS), tmp_path, small=True, minutes=0.1, console=console)
    show(outcomes, console)
    assert not list(tmp_path.iterdir())
    for part, outcome in zip(PARTS, outcomes, strict=True):
        assert "needed" in outcome["skipped"]
        assert part.name in console.file.getvalue()


def test_the_parts_fit_into_eight_minutes():
    assert sum(part.seconds for part in PARTS) < 8 * 60


def test_a_part_that_is_ended_says_so(tmp_path):
    outcome = run(PARTS[1], tmp_path, small=True, seconds=1.0, left=0.05)
    assert outcome["error"] == "the part was cut off: the time was over"
    assert read(tmp_path, PARTS[1].name)["error"] == outcome["error"]


@pytest.fixture
def part(monkeypatch):
    """Makes a part of a function."""

    def make(measure):
        module = types.ModuleType("benchmarks.accelerator.fake")
        module.measure = measure
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Part("fake", "a question", 1.0, 1.0)

    return make


def test_a_part_that_fails_keeps_what_it_measured(part, tmp_path):
    def measure(task):
        task.keep({"timings": [1.0, float("nan")]})
        raise MemoryError("none left")

    assert not run_part(part(measure), tmp_path, small=True, seconds=9.0)
    values = read(tmp_path, "fake")
    assert tuple(values) == KEYS
    assert values["result"] == {"timings": [1.0, None]}
    assert values["error"] == "MemoryError: none left"
    assert "in measure" in values["traceback"]


def test_an_accelerator_is_needed_for_anything_but_a_trial(part, tmp_path):
    found = Measured("half", 0.5, 0.4, {})
    assert not run_part(part(lambda task: found), tmp_path, small=False, seconds=9.0)
    assert "no accelerator" in read(tmp_path, "fake")["error"]


def test_what_follows_the_number_cannot_lose_it(part, tmp_path):
    def extras():
        values = read(tmp_path, "fake")
        assert (values["value"], values["error"]) == (0.5, None)
        return {"profile": 1}

    found = Measured("half", 0.5, 0.4, {"timings": 2}, extras=extras)
    assert run_part(part(lambda task: found), tmp_path, small=True, seconds=9.0)
    assert read(tmp_path, "fake")["result"] == {"timings": 2, "profile": 1}


@pytest.mark.parametrize(
    ("value", "at_most", "reached"),
    [(0.5, False, True), (0.5, True, False), (0.4, True, True), (float("nan"), False, None)],
)
def test_goals(value, at_most, reached):
    assert Measured("", value, 0.4, {}, at_most).reached is reached


def test_a_part_has_its_time(part, tmp_path):
    left = []
    run_part(part(lambda task: left.append(task.seconds_left)), tmp_path, True, 9.0)
    assert 0 < left[0] < 9


# The shortest part in the full check: types are checked of all, and before a release all run.
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(
            part,
            id=part.name,
            marks=pytest.mark.slow if part.name == "attention" else pytest.mark.release,
        )
        for part in PARTS
    ],
)
def test_the_small_form(part, tmp_path):
    began = time.monotonic()
    outcome = run(part, tmp_path, small=True, seconds=300.0, left=1800.0)
    assert outcome["error"] is None, outcome["traceback"]
    assert tuple(read(tmp_path, part.name)) == KEYS
    assert outcome["headline"]
    assert outcome["result"]
    assert outcome["reached"] is None
    assert outcome["compile_seconds"] > 0
    assert 0 < outcome["seconds"] < time.monotonic() - began
    if part.name == "calibration":
        assert load_hardware(tmp_path / "hardware.toml").calibration.dtype == "bfloat16"


@pytest.mark.slow
def test_the_plan_identifies_a_device():
    """With the groups that come last left out as well; unseen models are neither all small nor the largest."""
    from benchmarks.accelerator.calibration import accelerator_plan

    truth = Hardware(
        2e-5, 2.5e-5, 2e-7, 4e12, 6e14, 3.0, 5e-5,
        matrix_seconds=5e-6, logit_seconds=1e-11, cache_slowdown=1.5,
    )  # fmt: skip
    plan = accelerator_plan()
    for count in (3, len(plan.groups)):
        operations = [o for group in plan.groups[:count] for o in group.operations]
        assert len(set(operations)) == len(operations)
        unseen = unseen_models(operations)
        assert unseen == {"w512-l12-v8192", "w1024-l16-v32000"}
        how = dict(confidence=0.9, repetitions=5, threads=0, dtype="bfloat16", device="simulated")
        rows = [record_of(o, Interval(1, 1, 1), plan.scale, unseen, **how) for o in operations]
        exact = predicted_seconds(truth, [timing_of(row) for row in rows], Precision(2.0, 2.0))
        noisy = exact * np.exp(0.03 * np.random.default_rng(0).normal(size=len(rows)))
        rows = [
            dataclasses.replace(row, seconds=s, seconds_low=s * 0.98, seconds_high=s * 1.02)
            for row, s in zip(rows, noisy.tolist())
        ]
        fitted = fit_device(rows, starts=16, draws=16, confidence=0.9)
        assert fitted.unseen.median < 0.06
        assert fitted.everything.median < 0.04
        for name, tolerance in {
            "bytes_per_second": 0.06, "flops_per_second": 0.3, "layer_seconds": 0.05
        }.items():  # fmt: skip
            assert getattr(fitted.hardware, name) == pytest.approx(
                getattr(truth, name), rel=tolerance
            )
