"""`sdsl calibrate`: what it refuses, what it writes and shows, and a real one."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sdsl_jax.fitting.calibration import fit_device, hardware_file
from sdsl_jax.hardware import load_hardware, save_hardware
from sdsl_jax.measurement.calibration import CPU, operations, record_of, unseen_models
from sdsl_jax.records import read_table
from sdsl_jax.statistics import Interval

# The package has a function of that name.
command = importlib.import_module("sdsl_jax.cli.calibrate")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "1,x"], "--batch is '1,x'; it must be whole numbers separated by commas."),
        (["--out", "device.json"], "device.json; its name must end in .toml."),
        (["--out", "no/such/folder/device.toml"], "its folder does not exist."),
        (["--records", "."], "exists and is not empty; give a new one."),
        (["--threads", "0"], "the number of threads is 0; it must lie in [1, "),
        (["--seed", "-1"], "the seed is -1; it must lie in [0, 2**32)."),
        (["--engine", "vllm"], "--hardware and --engine belong to --timings"),
        (["--timings", "t.csv"], "t.csv"),
        (
            ["--timings", "experiments/published/step_times.csv"],
            "--timings needs the device that was timed",
        ),
        (
            ["--timings", "t.csv", "--quick"],
            "goes with --hardware, --engine, --out and --json only",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(sdsl, arguments, words):
    status, _, error = sdsl("calibrate", *arguments)
    assert status == 2
    assert words in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def fitted():
    """Made-up seconds: this is about what is written and shown."""
    ops = operations(CPU, (1, 4), quick=False)
    unseen = unseen_models(ops)

    def seconds(o) -> float:
        return (
            1e-5
            * (1 + o.target.layers + 0.3 * o.tokens * o.batch)
            * (o.tokens if o.kind == "round" else 1)
        )

    rows = [
        record_of(
            o,
            Interval(s := seconds(o), s * 0.9, s * 1.1),
            CPU,
            unseen,
            confidence=0.9,
            repetitions=4,
            threads=1,
            dtype="float32",
            device="1 x cpu, 2 cores",
        )
        for o in ops
    ]
    return rows, fit_device(rows, starts=4, draws=8, confidence=0.9)


def test_what_is_written_is_read_back_and_shown(fitted, tmp_path, capsys):
    rows, device = fitted
    out = tmp_path / "mine.toml"
    save_hardware(hardware_file("mine", rows, device, "2026-11-25"), out)
    file = load_hardware(out)
    assert file.name == "mine"
    assert file.measured
    assert file.devices == "1 x cpu, 2 cores, 1 thread"
    assert file.hardware.layer_seconds == pytest.approx(device.hardware.layer_seconds)
    assert file.calibration.timings == len(rows)
    assert file.calibration.unseen_timings == device.unseen.timings
    assert file.calibration.threads == 1
    assert len(file.notes) == len(device.warnings)
    # The medians are known to 10% only, and the file says so.
    assert any("noisy" in note for note in file.notes)
    answer = command._answer(rows, device, out)
    # No number that JSON does not have.
    assert (
        json.loads(json.dumps(answer, allow_nan=False))["unseen"]["timings"]
        == device.unseen.timings
    )
    console = Console(width=124)
    command._print(console, answer)
    shown = capsys.readouterr().out
    for words in (
        "layer_seconds",
        "µs per layer",
        "GB/s",
        "held-out models",
        "arithmetic",
        "mine.toml",
        "warning: the t",
    ):
        assert words in shown
    command._print(console, answer | {"file": None})
    assert "--out FILE.toml" in capsys.readouterr().out


@pytest.mark.release
def test_a_quick_calibration_of_this_machine(tmp_path):
    out, records = tmp_path / "mine.toml", tmp_path / "records"
    arguments = [
        "--quick",
        "--out",
        str(out),
        "--records",
        str(records),
        "--batch",
        "1,2",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sdsl_jax.cli", "calibrate", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    file = load_hardware(out)
    rows = read_table(records, "timings")
    assert len(rows) == answer["timings"] == file.calibration.timings
    assert {row.batch for row in rows} == {1, 2}
    assert file.calibration.threads == 1
    # Whatever else runs on the machine, the order of magnitude holds.
    assert 1e8 < file.hardware.flops_per_second < 1e13
    assert file.calibration.median_error < 0.6
