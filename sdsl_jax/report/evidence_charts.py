"""Interactive charts of the evidence: those whose points one wants to name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.evidence.clock import Clock
from sdsl_jax.evidence.clock_sizes import ClockSizes
from sdsl_jax.evidence.common import Estimate
from sdsl_jax.evidence.dependence import Dependence
from sdsl_jax.evidence.fit_quality import Residuals
from sdsl_jax.evidence.kinds import Kinds
from sdsl_jax.report.chart_parts import (
    PAIR,
    Axis,
    Chart,
    Row,
    Series,
    bars,
    chart,
    curves,
    equality,
    interval_tips,
    level,
    points,
    stars,
    tips,
    upper,
)
from sdsl_jax.report.condition_charts import (
    conditions_charts,
    holdout_charts,
    objectives_charts,
)
from sdsl_jax.report.figure_data import DEPENDENCE_MODELS, distinct, drafts_shown
from sdsl_jax.report.style import NAMES, target_label


def evidence_charts(records: StudyRecords) -> dict[str, list[Chart]]:
    """The charts of what the evidence holds, by the name of the figure whose panels they are.

    Args:
      records: Records of the study.

    Raises:
      SdslError: A record is missing or damaged.
    """
    evidence = records.document("evidence", Evidence) or Evidence()
    answers = {name: getattr(evidence, name) for name in _CHARTS}
    drawn = {
        name: list(_CHARTS[name](answer, records)) for name, answer in answers.items() if answer
    }
    return drawn | {"conditions": list(conditions_charts(evidence, records))}


def _by_size(sizes: Sequence[int], label: Callable[[float], str] = short_count) -> dict[int, str]:
    """What a legend calls sizes."""
    each = sorted({*sizes})
    return dict(zip(each, distinct([label(n) for n in each], each)))


def _ends(name: str, estimate: Estimate) -> Row:
    """An estimate and its interval as columns."""
    return {name: estimate.estimate, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _residuals(answer: Residuals, records: StudyRecords) -> Iterator[Chart]:
    y = Axis("measured / predicted loss − 1 (%)", percent=True)
    x = Axis("non-embedding parameters", log=True, counts=True)
    names = _by_size([p.tokens for p in answer.loss_points])
    yield _scattered(
        "residuals-loss",
        f"Loss law, residual {answer.loss_rmse:.2%} (bars: means)",
        "Relative error of the loss law for each model, against its size.",
        [
            {
                "series": names[p.tokens],
                "model_id": p.model_id,
                "size": p.params,
                "tokens": p.tokens,
                "residual": float(np.expm1(p.residual)),
            }
            for p in answer.loss_points
        ],
        [(row.size, float(np.expm1(row.mean))) for row in answer.loss_by_size],
        Series("training tokens", list(names.values())),
        (x, y),
        {"model_id": "model", "size": "size|,", "tokens": "tokens|,", "residual": "error|+.2%"},
    )
    y = Axis("measured − predicted α (probability)")
    x = Axis("draft size (non-embedding parameters)", log=True, counts=True)
    names = _by_size([p.target_params for p in answer.alpha_points], target_label)
    yield _scattered(
        "residuals-alpha",
        f"{upper(NAMES[answer.alpha_law])}, residual {answer.alpha_rmse:.4f} (bars: means)",
        "Error of the best acceptance law for each pair, against the size of the draft.",
        [
            {"series": names[p.target_params], "size": p.draft_params} | vars(p)
            for p in answer.alpha_points
        ],
        [(row.size, row.mean) for row in answer.alpha_by_draft],
        Series("target", list(names.values())),
        (x, y),
        {
            "series": "target",
            "size": "draft size|,",
            "predicted": "predicted α|.4f",
            "residual": "measured − predicted|+.4f",
        },
    )


def _scattered(
    name: str,
    title: str,
    description: str,
    rows: list[Row],
    means: list[tuple[float, float]],
    series: Series,
    axes: tuple[Axis, Axis],
    told: dict[str, str],
) -> Chart:
    """Residuals about 0 by size, with a bar at the mean of each size."""
    x, y = axes
    mean = [{"size": size, "mean": at} for size, at in means]
    place = x.of("size"), y.of("residual")
    bar = points(
        "means",
        x.of("size"),
        y.of("mean"),
        tips(size="size|,", mean="mean|+.4f"),
        colour="#333333",
        shape="stroke",
        size=500,
        strokeWidth=2.5,
    )
    dots = points("residuals", *place, tips(**told), series, toggles=True)
    return chart(
        name, title, description, {"residuals": rows, "means": mean}, [level(y, 0.0), dots, bar]
    )


def _dependence(answer: Dependence, records: StudyRecords) -> Iterator[Chart]:
    target = records.targets[-1]
    exact = {p.draft_id: p.alpha for p in answer.pairs if p.target_id == target.model_id}
    drafts = drafts_shown(records, set(exact))
    names = _by_size([d.params_nonembedding for d in drafts])
    rows = [
        {
            "series": names[draft.params_nonembedding],
            "draft_id": draft.model_id,
            "target_id": target.model_id,
            "lookahead": r.lookahead,
            "alpha": r.alpha,
            "alpha_low": r.alpha_low,
            "alpha_high": r.alpha_high,
            "exact": exact[draft.model_id],
            "tokens_per_round": r.tokens_per_round,
        }
        for draft in drafts
        for r in sorted(records.expected, key=lambda r: r.lookahead)
        if (r.draft_id, r.target_id) == (draft.model_id, target.model_id)
    ]
    x, y = (
        Axis("lookahead γ (tokens)", whole=True).of("lookahead"),
        Axis("α that gives τ(γ) (probability)"),
    )
    series = Series("draft size", list(names.values()))
    confidence = records.config.measure.confidence
    tooltip = tips(
        **PAIR,
        lookahead="γ|d",
        alpha="α that gives τ(γ)|.4f",
        **interval_tips(confidence, "alpha", ".4f"),
        exact="exact α|.4f",
        tokens_per_round="tokens per round|.3f",
    )
    yield chart(
        "dependence-alpha",
        f"Inverted acceptance, {target_label(target.params_nonembedding)} (dashed: exact)",
        "The α that the geometric formula needs at each lookahead, for each draft; independent acceptance would be level.",
        {"inverted": rows},
        [
            curves("inverted", x, y.of("exact"), series, strokeDash=[5, 3], strokeWidth=1),
            curves("inverted", x, y.of("alpha"), series),
            bars("inverted", x, y.of("alpha"), "alpha", series),
            points("inverted", x, y.of("alpha"), tooltip, series, toggles=True, size=30),
        ],
    )
    errors = [
        {
            "series": NAMES[model],
            "lookahead": row.lookahead,
            "fitted": "no" if row.judged or model == "geometric" else "yes",
            **_ends("error", row.error[model]),
        }
        for model in DEPENDENCE_MODELS
        for row in answer.by_lookahead
    ]
    error = Axis("tokens per round, model / measured − 1 (%)", percent=True)
    series, place = (
        Series("model of τ", [NAMES[m] for m in DEPENDENCE_MODELS]),
        (x, error.of("error")),
    )
    tooltip = tips(
        series="model",
        lookahead="γ|d",
        error="mean error|+.2%",
        error_low="interval from|+.2%",
        error_high="to|+.2%",
        fitted="fitted to this γ",
    )
    yield chart(
        "dependence-error",
        f"Error of τ, mean of {answer.n} pairs (hollow: fitted)",
        "Mean relative error of three models of the tokens per round at each lookahead.",
        {
            "errors": [row for row in errors if row["fitted"] == "no"],
            "errors where fitted": [row for row in errors if row["fitted"] == "yes"],
            "curves": errors,
        },
        [
            level(error, 0.0),
            curves("curves", *place, series),
            bars("curves", *place, "error", series),
            points("errors", *place, tooltip, series, toggles=True),
            points("errors where fitted", *place, tooltip, series, hollow=True),
        ],
    )


def _kinds(answer: Kinds, records: StudyRecords) -> Iterator[Chart]:
    panels = {"speedup": "FLOPs"}
    if np.isfinite([r.clock_speedup.estimate for r in answer.results]).any():
        panels["clock_speedup"] = "on the clock"
    groups = sorted({(r.kind, r.objective) for r in answer.results})
    names = {(k, o): f"{k}, {NAMES.get(o, o)}" for k, o in groups}
    x = Axis("cost of a draft step (target steps, FLOPs)", log=True).of("cost")
    for column, where in panels.items():
        rows = [
            {
                "series": names[r.kind, r.objective],
                "draft_params": r.draft_params,
                "layers": r.layers,
                "cost": r.cost,
                "alpha": r.alpha.estimate,
                **_ends("speedup", getattr(r, column)),
            }
            for r in answer.results
        ]
        y = Axis(f"best speed-up S ({where})")
        series, place = Series("kind", list(names.values())), (x, y.of("speedup"))
        tooltip = tips(
            series="kind",
            draft_params="draft size|,",
            layers="layers|d",
            cost="cost of a step|.4f",
            alpha="α|.4f",
            speedup="S|.3f",
            **interval_tips(answer.confidence, "speedup", ".3f"),
        )
        yield chart(
            f"kinds-{column.replace('_', '-')}",
            f"Drafts of every kind, {where}, {target_label(answer.target_params)}",
            "Best speed-up of drafts of every kind against what one of their steps costs.",
            {"drafts": rows},
            [
                level(y, 1.0, "plain decoding"),
                curves("drafts", *place, series),
                bars("drafts", *place, "speedup", series),
                points("drafts", *place, tooltip, series, toggles=True),
            ],
        )


def _clock(answer: Clock, records: StudyRecords) -> Iterator[Chart]:
    names = _by_size([row.target_params for row in answer.targets], target_label)
    series = Series("target", list(names.values()))
    cells: list[Row] = [
        {"series": names[c.target_params]} | vars(c)
        for c in answer.cells
        if c.batch == 1 and c.target_params in names
    ]
    values = [v for c in answer.cells for v in (c.speedup, c.predicted)]
    span = 0.9 * min(values), 1.1 * max(values)
    x, y = (Axis(f"{of} speed-up S", log=True, domain=span) for of in ("measured", "predicted"))
    error = f", median error {answer.error.median_absolute:.1%}" if answer.error else ""
    tooltip = tips(
        **PAIR,
        draft_params="draft size|,",
        lookahead="γ|d",
        speedup="measured S|.3f",
        speedup_low="smallest of a repetition|.3f",
        speedup_high="largest of a repetition|.3f",
        predicted="predicted S|.3f",
        tokens_per_round="tokens per round|.3f",
    )
    yield chart(
        "clock-decoders",
        f"Every draft and lookahead{error}",
        "Predicted against measured speed-up of every draft and lookahead; lines: equal, and 5% above and below.",
        {"decoders": cells},
        [
            *(equality(x, y, span, factor) for factor in (0.95, 1.0, 1.05)),
            points("decoders", x.of("speedup"), y.of("predicted"), tooltip, series, toggles=True),
        ],
    )
    yield _regrets(answer, names, series)
    if answer.batches:
        yield _batches(answer)


def _regrets(answer: Clock, names: dict[int, str], series: Series) -> Chart:
    policies = [NAMES[name] for name in answer.mean_regret]
    means = [{"policy": p, "lost": m} for p, m in zip(policies, answer.mean_regret.values())]
    rows = [
        {
            "series": names[t.target_params],
            "target_id": t.target_id,
            "policy": p,
            "lost": t.regret[n],
        }
        for t in answer.targets
        for n, p in zip(answer.mean_regret, policies)
    ]
    x = Axis("share of the best measured S lost (%)", percent=True, zero=True).of("lost")
    y: dict[str, Any] = {
        "field": "policy",
        "type": "nominal",
        "title": "way of choosing",
        "sort": policies,
        "axis": {"labelLimit": 150},
    }
    told = tips(target_id="target", policy="way of choosing", lost="lost|.2%")
    bar = {
        "data": {"name": "means"},
        "mark": {"type": "bar", "color": "#bfd4e6"},
        "encoding": {
            "x": x,
            "y": y,
            "tooltip": tips(policy="way of choosing", lost="mean lost|.2%"),
        },
    }
    return chart(
        "clock-regret",
        "What a choice costs (bars: mean; points: targets)",
        "Share of the best measured speed-up that each way of choosing loses: the mean, and each target.",
        {"means": means, "targets": rows},
        [bar, points("targets", x, y, told, series, toggles=True)],
    )


def _batches(answer: Clock) -> Chart:
    names = _by_size([row.target_params for row in answer.batches], target_label)
    rows = [
        {"series": names[curve.target_params], "target_id": curve.target_id} | vars(point)
        for curve in answer.batches
        for point in curve.points
    ]
    x, y = Axis("batch (rows)", log=True).of("batch"), Axis("best speed-up S")
    series = Series("target", list(names.values()))
    told = tips(
        target_id="target", batch="batch|d", measured="measured S|.3f", predicted="predicted S|.3f"
    )
    return chart(
        "clock-batches",
        "Does it pay in batches? (lines: predicted)",
        "Best measured and predicted speed-up at each batch.",
        {"batches": rows},
        [
            level(y, 1.0, "plain decoding"),
            curves("batches", x, y.of("predicted"), series),
            points("batches", x, y.of("measured"), told, series, toggles=True),
        ],
    )


def _clock_sizes(answer: ClockSizes, records: StudyRecords) -> Iterator[Chart]:
    targets = sorted(answer.targets, key=lambda t: t.target_params)
    labels = distinct(
        [target_label(t.target_params) for t in targets], [t.target_params for t in targets]
    )
    series = Series("target", labels)
    x, y = (
        Axis("draft over target, N/M", log=True),
        Axis("speed-up S at the best lookahead", log=True),
    )
    place = x.of("ratio"), y.of("speedup")
    for cost, where in (("flops", "In FLOPs"), ("clock", "On the clock")):
        drafts: list[Row] = []
        laws: list[Row] = []
        best: list[Row] = []
        for target, name in zip(targets, labels):
            line, m = getattr(target, cost), target.target_params
            shared = {"series": name, "target_id": target.target_id}
            laws += [
                shared | {"draft_params": n, "ratio": n / m, "speedup": s}
                for n, s in zip(line.sizes, line.speedups)
            ]
            if line.sizes:
                n = line.draft_params.estimate
                best.append(
                    shared | {"draft_params": n, "ratio": n / m} | _ends("speedup", line.speedup)
                )
            drafts += [
                shared
                | {
                    "draft_id": d.draft_id,
                    "trained_for": d.trained_for,
                    "draft_params": d.draft_params,
                    "ratio": d.draft_params / m,
                    "lookahead": getattr(d, cost).lookahead,
                }
                | _ends("speedup", getattr(d, cost).speedup)
                for d in target.drafts
                if d.draft_params < m
            ]
        own = [d for d in drafts if d["trained_for"] == "text"]
        others = [d for d in drafts if d["trained_for"] != "text"]
        told = tips(
            **PAIR,
            trained_for="trained for",
            draft_params="draft size|,",
            ratio="N/M|.4f",
            lookahead="best γ|d",
            speedup="S|.3f",
            **interval_tips(answer.confidence, "speedup", ".3f"),
        )
        at_best = tips(
            target_id="target", draft_params="N*|,.0f", ratio="N*/M|.4f", speedup="S*|.3f"
        )
        rule = {
            "data": {"values": [{"ratio": 1 / 200}]},
            "mark": {"type": "rule", "color": "#7f7f7f", "strokeDash": [2, 3]},
            "encoding": {"x": x.of("ratio")},
        }
        yield chart(
            f"clock-sizes-{cost}",
            f"{where} (dotted: M/200; hollow: other kinds)",
            "Speed-up at the best lookahead against the size of the draft over that of its target.",
            {"drafts": own, "drafts of other kinds": others, "laws": laws, "best size": best},
            [
                level(y, 1.0, "plain decoding"),
                rule,
                *(curves("laws", *place, series) if laws else []),
                bars("drafts", *place, "speedup", series),
                points("drafts", *place, told, series, toggles=True),
                *(
                    [points("drafts of other kinds", *place, told, series, hollow=True)]
                    if others
                    else []
                ),
                *([stars("best size", *place, at_best, series)] if best else []),
            ],
        )


_CHARTS: dict[str, Callable[[Any, StudyRecords], Iterator[Chart]]] = {
    "residuals": _residuals,
    "holdout": holdout_charts,
    "dependence": _dependence,
    "objectives": objectives_charts,
    "kinds": _kinds,
    "clock": _clock,
    "clock_sizes": _clock_sizes,
}
