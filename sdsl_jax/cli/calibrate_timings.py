"""`sdsl calibrate --timings`: the coefficients of a serving engine, from a table of its step times."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column

from sdsl_jax.cli.terminal import say, table
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.fitting.step_times import StepTimes, StepTimesFit
    from sdsl_jax.hardware import Engine, HardwareFile

# More rows than this are not listed one by one.
_LISTED = 40
# By coefficient: the unit in a table, the factor to it, and the meaning.
UNITS = {
    "pass_seconds": ("µs per pass", 1e6, "overhead of any pass"),
    "layer_seconds": ("µs per layer", 1e6, "overhead of each layer of a pass"),
    "matrix_seconds": ("µs per layer", 1e6, "more of it, for several tokens"),
    "wide_seconds": ("µs per layer", 1e6, "more of it, for several tokens of a row"),
    "token_seconds": ("µs per token", 1e6, "overhead of each token in each row"),
    "logit_seconds": ("ns per logit", 1e9, "overhead of each vocabulary entry per token"),
    "round_seconds": ("µs per round", 1e6, "overhead of a round, beyond its passes"),
    "bytes_per_second": ("GB/s", 1e-9, "reading weights and caches"),
    "flops_per_second": ("GFLOP/s", 1e-9, "arithmetic of wide passes"),
    "cache_slowdown": ("", 1.0, "time of a cache byte over that of a weight byte"),
    "sharpness": ("", 1.0, "1: reads and computes in turn; 16: at the same time"),
}


def engines_of_table(timings: Path, hardware: str, engine: str, out: Path | None) -> dict[str, Any]:
    """The engines of a table of step times, fitted, and written beside the device if asked for.

    Args:
      timings: The table.
      hardware: The device of the times, by name or file.
      engine: Name for the one engine of the table, or the one among several that is wanted; all of
        them if empty.
      out: File for the device with these engines.

    Raises:
      SdslError: The table or the device cannot be read, or has no such engine.
    """
    from sdsl_jax.fitting.step_times import fit_step_times, read_step_times
    from sdsl_jax.hardware import load_hardware, save_hardware

    tables = read_step_times(timings)
    require(
        hardware,
        "--timings needs the device that was timed, for what its rows cannot tell; give --hardware, such as h100.",
    )
    device = load_hardware(hardware)
    if engine and len(tables) > 1:
        chosen = [name for name in tables if engine in (name, _slug(name))]
        require(
            chosen,
            f"{timings} has no engine {engine!r}; it has {', '.join(map(repr, tables))}.",
        )
        tables = {name: tables[name] for name in chosen}
    fits = {
        name: fit_step_times(t.timings, t.precision, device.hardware) for name, t in tables.items()
    }
    named = {name: engine if engine and len(tables) == 1 else _slug(name) for name in tables}
    found = [_engine(named[name], name, tables[name], fits[name], timings.name) for name in tables]
    if out is not None:
        others = tuple(e for e in device.engines if e.name not in named.values())
        save_hardware(dataclasses.replace(device, engines=(*others, *found)), out)
    return {
        "hardware": device.name,
        "timings": str(timings),
        "file": None if out is None else str(out),
        "engines": {
            named[name]: _answer(name, tables[name], fits[name], device) for name in tables
        },
    }


def _slug(label: str) -> str:
    """A short name from a label: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "engine"


def _engine(name: str, label: str, rows: StepTimes, fit: StepTimesFit, file: str) -> Engine:
    from sdsl_jax.hardware import Engine

    notes = [
        "Only "
        + ", ".join(fit.fitted)
        + " come from step times; everything else is the device's, overheads of rounds and links included.",
        *fit.warnings,
    ]
    if "no row feeds" in fit.not_told.get("wide_seconds", ""):
        notes.append(
            "No step time feeds several tokens to a row: a verify pass is taken to start as a step does, and each of its tokens "
            "to take as long as a row."
        )
    return Engine(
        name=name,
        coefficients={key: float(getattr(fit.hardware, key)) for key in fit.fitted},
        description=label,
        source=f"sdsl calibrate --timings {file}",
        measured=True,
        weight_bytes=float(rows.precision.weight_bytes),
        cache_bytes=float(rows.precision.cache_bytes),
        timings=len(rows.timings),
        models=len(set(rows.models)),
        unseen_median_error=round(fit.unseen.median, 4) if fit.unseen.rows else 0.0,
        unseen_worst_error=round(fit.unseen.worst, 4) if fit.unseen.rows else 0.0,
        notes=tuple(notes),
    )


