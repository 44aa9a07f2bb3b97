"""Which interactive charts the records of a study have: one for each panel of its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.records import ModelRecord
from sdsl_jax.report.chart_parts import (
    GREY,
    PAIR,
    Axis,
    Chart,
    Row,
    Series,
    Spec,
    bars,
    cells,
    chart,
    curves,
    equality,
    interval_tips,
    points,
    shade,
    surface,
    tips,
    upper,
)
from sdsl_jax.report.design_charts import optimiser_charts, speedup_charts
from sdsl_jax.report.evidence_charts import evidence_charts
from sdsl_jax.report.figure_data import (
    AcceptanceShown,
    Pair,
    TimedStep,
    acceptance_shown,
    distinct,
    largest_survival_lookahead,
    loss_gaps,
    loss_panels,
    predicted_panels,
    survival_curves,
    target_names,
    timed_steps,
)
from sdsl_jax.report.figures import figures_of
from sdsl_jax.report.style import COLOURS, NAMES

_ALPHA = "acceptance α (probability)"
# Cells of a map along each axis: its page stays small, and a cell is still easy to point at.
_CELLS = 24


def charts_of(records: StudyRecords) -> dict[str, list[Chart]]:
    """The charts of a study, by the name of the figure whose panels they are.

    Args:
      records: Records of the study.

    Raises:
      SdslError: A record is missing or damaged.
    """
    drawn = {
        name: list(_CHARTS[name](records))
        for name in (figures_of(records) if records.has_fits else [])
    }
    return drawn | evidence_charts(records)


def _model(model: ModelRecord, series: str) -> Row:
    return {
        "series": series,
        "model_id": model.model_id,
        "role": model.role,
        "params_nonembedding": model.params_nonembedding,
        "params_total": model.params_total,
        "train_tokens": model.train_tokens,
        "layers": model.layers,
        "width": model.width,
        "seed": model.seed,
        "loss_nats": model.loss_nats,
        "loss_nats_low": model.loss_nats_low,
        "loss_nats_high": model.loss_nats_high,
        "perplexity": model.perplexity,
    }


_MODEL_TIPS = {
    "model_id": "model",
    "role": "role",
    "params_nonembedding": "non-embedding parameters|,",
    "params_total": "all parameters|,",
    "train_tokens": "training tokens|,",
    "seed": "seed|d",
}


def _loss(records: StudyRecords) -> Iterator[Chart]:
    loss = Axis("test loss (nats per token)")
    for panel in loss_panels(records):
        of_size = panel.x == "params_nonembedding"
        axis = Axis(panel.label, log=True, counts=True)
        names = distinct(panel.names, panel.values)
        series = Series("training tokens" if of_size else "size", names)
        by_value = dict(zip(panel.values, names))
        models = [_model(m, by_value[getattr(m, panel.by)]) for m in panel.models]
        law = [
            {"series": name, panel.x: float(x), "loss_nats": float(y)}
            for name, curve in zip(names, panel.curves)
            for x, y in zip(panel.grid, curve)
        ]
        tooltip = tips(
            **_MODEL_TIPS,
            loss_nats="test loss (nats per token)|.4f",
            **interval_tips(records.config.measure.confidence, "loss_nats", ".4f"),
            perplexity="perplexity|.3f",
        )
        x, y = axis.of(panel.x), loss.of("loss_nats")
        yield chart(
            "loss-by-size" if of_size else "loss-by-tokens",
            panel.title,
            f"Test loss in nats per token against {panel.label}, for each value of {series.title}, with the fitted law.",
            {
                "models": [row for row in models if row["role"] != "target"],
                "targets": [row for row in models if row["role"] == "target"],
                "fitted law": law,
            },
            [
                curves("fitted law", x, y, series),
                bars("models", x, y, "loss_nats", series),
                bars("targets", x, y, "loss_nats", series),
                points("models", x, y, tooltip, series, toggles=True),
                points("targets", x, y, tooltip, series, hollow=True),
            ],
        )


def _pair(pair: Pair, series: str, **more: Any) -> Row:
    draft, target, row = pair
    return {
        "series": series,
        "draft_id": draft.model_id,
        "target_id": target.model_id,
        "draft_params": draft.params_nonembedding,
        "draft_tokens": draft.train_tokens,
        "estimator": row.estimator,
        "lookahead": row.lookahead,
        "alpha": row.alpha,
        "alpha_low": row.alpha_low,
        "alpha_high": row.alpha_high,
        **more,
    }


_PAIR_TIPS = PAIR | {
    "draft_params": "draft size|,",
    "draft_tokens": "training tokens of the draft|,",
}


def _acceptance(records: StudyRecords) -> Iterator[Chart]:
    shown, names = acceptance_shown(records), target_names(records)
    series = Series("target", list(names.values()))
    rows = [
        _pair(
            pair,
            names[pair[1].params_nonembedding],
            draft_perplexity=pair[0].perplexity,
            target_perplexity=pair[1].perplexity,
            gap=float(gap),
        )
        for pair, gap in zip(shown.pairs, loss_gaps(shown.pairs))
        if pair[1].params_nonembedding in names
    ]
    tooltip = tips(
        **_PAIR_TIPS,
        alpha="α|.4f",
        **interval_tips(records.config.measure.confidence, "alpha", ".4f"),
        draft_perplexity="draft perplexity|.3f",
        target_perplexity="target perplexity|.3f",
        gap="loss gap (nats)|.4f",
    )
    how = f"Acceptance probability, {NAMES[shown.estimator]}"
    yield _plane(records, rows, tooltip, how)
    y = Axis(_ALPHA)
    x = Axis("draft perplexity").of("draft_perplexity")
    yield chart(
        "acceptance-sections",
        "Affine plane, section at each target",
        f"{how}, against draft perplexity, with the section of the affine plane at each target.",
        {"pairs": rows, "affine plane": list(_sections(shown, list(names.values())))},
        [
            curves("affine plane", x, y.of("alpha"), series),
            bars("pairs", x, y.of("alpha"), "alpha", series),
            points("pairs", x, y.of("alpha"), tooltip, series, toggles=True),
        ],
    )
    x = Axis("loss gap, draft − target (nats per token)").of("gap")
    law = [{"gap": float(g), "alpha": float(a)} for g, a in zip(shown.gap_grid, shown.gap_curve)]
    yield chart(
        "acceptance-gap",
        "Logit in the loss gap (bounded; line)",
        f"{how}, against the loss gap of draft and target, with the fitted bounded law.",
        {"pairs": rows, "logit in the loss gap": law},
        [
            curves("logit in the loss gap", x, y.of("alpha"), color=GREY),
            bars("pairs", x, y.of("alpha"), "alpha", series),
            points("pairs", x, y.of("alpha"), tooltip, series, toggles=True),
        ],
    )


def _sections(shown: AcceptanceShown, names: Sequence[str]) -> Iterator[Row]:
    for name, section in zip(names, shown.sections):
        for x, alpha in zip(shown.x, section):
            yield {"series": name, "draft_perplexity": float(x), "alpha": float(alpha)}


def _plane(records: StudyRecords, rows: list[Row], tooltip: list[Spec], how: str) -> Chart:
    coarse = acceptance_shown(records, _CELLS)
    values = [*coarse.plane.ravel().tolist(), *(row["alpha"] for row in rows)]
    colour = shade("alpha", _ALPHA, (min(values), max(values)))
    x, y = (
        Axis(f"{of} perplexity", domain=(float(at[0]), float(at[-1])))
        for of, at in (("draft", coarse.x), ("target", coarse.y))
    )
    shown = cells(coarse.x, coarse.y, coarse.plane.T, "alpha")
    at_plane = tips(
        alpha="α by the plane|.3f", at_x="draft perplexity|.3f", at_y="target perplexity|.3f"
    )
    dots = points("pairs", x.of("draft_perplexity"), y.of("target_perplexity"), tooltip)
    dots["mark"] |= {"size": 90, "stroke": "black", "strokeWidth": 1.2}
    dots["mark"].pop("color")
    dots["encoding"]["color"] = colour
    return chart(
        "acceptance-plane",
        "Affine plane, with measured points",
        f"{how}, of every pair by the perplexities of draft and target, on the colours of the affine plane.",
        {"affine plane": shown, "pairs": rows},
        [surface("affine plane", x, y, colour, tooltip=at_plane), dots],
    )


def _predicted(records: StudyRecords) -> Iterator[Chart]:
    names, largest = target_names(records), largest_survival_lookahead(records)
    series = Series("target", list(names.values()))
    for panel in predicted_panels(records):
        fit = panel.fit
        exact, decoded = (
            [
                _pair(pair, names[pair[1].params_nonembedding], predicted=value)
                for pair, value in shown
                if pair[1].params_nonembedding in names
            ]
            for shown in (panel.exact, panel.decoded)
        )
        ends = [row[c] for row in (*exact, *decoded) for c in ("predicted", "alpha")]
        span = min(ends) - 0.02, max(ends) + 0.02
        x, y = Axis(f"predicted {_ALPHA}", domain=span), Axis(f"measured {_ALPHA}", domain=span)
        place = x.of("predicted"), y.of("alpha")
        tooltip = tips(
            **_PAIR_TIPS,
            estimator="measured by",
            alpha="measured α|.4f",
            **interval_tips(records.config.measure.confidence, "alpha", ".4f"),
            predicted="predicted α|.4f",
        )
        layers: list[Spec | list[Spec]] = [
            equality(x, y, span),
            bars("exact", *place, "alpha", series),
            points("exact", *place, tooltip, series, toggles=True),
        ]
        title = [
            upper(NAMES[fit.law]),
            f"left-out RMSE {fit.left_out_rmse:.4f}",
        ]
        if decoded:
            layers.append(points("live decoder", *place, tooltip, series, hollow=True))
            title[1] += f"; hollow: live decoder, γ = {largest}"
        yield chart(
            f"predicted-{fit.law.replace('_', '-')}",
            title,
            f"Measured acceptance probability against the prediction of the law {NAMES[fit.law]}; "
            "on the dashed line they are equal.",
            {"exact": exact} | ({"live decoder": decoded} if decoded else {}),
            layers,
        )


def _survival(records: StudyRecords) -> Iterator[Chart]:
    largest, shown, names = (
        largest_survival_lookahead(records),
        survival_curves(records),
        target_names(records),
    )
    for number, target in enumerate(records.targets, 1):
        own = [c for c in shown if c.target.model_id == target.model_id]
        sizes = [c.draft.params_nonembedding for c in own]
        labels = distinct([short_count(n) for n in sizes], sizes)
        rows = [
            {
                "series": label,
                "draft_id": c.draft.model_id,
                "target_id": target.model_id,
                "position": int(k),
                "survival": float(c.survival[i]),
                "survival_low": float(c.low[i]),
                "survival_high": float(c.high[i]),
                "geometric": float(c.geometric[i]),
                "tokens_per_round": c.tokens_per_round,
            }
            for label, c in zip(labels, own)
            for i, k in enumerate(c.positions)
        ]
        series = Series("draft size", labels)
        y = Axis(f"P(first k drafts accepted), γ = {largest}", log=True)
        x = Axis("position k in the round (tokens)", whole=True).of("position")
        tooltip = tips(
            **PAIR,
            position="position k|d",
            survival="share of rounds|.4f",
            **interval_tips(records.config.measure.confidence, "survival", ".4f"),
            geometric="geometric α^k|.4f",
            tokens_per_round="tokens per round|.3f",
        )
        yield chart(
            f"survival-{number}",
            f"Survival, {names[target.params_nonembedding]} (dashed: geometric)",
            f"Share of rounds whose first k drafts were all accepted by {target.model_id}, for each draft "
            "size, beside independent acceptance.",
            {"survival": rows},
            [
                curves("survival", x, y.of("geometric"), series, strokeDash=[5, 3]),
                curves("survival", x, y.of("survival"), series),
                bars("survival", x, y.of("survival"), "survival", series),
                points("survival", x, y.of("survival"), tooltip, series, toggles=True),
            ],
        )


def _step(step: TimedStep, **more: Any) -> Row:
    row = step.row
    return {
        "model_id": row.model_id,
        "params_nonembedding": step.model.params_nonembedding,
        "operation": row.operation,
        "width": row.width,
        "batch": row.batch,
        "microseconds": 1e6 * row.seconds,
        "microseconds_low": 1e6 * row.seconds_low,
        "microseconds_high": 1e6 * row.seconds_high,
        "fitted_microseconds": 1e6 * step.predicted_seconds,
        **more,
    }


def _latency(records: StudyRecords) -> Iterator[Chart]:
    decode, passes = timed_steps(records)
    names = target_names(records)
    tooltip = tips(
        model_id="model",
        params_nonembedding="non-embedding parameters|,",
        width="tokens in the pass|d",
        microseconds="median (µs)|.1f",
        **interval_tips(records.config.measure.confidence, "microseconds", ".1f"),
        fitted_microseconds="fitted device (µs)|.1f",
    )
    x = Axis("non-embedding parameters", log=True, counts=True).of("params_nonembedding")
    y = Axis("one-token step (µs)", zero=True)
    place = x, y.of("microseconds")
    yield chart(
        "latency-decode",
        f"Decode steps, batch {decode[0].row.batch} (line: fitted device)",
        "Median time of a one-token decoding step against model size, with the fitted device.",
        {"steps": [_step(s) for s in decode]},
        [
            curves("steps", x, y.of("fitted_microseconds"), color=COLOURS[0]),
            bars("steps", *place, "microseconds"),
            points("steps", *place, tooltip),
        ],
    )
    x = Axis("tokens in the pass (γ + 1)", whole=True).of("width")
    y = Axis("verify pass (µs)", zero=True)
    place = x, y.of("microseconds")
    series = Series("target", list(names.values()))
    yield chart(
        "latency-verify",
        "A verify pass is not free (lines: fitted device)",
        "Median time of a pass of each target against the tokens in it, with the fitted device.",
        {"passes": [_step(s, series=names[s.model.params_nonembedding]) for s in passes]},
        [
            curves("passes", x, y.of("fitted_microseconds"), series),
            bars("passes", *place, "microseconds", series),
            points("passes", *place, tooltip, series, toggles=True),
        ],
    )


_CHARTS: dict[str, Callable[[StudyRecords], Iterator[Chart]]] = {
    "loss": _loss,
    "acceptance": _acceptance,
    "predicted": _predicted,
    "speedup": speedup_charts,
    "optimiser": optimiser_charts,
    "survival": _survival,
    "latency": _latency,
}
