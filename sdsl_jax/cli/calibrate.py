"""`sdsl calibrate`: the coefficients of this machine, from timed decoding."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.table import Column
from tyro.conf import arg

from sdsl_jax.cli.arguments import Flag, whole_numbers
from sdsl_jax.cli.calibrate_timings import UNITS, engines_of_table, print_engines
from sdsl_jax.cli.terminal import print_json, say, shown_progress, standard_console, table
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.fitting.calibration import DeviceFit
    from sdsl_jax.records import TimingRecord

_CONFIDENCE = 0.9
# Timed repetitions, starts of a fit, and bootstrap resamples: for a full calibration and a quick one.
_REPETITIONS, _STARTS, _DRAWS = (9, 4), (32, 16), (64, 32)


def calibrate(
    out: Annotated[Path | None, arg(metavar="FILE.toml")] = None,
    records: Annotated[Path | None, arg(metavar="DIR")] = None,
    quick: Flag = False,
    threads: Annotated[int | None, arg(metavar="N")] = None,
    batch: Annotated[str, arg(metavar="ROWS[,ROWS...]")] = "1,4,16",
    dtype: Annotated[Literal["float32", "bfloat16"] | None, arg(metavar="float32|bfloat16")] = None,
    name: Annotated[str, arg(metavar="NAME")] = "",
    seed: int = 0,
    timings: Annotated[Path | None, arg(metavar="FILE.csv")] = None,
    hardware: Annotated[str, arg(metavar="NAME|FILE.toml")] = "",
    engine: Annotated[str, arg(metavar="NAME")] = "",
    json: Flag = False,
) -> None:
    """What does a forward pass cost on this machine, or in your engine?

    The command times plain steps, verify passes and whole rounds of models with random weights, and
    fits the coefficients of a device to the times. A third of the models is held out to test how
    well the others predict them. Run nothing else on the machine meanwhile.

    With --timings it times nothing: it fits a serving engine (vLLM, SGLang, llama.cpp, TensorRT-LLM)
    to a table of step times, tests the fit on rows left out of it, and says which coefficients the
    table cannot tell.

    Args:
        out: File to write the device to; if left out, the device is only printed.
        records: New folder for the timings (timings.csv).
        quick: Time fewer models and repetitions: a minute or two on two cores instead of six.
            Compiled programs are kept.
        threads: Threads that a computation may use on a CPU; 1 by default, which is fastest for
            models of up to a million parameters and varies least. An accelerator uses none.
        batch: Batch sizes to time.
        dtype: Data type of weights and caches; by default float32 on a CPU and bfloat16 elsewhere.
        name: Name of the device in the file; the name of the file if left out.
        seed: Seed of weights, prompts, samples and the order of the runs.
        timings: A table with one forward pass per row: model (or its shape), batch, tokens_per_row,
            context, milliseconds, and engine if there are several (docs/hardware.md).
        hardware: With --timings, the device that was timed, such as h100. Its coefficients hold
            where the table cannot tell them.
        engine: With --timings, a name for the engine, or which of several to fit.
        json: Print one JSON object.
    """
    if timings is not None:
        given = [records, threads, dtype, quick or None, name or None, seed or None]
        require(
            batch == "1,4,16" and all(value is None for value in given),
            "--timings reads times that were taken already; it goes with --hardware, --engine, --out and --json only.",
        )
        _require_writable(out)
        fitted_engines = engines_of_table(timings, hardware, engine, out)
        if json:
            print_json(fitted_engines)
        else:
            print_engines(standard_console(), fitted_engines)
        return
    require(
        not hardware and not engine,
        "--hardware and --engine belong to --timings; without it this machine is timed.",
    )
    batches = whole_numbers(batch, "--batch")
    require(0 <= seed < 2**32, f"the seed is {seed}; it must lie in [0, 2**32).")
    _require_writable(out)
    if records is not None:
        empty = not records.exists() or (records.is_dir() and not any(records.iterdir()))
        require(
            empty,
            f"the folder for the records, {records}, exists and is not empty; give a new one.",
        )
    # Before anything else uses jax: the threads of a CPU are fixed when its backend is created.
    from sdsl_jax.measurement.threads import computing_threads, limit_threads

    limit_threads(1 if threads is None else threads)

    from sdsl_jax.fitting.calibration import fit_device, hardware_file, today
    from sdsl_jax.hardware import save_hardware
    from sdsl_jax.measurement.calibration import (
        check_batches,
        device_scale,
        operations,
        time_operations,
    )
    from sdsl_jax.records import write_table

    batches = check_batches(batches)
    scale, usual = device_scale()
    with shown_progress(json) as progress:
        rows = time_operations(
            operations(scale, batches, quick),
            scale,
            dtype=dtype or usual,
            repetitions=_REPETITIONS[quick],
            confidence=_CONFIDENCE,
            threads=computing_threads(),
            seed=seed,
            progress=progress,
        )
    if records is not None:
        write_table(records, "timings", rows)
    fitted = fit_device(
        rows, starts=_STARTS[quick], draws=_DRAWS[quick], confidence=_CONFIDENCE, seed=seed
    )
    if out is not None:
        save_hardware(hardware_file(name or out.stem, rows, fitted, today()), out)
    answer = _answer(rows, fitted, out)
    if json:
        print_json(answer)
    else:
        _print(standard_console(), answer)


def _require_writable(out: Path | None) -> None:
    """Refuses a place where no hardware file can be written."""
    if out is None:
        return
    require(out.suffix == ".toml", f"the hardware file is {out}; its name must end in .toml.")
    require(out.absolute().parent.is_dir(), f"cannot write {out}: its folder does not exist.")
    require(not out.is_dir(), f"cannot write {out}: it is a folder.")
    from sdsl_jax.records import require_replaceable

    require_replaceable(out)


def _answer(rows: list[TimingRecord], fitted: DeviceFit, out: Path | None) -> dict[str, Any]:
    first = rows[0]
    return {
        "device": first.device,
        "dtype": first.dtype,
        "threads": first.threads,
        "timings": len(rows),
        "models": len({name for row in rows for name in (row.target_id, row.draft_id) if name}),
        "fastest_seconds": min(row.seconds for row in rows),
        "slowest_seconds": max(row.seconds for row in rows),
        "confidence": _CONFIDENCE,
        "coefficients": {
            key: {
                "estimate": i.estimate,
                "low": i.low,
                "high": i.high if math.isfinite(i.high) else None,
            }
            for key, i in fitted.intervals.items()
        },
        "condition_number": fitted.condition_number,
        "noise": fitted.noise,
        "unseen": fitted.unseen._asdict()
        | {k: e._asdict() for k, e in fitted.unseen_kinds.items()},
        "all": fitted.everything._asdict(),
        "file": None if out is None else str(out),
        "warnings": list(fitted.warnings),
        "timings_table": [
            dataclasses.asdict(row) | {"predicted_seconds": float(p)}
            for row, p in zip(rows, fitted.predicted)
        ],
    }


def _number(value: float) -> str:
    """A number with three digits; 0 or ∞ where the timings show no effect or no bound."""
    if value > 1e12:
        return "∞"
    return "0" if abs(value) < 5e-4 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _print(console: Console, answer: dict[str, Any]) -> None:
    threads = f", {answer['threads']} thread{'s' * (answer['threads'] != 1)}" * (
        answer["threads"] > 0
    )
    say(
        console,
        f"{answer['device']}{threads}, {answer['dtype']}: {answer['timings']} operations of {answer['models']} models, "
        f"{_number(1e6 * answer['fastest_seconds'])} to {_number(1e6 * answer['slowest_seconds'])} µs each, "
        f"noise of a median ± {answer['noise']:.1%}",
    )
    rows = []
    for key, value in answer["coefficients"].items():
        unit, factor, meaning = UNITS[key]
        low, high = (
            _number(math.inf if value[end] is None else factor * value[end])
            for end in ("low", "high")
        )
        estimate = _number(factor * value["estimate"])
        rows.append((key, estimate, f"{low} – {high}", unit, meaning))
    words = (Column("unit", no_wrap=True), Column("", overflow="fold"))
    console.print(table("Coefficients", ("", "estimate", "90% interval", *words), rows))
    unseen = answer["unseen"]
    labels = {"step": "plain steps", "verify": "verify passes", "round": "rounds"}
    lines = [("held-out models, fitted to the others", unseen)]
    lines += [(f"   {label}", unseen[key]) for key, label in labels.items() if key in unseen]
    lines += [("all models, fitted to all", answer["all"])]
    errors = table(
        "|predicted / measured − 1|",
        ("", "timings", "median", "worst"),
        [
            (label, str(e["timings"]), f"{e['median']:.1%}", f"{e['worst']:.1%}")
            for label, e in lines
        ],
    )
    console.print(errors)
    c = {key: value["estimate"] for key, value in answer["coefficients"].items()}
    element = 2 if answer["dtype"] == "bfloat16" else 4
    free = c["layer_seconds"] * c["bytes_per_second"] / element
    ridge = c["flops_per_second"] / c["bytes_per_second"] * element / 2
    when = (
        "every pass is limited by arithmetic"
        if ridge <= 1
        else f"passes over {ridge:.2g} or more tokens are limited by arithmetic"
    )
    say(
        console,
        f"The machine reads weights and caches at {_number(c['bytes_per_second'] / 1e9)} GB/s and computes at most "
        f"{_number(c['flops_per_second'] / 1e9)} GFLOP/s:\n"
        f"{when}. The overhead of a layer, {c['layer_seconds'] * 1e6:.3g} µs, is the time to read "
        f"{short_count(free)} parameters.\nSmaller layers are mostly overhead, so a small draft should be shallow.",
    )
    for text in answer["warnings"]:
        say(console, f"warning: {text}")
    if answer["file"] is not None:
        say(
            console,
            f"written to {answer['file']}; give this path wherever a command asks for hardware.",
        )
    else:
        say(
            console,
            "not kept: --out FILE.toml writes a file to give wherever a command asks for hardware.",
        )
