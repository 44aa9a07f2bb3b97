"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.records import read_json, read_table, write_text
from sdsl_jax.report.evidence_figures import EVIDENCE_CAPTIONS
from sdsl_jax.report.figures import CAPTIONS
from sdsl_jax.report.inputs import Records, read_records
from sdsl_jax.report.style import NAMES


def write_report(
    folder: Path, name: str, settings: str, stages: dict[str, Any], versions: dict[str, str]
) -> None:
    """Writes `folder/report.html` from the records and figures in the folder.

    Args:
      folder: of the study.
      name: of the study.
      settings: its resolved TOML.
      stages: seconds and time of completion of every stage.
      versions: of the program and its libraries.
    """
    records = read_records(folder / "records")
    checks = read_json(folder / "records" / "checks.json")["decoder_self_check"]
    # Figures of the evidence are there only if the records hold what they show.
    shown = [
        *CAPTIONS,
        *(key for key in EVIDENCE_CAPTIONS if (folder / "figures" / f"{key}.png").exists()),
    ]
    images = {
        key: base64.b64encode((folder / "figures" / f"{key}.png").read_bytes()).decode()
        for key in shown
    }
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=name,
            settings=settings,
            stages=stages,
            versions=versions,
            records=records,
            best_law=records.best_law,
            clock=read_table(folder / "records", "clock"),
            images=images,
            captions=CAPTIONS,
            evidence=records.evidence,
            evidence_captions=EVIDENCE_CAPTIONS,
            estimators=_estimators(records),
            self_check=_self_check(checks),
            findings=_findings(records),
            interval=next(
                key
                for key in records.fits["loss_law"]
                if key.startswith("interval_") and key != "interval_basis"
            ),
        )
    )
    write_text(folder / "report.html", page)


def evidence_section(evidence: dict[str, Any], images: dict[str, str]) -> str:
    """The section for sceptics by itself: of the contents of `evidence.json`, and of figures as base64 by their names."""
    template = _environment().get_template("evidence.html.j2")
    return template.render(evidence=evidence, images=images, evidence_captions=EVIDENCE_CAPTIONS)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: resources.files("sdsl_jax.report").joinpath(name).read_text("utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": short_count,
        "named": _named,
        "number": _number,
        "percent": _percent,
    }
    return environment


def _named(key: str) -> str:
    return NAMES.get(key, key)


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return (
        f"{value:.{digits}g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:,.{digits}f}"
    )


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def _estimators(records: Records) -> list[dict[str, Any]]:
    """α of every pair by every estimator, one row per pair."""
    lookaheads = sorted({r.lookahead for r in records.survival})
    keys = [("teacher_forced_text", 0), ("teacher_forced_samples", 0)]
    keys += [(name, g) for name in ("decoded_per_test", "decoded_tar") for g in lookaheads]
    by_pair: dict[tuple[str, str], dict[tuple[str, int], Any]] = {}
    for row in records.acceptance:
        by_pair.setdefault((row.draft_id, row.target_id), {})[row.estimator, row.lookahead] = row
    return [
        {"draft": draft, "target": target, "cells": [(key, rows.get(key)) for key in keys]}
        for (draft, target), rows in by_pair.items()
    ]


def _self_check(checks: dict[str, float | None]) -> dict[str, float]:
    """How the self-checks of all runs are distributed; they should be standard normal."""
    values = np.asarray([value for value in checks.values() if value is not None])
    return {
        "runs": len(values),
        "mean": float(values.mean()) if len(values) else math.nan,
        "deviation": float(values.std()) if len(values) else math.nan,
        "largest": float(np.abs(values).max()) if len(values) else math.nan,
    }


def _findings(records: Records) -> list[str]:
    """What the records say, in sentences."""
    found = []
    law = NAMES[records.best_law]
    for entry in records.codesign:
        if entry["acceptance_law"] != records.best_law:
            continue
        target = f"target {short_count(entry['target_params'])}"
        if entry["lookahead"] is None:
            found.append(
                f"With {NAMES[entry['cost_model']]}, the {law} has no finite optimum for the {target}: it reaches 1."
            )
            continue
        if not entry["speculate"]:
            entry_cost = _cost_sentence(records, entry)
            found.append(
                f"With {NAMES[entry['cost_model']]}, speculation does not pay for the {target} at this scale: {entry_cost}"
            )
            continue
        low, high = entry["indifference_1pct"]
        where = (
            "inside the range of sizes considered"
            if entry["interior"]
            else "at the edge of the sizes considered"
        )
        found.append(
            f"With {NAMES[entry['cost_model']]}, the best draft of the {target} has {short_count(entry['draft_params'])} "
            f"parameters ({entry['target_params'] / entry['draft_params']:.0f} times fewer than the target), {where}; any size "
            f"from {short_count(low)} to {short_count(high)} is within 1% of its speed-up of "
            f"{entry['speedup']:.2f} at γ = {entry['lookahead']:.1f}."
        )
    errors = ", ".join(
        f"{NAMES[fit['law']]} {fit['left_out_rmse']:.4f}" for fit in records.fits["acceptance_laws"]
    )
    found.append(
        f"On left-out drafts the acceptance laws err by (root mean square): {errors}. The tables use the {law}."
    )
    return found


def _cost_sentence(records: Records, entry: dict[str, Any]) -> str:
    landscape = records.landscapes[records.codesign.index(entry)]
    cheapest = min(landscape["curve"]["cost"])
    drafting = [gamma > 0 for gamma in landscape["map"]["lookahead"]]
    best = max(
        s for row in landscape["map"]["speedup"] for s, drafts in zip(row, drafting) if drafts
    )
    return (
        f"the cheapest draft step costs {cheapest:.2f} of a target step and a verify pass {entry['verify_cost']:.2f}; "
        f"the best lookahead above 0 on the map reaches only {best:.2f} times plain decoding."
    )