def _answer(label: str, rows: StepTimes, fit: StepTimesFit, device: HardwareFile) -> dict[str, Any]:
    return {
        "label": label,
        "models": sorted(set(rows.models)),
        "weight_bytes": float(rows.precision.weight_bytes),
        "cache_bytes": float(rows.precision.cache_bytes),
        "coefficients": {key: float(getattr(fit.hardware, key)) for key in fit.fitted},
        "not_told": {
            key: {"value": float(getattr(device.hardware, key)), "why": why}
            for key, why in fit.not_told.items()
        },
        "left_out": fit.left_out,
        "unseen": fit.unseen._asdict(),
        "all": fit.everything._asdict(),
        "warnings": list(fit.warnings),
        "rows": [
            {
                "model": model,
                "batch": t.batch,
                "tokens_per_row": t.tokens,
                "context": t.context,
                "seconds": t.seconds,
                "predicted_seconds": float(predicted),
                "unseen_seconds": float(unseen) if unseen == unseen else None,
            }
            for model, t, predicted, unseen in zip(
                rows.models, rows.timings, fit.predicted, fit.unseen_predicted
            )
        ],
    }


def print_engines(console: Console, answer: dict[str, Any]) -> None:
    """Prints the fitted engines, what the table could not tell, and how well left-out rows came out."""
    for name, engine in answer["engines"].items():
        _print_engine(console, name, engine, answer["hardware"])
    if answer["file"] is None:
        say(console, "not kept: --out FILE.toml writes the device with its engines.")
    else:
        first, engine = next(iter(answer["engines"].items()))
        quantised = engine["weight_bytes"] != 2.0
        how = f" --weight-bytes {engine['weight_bytes']:g}" if quantised else ""
        say(
            console,
            f"written to {answer['file']}; use it by --hardware {answer['file']} --engine {first}{how}.",
        )


def _print_engine(console: Console, name: str, engine: dict[str, Any], hardware: str) -> None:
    rows = engine["rows"]
    say(
        console,
        f"{name}: {len(rows)} step times of {', '.join(engine['models'])} ({engine['label']})",
    )
    unseen = engine["unseen"]
    how = (
        "two halves with loads alike, each predicted from the other"
        if engine["left_out"] == "half"
        else "each row predicted from all others"
    )
    if unseen["rows"]:
        say(
            console,
            f"Left-out rows ({how}) are off by {unseen['median']:.1%} in the median and {unseen['worst']:.1%} at worst.",
        )
    else:
        say(console, "Two rows are too few to leave one out: nothing tests this fit.")
    if len(rows) <= _LISTED:
        words = (Column("model", overflow="fold"), "batch", "tokens", "context")
        listed = [
            (
                row["model"],
                f"{row['batch']:g}",
                f"{row['tokens_per_row']:g}",
                f"{row['context']:g}",
                f"{1e3 * row['seconds']:.4g}",
                "–" if row["unseen_seconds"] is None else f"{1e3 * row['unseen_seconds']:.4g}",
                "–"
                if row["unseen_seconds"] is None
                else f"{row['unseen_seconds'] / row['seconds'] - 1:+.1%}",
            )
            for row in rows
        ]
        console.print(table(None, (*words, "measured ms", "left out ms", "error"), listed))
    told = []
    for key, value in engine["coefficients"].items():
        unit, factor, meaning = UNITS[key]
        told.append((key, f"{factor * value:.4g}", unit, meaning))
    meaning_of = (Column("unit", no_wrap=True), Column("", overflow="fold"))
    console.print(table("Coefficients that the rows tell", ("", "value", *meaning_of), told))
    kept = []
    for key, entry in engine["not_told"].items():
        unit, factor, _ = UNITS[key]
        kept.append((key, f"{factor * entry['value']:.4g}", unit, entry["why"]))
    why = (Column("unit", no_wrap=True), Column("why", overflow="fold"))
    console.print(
        table(f"Coefficients that they do not tell, as in {hardware}", ("", "value", *why), kept)
    )
    for text in engine["warnings"]:
        say(console, f"warning: {text}")
