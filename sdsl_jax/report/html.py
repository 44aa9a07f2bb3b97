"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import math
import re
from importlib import resources
from typing import Any, NamedTuple, TypeGuard

import jinja2
import numpy as np
from markupsafe import Markup

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.records import AcceptanceRecord, write_text
from sdsl_jax.records.codesign import CodesignEntry, CodesignLandscape
from sdsl_jax.report.charts import charts_of
from sdsl_jax.report.evidence_figures import EVIDENCE_CAPTIONS
from sdsl_jax.report.figures import CAPTIONS, figures_of
from sdsl_jax.report.style import NAMES, target_label
from sdsl_jax.report.vega import CONFIG, library, script_json
from sdsl_jax.report.warnings import fit_warnings, marked, optima_warnings


def write_report(
    records: StudyRecords, settings: str, stages: dict[str, Any], versions: dict[str, str]
) -> None:
    """Writes `report.html` into the folder of a study, from its records and figures.

    Charts and pictures show the same; a browser without scripts shows the pictures.

    Args:
      records: Records of the study.
      settings: Its resolved TOML.
      stages: Seconds and time of completion of every stage.
      versions: Versions of the program and its libraries.

    Raises:
      SdslError: A record is missing or damaged, or the page cannot be written.
    """
    figures = records.folder / "figures"
    # Figures of the evidence are there only if the records hold what they show.
    paths = {key: figures / f"{key}.png" for key in (*CAPTIONS, *EVIDENCE_CAPTIONS)}
    images = {
        key: base64.b64encode(path.read_bytes()).decode()
        for key, path in paths.items()
        if path.exists() or (records.has_fits and key in figures_of(records))
    }
    fits = [records.fits.loss_law, *records.fits.acceptance_laws] if records.has_fits else []
    entries = records.codesign if fits else []
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            name=records.config.name,
            settings=settings,
            stages=stages,
            versions=versions,
            records=records,
            models=records.models if fits else records.trained,
            optima=marked(entries),
            optima_warnings=optima_warnings(entries),
            fit_warnings=fit_warnings(fits),
            costs={"flops": "FLOPs", "measured": "measured"},
            images=images,
            charts=charts_of(records),
            chart_config=CONFIG,
            library=lambda: Markup(library()),
            captions=CAPTIONS,
            evidence=records.document("evidence", Evidence) or Evidence(),
            evidence_captions=EVIDENCE_CAPTIONS,
            estimators=_estimators(records),
            self_check=_self_check(records.self_checks),
            findings=_findings(records),
            timing_notes=records.timing_notes,
            confidence=records.config.measure.confidence,
        )
    )
    write_text(records.folder / "report.html", page)


