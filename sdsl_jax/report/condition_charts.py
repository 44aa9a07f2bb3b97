"""Interactive charts of what happens elsewhere: models held out, other temperatures and texts, other objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.evidence.conditions import Domain, Temperature
from sdsl_jax.evidence.holdout import Holdout
from sdsl_jax.evidence.objectives import Objectives
from sdsl_jax.evidence.same_data import SameData
from sdsl_jax.report.chart_parts import (
    GREY,
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
    tips,
)
from sdsl_jax.report.figure_data import distinct, drafts_shown, objectives_shown, target_names
from sdsl_jax.report.style import COLOURS, NAMES

_ALPHA = "acceptance α (probability)"


def holdout_charts(answer: Holdout, records: StudyRecords) -> Iterator[Chart]:
    """Losses and acceptance that were predicted before they were measured, and what choices give."""
    sizes = sorted({row.params for row in answer.losses})
    names = dict(zip(sizes, distinct([short_count(n) for n in sizes], sizes)))
    losses: list[Row] = [
        {
            "series": names[row.params],
            "model_id": row.model_id,
            "measured": row.measured,
            "predicted": row.loss,
            "predicted_low": row.low,
            "predicted_high": row.high,
            "extrapolation": row.extrapolation,
        }
        for row in answer.losses
    ]
    ends = [row[c] for row in losses for c in ("measured", "predicted")]
    x, y = (Axis(f"{of} loss (nats per token)") for of in ("measured", "predicted"))
    place = x.of("measured"), y.of("predicted")
    series = Series("size", list(names.values()))
    told = tips(
        model_id="model",
        measured="measured loss|.4f",
        predicted="predicted loss|.4f",
        **interval_tips(answer.confidence, "predicted", ".4f"),
        extrapolation="size over largest seen|.2f",
    )
    yield chart(
        "holdout-losses",
        "Losses of held-out models (dashed: equal)",
        "Predicted against measured loss of every held-out model, with the published intervals.",
        {"losses": losses},
        [
            equality(x, y, (min(ends), max(ends))),
            bars("losses", *place, "predicted", series),
            points("losses", *place, told, series, toggles=True),
        ],
    )
    yield _held_out_pairs(answer)
    yield _choices(answer)


_HELD_OUT = {
    (True, False): "held-out draft",
    (False, True): "held-out target",
    (True, True): "both held out",
}


def _held_out_pairs(answer: Holdout) -> Chart:
    pairs: list[Row] = [
        {
            "series": _HELD_OUT[p.draft_held_out, p.target_held_out],
            "draft_id": p.draft_id,
            "target_id": p.target_id,
            "measured": p.measured,
            "predicted": p.alpha,
            "predicted_low": p.low,
            "predicted_high": p.high,
        }
        for p in answer.pairs
        if p.draft_held_out or p.target_held_out
    ]
    ends = [row[c] for row in pairs for c in ("measured", "predicted")]
    x, y = (Axis(f"{of} α (probability)") for of in ("measured", "predicted"))
    told = tips(
        **PAIR,
        measured="measured α|.4f",
        predicted="predicted α|.4f",
        **interval_tips(answer.confidence, "predicted", ".4f"),
    )
    series, place = Series("pair", list(_HELD_OUT.values())), (x.of("measured"), y.of("predicted"))
    error = answer.alpha_by_law[answer.best_law].mae
    return chart(
        "holdout-acceptance",
        f"Acceptance, mean absolute error {error:.4f} (dashed: equal)",
        "Predicted against measured acceptance of every pair with a held-out member.",
        {"pairs": pairs},
        [
            *([equality(x, y, (min(ends), max(ends)))] if ends else []),
            points("pairs", *place, told, series, toggles=True, size=35),
        ],
    )


def _choices(answer: Holdout) -> Chart:
    choice = answer.choice
    rows = [
        {
            "way": name,
            "draft_id": s.draft_id or "none",
            "lookahead": s.lookahead,
            "speedup": s.speedup,
            "lost": s.regret,
        }
        for name, s in choice.strategies.items()
    ]
    best = choice.best_measured
    x = Axis("measured speed-up S (FLOPs)", zero=True)
    y: Row = {
        "field": "way",
        "type": "nominal",
        "title": "way of choosing",
        "sort": None,
        "axis": {"labelLimit": 150},
    }
    told = tips(
        way="way of choosing", draft_id="draft", lookahead="γ|d", speedup="S|.3f", lost="lost|.2%"
    )
    line = {
        "data": {"values": [{"best": best.speedup}]},
        "mark": {"type": "rule", "color": COLOURS[1], "strokeWidth": 1.5},
        "encoding": {"x": x.of("best")},
    }
    bar = {
        "data": {"name": "choices"},
        "mark": {"type": "bar", "color": "#bfd4e6"},
        "encoding": {"x": x.of("speedup"), "y": y, "tooltip": told},
    }
    return chart(
        "holdout-choices",
        [
            f"Choices for {choice.target}",
            f"line: best measured, {best.draft_id}, γ = {best.lookahead}",
        ],
        "Measured speed-up that each way of choosing draft and lookahead gives for the largest target.",
        {"choices": rows},
        [bar, line],
    )


def conditions_charts(evidence: Evidence, records: StudyRecords) -> Iterator[Chart]:
    """Acceptance at other temperatures, on other text, and of drafts of other training text."""
    answers: tuple[tuple[Callable[..., Chart], Any], ...] = (
        (_temperature, evidence.temperature),
        (_domain, evidence.domain),
        (_same_data, evidence.same_data),
    )
    target = records.targets[-1] if records.targets else None
    for draw, answer in answers:
        if target and answer and any(p.target_id == target.model_id for p in answer.pairs):
            yield draw(answer, records, target.model_id)


def _largest(records: StudyRecords) -> str:
    return list(target_names(records).values())[-1]


def _temperature(answer: Temperature, records: StudyRecords, target: str) -> Chart:
    alpha = {p.draft_id: p.alpha for p in answer.pairs if p.target_id == target}
    drafts = drafts_shown(records, set(alpha))
    sizes = [d.params_nonembedding for d in drafts]
    names = distinct([short_count(n) for n in sizes], sizes)
    rows = [
        {
            "series": name,
            "draft_id": draft.model_id,
            "target_id": target,
            "temperature": row.temperature,
            "alpha": value,
        }
        for name, draft in zip(names, drafts)
        for row, value in zip(answer.by_temperature, alpha[draft.model_id])
    ]
    place = Axis("sampling temperature T").of("temperature"), Axis(_ALPHA).of("alpha")
    series, told = Series("draft size", names), tips(**PAIR, temperature="T|.2f", alpha="α|.4f")
    return chart(
        "conditions-temperature",
        f"By temperature, {_largest(records)}",
        f"Acceptance, {NAMES[answer.estimator]}, of each draft against the sampling temperature.",
        {"pairs": rows},
        [
            curves("pairs", *place, series),
            points("pairs", *place, told, series, toggles=True),
        ],
    )


def _domain(answer: Domain, records: StudyRecords, target: str) -> Chart:
    names = [row.domain for row in answer.by_domain]
    rows = [
        {
            "series": name,
            "draft_id": p.draft_id,
            "target_id": target,
            # Gaps of pairs over texts are lists, one number for each text.
            "gap": p.gap[k],  # type: ignore[index]
            "alpha": p.alpha[k],
        }
        for k, name in enumerate(names)
        for p in answer.pairs
        if p.target_id == target
    ]
    x = Axis("loss gap on that text, draft − target (nats per token)").of("gap")
    told = tips(**PAIR, series="text", gap="loss gap (nats)|.4f", alpha="α|.4f")
    dots = points("pairs", x, Axis(_ALPHA).of("alpha"), told, Series("text", names), toggles=True)
    return chart(
        "conditions-text",
        f"By text, {_largest(records)}",
        f"Acceptance, {NAMES[answer.estimator]}, of each draft on each text against the loss gap there.",
        {"pairs": rows},
        [dots],
    )


def _same_data(answer: SameData, records: StudyRecords, target: str) -> Chart:
    names = ["trained on the study's text", "trained on other text"]
    own = [p for p in answer.own if p.target_id == target]
    other = [p for p in answer.pairs if p.target_id == target]
    rows: list[Row] = [
        {"series": names[0], "draft_id": p.draft_id, "target_id": target}
        | {"loss": p.loss, "alpha": p.alpha}
        for p in own
    ]
    pairs: list[Row] = [
        {
            "series": names[1],
            "draft_id": p.draft_id,
            "target_id": target,
            "loss": p.loss,
            "alpha": p.alpha,
            "same_data": p.alpha_same_data,
            # The interval of a difference is that of the same-data value upside down.
            "same_data_low": p.alpha_same_data - (p.high - p.difference),
            "same_data_high": p.alpha_same_data + (p.difference - p.low),
        }
        for p in other
    ]
    x, y = Axis("draft loss on the study's text (nats per token)"), Axis(_ALPHA)
    place, series = (x.of("loss"), y.of("alpha")), Series("draft", names)
    told = PAIR | {"loss": "loss (nats)|.4f", "alpha": "α|.4f"}
    beside = tips(**told, same_data="α of a draft of the study at that loss|.4f")
    tick: dict[str, Any] = {"shape": "stroke", "size": 160, "colour": GREY, "strokeWidth": 2}
    return chart(
        "conditions-training-text",
        [
            f"Other training text, {_largest(records)}",
            "grey: a draft of the study at the same loss",
        ],
        "Acceptance of drafts of other training text against their loss, beside drafts of the study's own text.",
        {"own": rows, "other": pairs},
        [
            bars("other", x.of("loss"), y.of("same_data"), "same_data"),
            points("other", x.of("loss"), y.of("same_data"), beside, **tick),
            points("own", *place, tips(**told), series, toggles=True),
            points("other", *place, beside, series),
        ],
    )


def objectives_charts(answer: Objectives, records: StudyRecords) -> Iterator[Chart]:
    """Acceptance of drafts by what they were trained for: by size, by budget, and by loss."""
    shown = objectives_shown(answer)
    rows = [
        {
            "series": NAMES.get(r.objective, r.objective),
            "draft_params": r.draft_params,
            "train_tokens": r.train_tokens,
            "seeds": r.seeds,
            "loss_nats": r.loss_nats,
            **_estimate("alpha", r.alpha),
            **_estimate("gain", r.gain),
        }
        for r in answer.results
        if r.objective in shown.objectives
    ]
    series = Series("objective", [NAMES.get(o, o) for o in shown.objectives])
    told: dict[str, str] = {
        "series": "trained for",
        "draft_params": "draft size|,",
        "train_tokens": "training tokens|,",
        "seeds": "seeds|d",
        "loss_nats": "loss (nats per token)|.4f",
        "alpha": "mean α|.4f",
        **interval_tips(answer.confidence, "alpha", ".4f"),
        "gain": "gain in α|+.4f",
    }
    last = [row for row in rows if row["train_tokens"] == shown.last_budget]
    middle = [row for row in rows if row["draft_params"] == shown.middle_size]
    size = Axis("draft size (non-embedding parameters)", log=True, counts=True)
    budget = Axis("training tokens since the parent", log=True, counts=True)
    loss, alpha = Axis("draft loss on the text (nats per token)"), Axis(_ALPHA)
    tokens = f"{short_count(shown.last_budget)} tokens"
    for name, title, own, x, y in (
        ("size", f"By size, {tokens}", last, size.of("draft_params"), alpha.of("alpha")),
        (
            "budget",
            f"Gain of the draft of {short_count(shown.middle_size)}",
            middle,
            budget.of("train_tokens"),
            Axis("gain in α (probability)").of("gain"),
        ),
        ("loss", f"By loss, {tokens}", last, loss.of("loss_nats"), alpha.of("alpha")),
    ):
        zero = [level(Axis("gain in α (probability)"), 0.0)] if name == "budget" else []
        yield chart(
            f"objectives-{name}",
            title,
            f"{y['title']} of drafts trained for each objective against {x['title']}.",
            {"drafts": own},
            [
                *zero,
                curves("drafts", x, y, series),
                bars("drafts", x, y, y["field"], series),
                points("drafts", x, y, tips(**told), series, toggles=True),
            ],
        )


def _estimate(name: str, estimate: Any) -> Row:
    return {name: estimate.estimate, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
