"""The stages of a study: what each depends on, and what it makes."""

from __future__ import annotations

from typing import NamedTuple

STAGES = (
    "train",
    "measure",
    "conditions",
    "fit",
    "codesign",
    "calibrate",
    "clock",
    "evidence",
    "figures",
    "report",
)


class Stage(NamedTuple):
    """What a stage depends on and what it makes: sections of the settings, and files relative to the study's folder."""

    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_RECORDS = tuple(
    f"records/{n}.csv" for n in ("models", "acceptance", "survival", "expected", "latency")
)
_CONDITIONS = tuple(f"records/{n}.csv" for n in ("conditions", "other_models", "losses"))
# What decoders did on the clock. The clock of `codesign`, of one draft for each target, has a table
# of its own.
_TIMED = tuple(f"records/{n}.csv" for n in ("runs", "timed_models"))
_SOLVED = (
    "records/fits.json",
    "records/codesign.json",
    "records/landscapes.json",
    "records/clock.csv",
)
_FIGURES = ("loss", "acceptance", "predicted", "speedup", "optimiser", "survival", "latency")
_FIGURE_FILES = tuple(f"figures/{name}.png" for name in _FIGURES)
PLAN: dict[str, Stage] = {
    "train": Stage(("seed", "data", "family", "ladder", "training"), (), ("records/models.csv",)),
    "measure": Stage(
        ("seed", "data", "family", "measure"),
        ("records/models.csv",),
        (*_RECORDS[1:], "records/events.parquet", "records/checks.json"),
    ),
    "conditions": Stage(
        ("seed", "data", "family", "measure", "conditions"), ("records/models.csv",), _CONDITIONS
    ),
    "fit": Stage(
        ("seed", "data", "family", "fit"),
        (*_RECORDS[:2], "records/latency.csv"),
        ("records/fits.json",),
    ),
    "codesign": Stage(
        ("seed", "data", "fit", "measure", "codesign"),
        ("records/fits.json", "records/models.csv", "records/survival.csv"),
        _SOLVED[1:],
    ),
    "calibrate": Stage(("seed", "clock"), (), ("records/timings.csv",)),
    "clock": Stage(("seed", "data", "family", "measure", "clock"), ("records/models.csv",), _TIMED),
    "evidence": Stage(
        ("seed", "data", "family", "measure", "fit", "codesign", "holdout"),
        (
            *_RECORDS,
            *_CONDITIONS,
            *_TIMED,
            "records/fits.json",
            "records/codesign.json",
            "records/checks.json",
        ),
        ("records/evidence.json",),
    ),
    "figures": Stage((), (*_RECORDS, *_SOLVED, "records/evidence.json"), _FIGURE_FILES),
    "report": Stage(
        (
            "name",
            "seed",
            "data",
            "family",
            "ladder",
            "training",
            "measure",
            "conditions",
            "fit",
            "codesign",
            "clock",
            "holdout",
        ),
        (*_RECORDS, *_SOLVED, "records/evidence.json", "records/checks.json", *_FIGURE_FILES),
        ("report.html",),
    ),
}