def environment(package: str = "sdsl_jax.report") -> jinja2.Environment:
    """The templates of a package of pages, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: resources.files(package).joinpath(name).read_text("utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": short_count,
        "named": lambda key: NAMES.get(key, key),
        "number": _number,
        "percent": _percent,
        "fixed": _fixed,
        "fields": vars,
        "slug": _slug,
        "script_json": script_json,
        "first_clause": lambda text: re.split(r"[.:;] ", text, maxsplit=1)[0].removesuffix("."),
        "outline": _outline,
    }
    environment.tests["known"] = _is_known
    return environment


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _number(value: float | None, digits: int = 3) -> str:
    if not _is_known(value):
        return "–"
    ordinary = 1e-3 <= abs(value) < 1e5
    return _minus(f"{value:,.{digits}f}" if ordinary else f"{value:.{digits}g}")


def _percent(value: float | None, digits: int = 1) -> str:
    return _minus(f"{100 * value:.{digits}f}%") if _is_known(value) else "–"


def _fixed(value: float | None, digits: int = 3) -> str:
    return _minus(f"{value:.{digits}f}") if _is_known(value) else "–"


def _minus(text: str) -> str:
    """A number with a sign as wide as a plus, which no line breaks after."""
    return text.replace("-", "−")


def _slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


class Section(NamedTuple):
    """A heading of the page: its anchor, its text as HTML, and the headings below it."""

    anchor: str
    title: Markup
    parts: list[tuple[str, Markup]]


def _outline(page: str) -> list[Section]:
    """The headings of a page that have an anchor, for its list of contents."""
    sections: list[Section] = []
    for level, anchor, title in re.findall(r'<h([23]) id="([^"]+)">(.*?)</h', page):
        if level == "2":
            sections.append(Section(anchor, Markup(title), []))
        else:
            sections[-1].parts.append((anchor, Markup(title)))
    return sections


class _Pair(NamedTuple):
    """α of one pair in several columns."""

    draft: str
    target: str
    alphas: list[AcceptanceRecord | None]


class _Estimators(NamedTuple):
    """A table of α: of one way to measure it, at several lookaheads, or of the exact ones."""

    caption: str
    columns: list[str]
    rows: list[_Pair]


def _estimators(records: StudyRecords) -> list[_Estimators]:
    by_pair: dict[tuple[str, str], dict[tuple[str, int], AcceptanceRecord]] = {}
    for row in records.acceptance if records.has_fits else records.measured_acceptance:
        by_pair.setdefault((row.draft_id, row.target_id), {})[row.estimator, row.lookahead] = row

    def table(caption: str, columns: dict[str, tuple[str, int]]) -> _Estimators:
        rows = [
            _Pair(*pair, [found.get(key) for key in columns.values()])
            for pair, found in by_pair.items()
            if found.keys() & columns.values()
        ]
        return _Estimators(caption, list(columns), rows)

    exact = {
        "held-out text": "teacher_forced_text",
        "target's own samples": "teacher_forced_samples",
    }
    lookaheads = sorted({r.lookahead for r in records.survival})
    tables = [table("exact", {name: (key, 0) for name, key in exact.items()})]
    tables += [
        table(NAMES[key], {f"γ\u00a0=\u00a0{g}": (key, g) for g in lookaheads})
        for key in ("decoded_per_test", "decoded_tar")
    ]
    return [one for one in tables if one.rows]


class _Scores(NamedTuple):
    """How the self-checks of all runs are distributed."""

    runs: int
    mean: float
    deviation: float
    largest: float


def _self_check(checks: dict[str, float | None]) -> _Scores:
    values = np.asarray([value for value in checks.values() if value is not None])
    if not len(values):
        return _Scores(0, math.nan, math.nan, math.nan)
    largest = float(np.abs(values).max())
    return _Scores(len(values), float(values.mean()), float(values.std()), largest)


def _findings(records: StudyRecords) -> list[str]:
    """What the records say, in sentences; what to do comes first."""
    evidence = records.document("evidence", Evidence)
    raced = evidence.race.results if evidence and evidence.race else []
    races = [f"In the race at {result}" for result in raced]
    if not records.has_fits:
        return [
            *races,
            "No law is fitted: no draft of the study was trained on the text alone with all ids.",
        ]
    law = NAMES[records.codesign[0].acceptance_law]
    sentences = [
        _finding(entry, landscape, law)
        for entry, landscape in zip(records.codesign, records.landscapes)
        if entry.acceptance_law == records.codesign[0].acceptance_law
    ]
    errors = ", ".join(
        f"{NAMES[fit.law]} {fit.left_out_rmse:.4f}" for fit in records.fits.acceptance_laws
    )
    return [
        *races,
        *sentences,
        f"Root mean square errors of the acceptance laws on left-out drafts: {errors}. The tables use the {law}.",
    ]


def _finding(entry: CodesignEntry, landscape: CodesignLandscape, law: str) -> str:
    target, costs = target_label(entry.target_params), NAMES[entry.cost_model]
    if entry.lookahead is None or entry.speedup is None:
        return f"With {costs}, there is no finite optimum for the {target}: the {law} reaches an acceptance of 1."
    if not entry.speculate or entry.draft_params is None:
        drafting = np.asarray(landscape.map.lookahead) > 0
        best = float(np.asarray(landscape.map.speedup)[:, drafting].max())
        return (
            f"With {costs}, speculation does not pay for the {target} at this scale: the best lookahead above 0 on the map "
            f"reaches only {best:.2f} times plain decoding. The cheapest draft step costs {min(landscape.curve.cost):.2f} of a "
            f"target step, and a verify pass {entry.verify_cost:.2f}."
        )
    low, high = entry.indifference_1pct
    where = "inside the range" if entry.interior else "at the edge of the range"
    return (
        f"With {costs}, the best draft for the {target} has {short_count(entry.draft_params)} parameters and drafts "
        f"{entry.lookahead:.1f} tokens per round: a speed-up of {entry.speedup:.2f}. Any size from {short_count(low)} to "
        f"{short_count(high)} is within 1% of that. The best draft is {entry.target_params / entry.draft_params:.0f} times "
        f"smaller than the target, {where} of sizes considered."
    )
