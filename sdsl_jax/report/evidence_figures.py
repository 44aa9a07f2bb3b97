"""Figures for the sceptic: each is drawn only if the evidence holds what it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.evidence.conditions import Domain, Temperature
from sdsl_jax.evidence.holdout import Choice
from sdsl_jax.evidence.same_data import SameData
from sdsl_jax.records import ModelRecord
from sdsl_jax.report.clock_figure import CLOCK_CAPTION, draw_clock
from sdsl_jax.report.clock_sizes_figure import CLOCK_SIZES_CAPTION, draw_clock_sizes
from sdsl_jax.report.figure_data import DEPENDENCE_MODELS, drafts_shown, objectives_shown
from sdsl_jax.report.style import (
    COLOURS,
    NAMES,
    error_bars,
    figure,
    legend_beside,
    log_sizes,
    percent_axis,
    series,
    target_label,
)

EVIDENCE_CAPTIONS = {
    "residuals": "What the laws do not explain. Left: measured over predicted loss − 1 of every model that the loss law was "
    "fitted to; bars: mean of each size. Right: measured − predicted acceptance under the best law; bars: mean of each draft "
    "size.",
    "holdout": "Predictions that were published before the held-out models were looked at. Left: losses, with the published "
    "intervals. Middle: acceptance of every pair with a held-out member. On the dashed lines predicted equals measured. Right: "
    "the measured speed-up (FLOPs) that each way of choosing draft and lookahead gives for the largest target, and what it "
    "loses of the best.",
    "dependence": "Whether acceptance is independent. Left: the α that the geometric formula needs to give the tokens "
    "per round of each lookahead, for "
    "the drafts of the largest budget and the largest target; under independent acceptance every curve would be level. "
    "Dashed: exact α on the same samples, which the curves approach as more positions are tested. Bars: intervals over "
    "samples. Right: error of three models of the tokens per round, mean over all pairs, with intervals over drafts; "
    "hollow: lookaheads that a model was fitted to.",
    "conditions": "Acceptance where other things change, for the largest target: with the sampling temperature (drafts of the "
    "largest budget), from one text to another at the loss gap measured on each, and for drafts trained on other text beside "
    "the study's own at the same loss (bar: interval of the same-data value).",
    "kinds": "Drafts of every kind for one target, by what a step costs: best speed-up in FLOPs (means over seeds, with their "
    "intervals) and on the clock (one seed, intervals over repetitions). The line at 1 is plain decoding.",
    "objectives": "Drafts trained for acceptance, measured with their teacher: means over seeds, with their intervals; training "
    "tokens count from the common parent. Left: acceptance at the largest budget. Middle: the gain over drafts trained as long "
    "on the text, of the middle size, by budget. Right: the same acceptances against the draft's loss on the text, which no "
    "longer tells them.",
    "clock": CLOCK_CAPTION,
    "clock_sizes": CLOCK_SIZES_CAPTION,
}


def draw_evidence(records: StudyRecords, folder: Path) -> None:
    """Draws the figures of `EVIDENCE_CAPTIONS` that the records hold something for, and removes older ones of the others."""
    for name, draw in _FIGURES.items():
        if not draw(records, folder, name):
            for kind in ("png", "pdf"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)


def _evidence(records: StudyRecords) -> Evidence:
    return records.document("evidence", Evidence) or Evidence()


def _residuals(records: StudyRecords, folder: Path, name: str) -> bool:
    answer = _evidence(records).residuals
    if not answer:
        return False
    with figure(folder, name, 1, 2, (11.5, 3.9)) as (_, axes):
        left, right = axes[0]
        points = answer.loss_points
        for budget, style in series(sorted({p.tokens for p in points})):
            chosen = [p for p in points if p.tokens == budget]
            y = np.expm1([p.residual for p in chosen])
            left.plot(
                [p.params for p in chosen], y, ls="", ms=4, label=short_count(budget), **style
            )
        _means(left, [(row.size, np.expm1(row.mean)) for row in answer.loss_by_size])
        percent_axis(left.yaxis)
        left.set(
            ylabel="measured / predicted loss − 1",
            title=f"Loss law, residual {answer.loss_rmse:.2%}",
        )
        legend_beside(left, title="tokens")
        pairs = answer.alpha_points
        for target, style in series(sorted({p.target_params for p in pairs})):
            rows = [p for p in pairs if p.target_params == target]
            x, y = [p.draft_params for p in rows], np.asarray([p.residual for p in rows])
            right.plot(x, y, ls="", ms=4, label=short_count(target), **style)
        _means(right, [(row.size, row.mean) for row in answer.alpha_by_draft])
        right.set(
            ylabel="measured − predicted α",
            title=f"{NAMES[answer.alpha_law].capitalize()}, residual {answer.alpha_rmse:.4f}",
        )
        legend_beside(right, title="target")
        for axis, label in (
            (left, "non-embedding parameters"),
            (right, "draft size (non-embedding parameters)"),
        ):
            axis.axhline(0, color="0.4", lw=0.8)
            log_sizes(axis, label)
    return True


def _means(axis: Any, rows: list[tuple[float, float]]) -> None:
    for size, mean in rows:
        axis.plot([size / 1.12, size * 1.12], [mean, mean], color="0.2", lw=2.2, zorder=4)


def _holdout(records: StudyRecords, folder: Path, name: str) -> bool:
    answer = _evidence(records).holdout
    if not answer:
        return False
    with figure(folder, name, 1, 3, (14.5, 4.4)) as (_, axes):
        left, middle, right = axes[0]
        losses = answer.losses
        for size, style in series(sorted({row.params for row in losses})):
            rows = [row for row in losses if row.params == size]
            y = [row.loss for row in rows]
            label = f"{short_count(size)} ({rows[0].extrapolation:.2g}×)"
            x = [r.measured for r in rows]
            left.errorbar(
                x,
                y,
                yerr=error_bars(rows, "loss", ""),
                ls="",
                elinewidth=0.8,
                label=label,
                **style,
            )
        _diagonal(left, [v for row in losses for v in (row.measured, row.loss)])
        left.set(
            xlabel="measured loss (nats per token)",
            ylabel="predicted loss (nats per token)",
            title="Losses of held-out models",
        )
        left.legend(title="size (over largest seen)", loc="upper left")
        kinds = {
            (True, False): "held-out draft",
            (False, True): "held-out target",
            (True, True): "both held out",
        }
        for kind, style in series(kinds):
            pairs = [p for p in answer.pairs if (p.draft_held_out, p.target_held_out) == kind]
            if pairs:
                x, y = [p.measured for p in pairs], [p.alpha for p in pairs]
                middle.plot(x, y, ls="", ms=3.5, alpha=0.8, label=kinds[kind], **style)
        _diagonal(middle, [v for p in answer.pairs for v in (p.measured, p.alpha)])
        error = answer.alpha_by_law[answer.best_law].mae
        middle.set(
            xlabel="measured α",
            ylabel="predicted α",
            title=f"Acceptance, mean absolute error {error:.4f}",
        )
        middle.legend(loc="upper left")
        _strategies(right, answer.choice)
    return True


def _strategies(axis: Any, choice: Choice) -> None:
    """What each way of choosing draft and lookahead gives."""
    at = np.arange(len(choice.strategies))[::-1]
    speedups = [s.speedup for s in choice.strategies.values()]
    fill = [COLOURS[5] if i < 2 else "0.85" for i in range(len(speedups))]
    axis.barh(at, speedups, color=fill, height=0.7)
    best = choice.best_measured
    label = f"best measured: {best.draft_id.removeprefix('draft-')}, γ = {best.lookahead}"
    axis.axvline(best.speedup, color=COLOURS[1], lw=1.2, label=label)
    style = dict(xytext=(4, 0), textcoords="offset points", va="center")
    for place, (name, s) in zip(at, choice.strategies.items()):
        taken = f": {s.draft_id.removeprefix('draft-')}, γ = {s.lookahead}" if s.draft_id else ""
        axis.annotate(name + taken, (0, place), fontsize=7.5, **style)
        axis.annotate(f"−{s.regret:.1%}", (best.speedup, place), fontsize=8, **style)
    axis.set_yticks([])
    axis.set_xlim(0, best.speedup * 1.18)
    axis.set(xlabel="measured speed-up S (FLOPs)", title=f"Choices for {choice.target}")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _diagonal(axis: Any, values: list[float]) -> None:
    span = [min(values), max(values)]
    axis.plot(span, span, color="0.5", lw=0.8, ls="--", label="predicted = measured")


def _dependence(records: StudyRecords, folder: Path, name: str) -> bool:
    answer, target = _evidence(records).dependence, records.targets[-1]
    if not answer:
        return False
    exact = {p.draft_id: p.alpha for p in answer.pairs if p.target_id == target.model_id}
    with figure(folder, name, 1, 2, (11.5, 4.1)) as (_, axes):
        left, right = axes[0]
        for draft, style in series(drafts_shown(records, set(exact))):
            pair = draft.model_id, target.model_id
            rows = [r for r in records.expected if (r.draft_id, r.target_id) == pair]
            rows.sort(key=lambda r: r.lookahead)
            x = [r.lookahead for r in rows]
            left.errorbar(
                x,
                [r.alpha for r in rows],
                yerr=error_bars(rows, "alpha"),
                elinewidth=0.8,
                lw=1.2,
                ms=3.5,
                label=short_count(draft.params_nonembedding),
                **style,
            )
            level = 2 * [exact[draft.model_id]]
            left.plot([min(x), max(x)], level, "--", color=style["color"], lw=0.8)
        left.set(xlabel="lookahead γ (tokens)", ylabel="α that gives τ(γ)")
        left.set_title(
            f"Inverted acceptance, {target_label(target.params_nonembedding)} (dashed: exact)"
        )
        legend_beside(left, title="draft")
        gamma = np.asarray([r.lookahead for r in answer.by_lookahead])
        fitted = np.asarray([not r.judged for r in answer.by_lookahead])
        for i, (model, style) in enumerate(series(DEPENDENCE_MODELS)):
            errors = [r.error[model] for r in answer.by_lookahead]
            y, at = np.asarray([e.estimate for e in errors]), gamma + 0.12 * (i - 1)
            shared = dict(
                yerr=error_bars(errors, "estimate", ""),
                elinewidth=0.8,
                lw=1.2,
                ms=4,
                label=NAMES[model],
            )
            right.errorbar(at, y, **shared, **style)
            if model != "geometric":
                hollow = style | {"ls": "", "mfc": "white", "ms": 5, "zorder": 5}
                right.plot(at[fitted], y[fitted], **hollow)
        right.axhline(0, color="0.4", lw=0.8)
        percent_axis(right.yaxis)
        right.set(xlabel="lookahead γ (tokens)", ylabel="tokens per round, model / measured − 1")
        right.set_title(f"Error of τ, mean of {answer.n} pairs (hollow: fitted)")
        right.legend(loc="best")
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return True


def _conditions(records: StudyRecords, folder: Path, name: str) -> bool:
    target, evidence = records.targets[-1], _evidence(records)
    answers: list[tuple[Callable[..., None], Any]] = [
        (_by_temperature, evidence.temperature),
        (_by_domain, evidence.domain),
        (_same_data, evidence.same_data),
    ]
    panels = [
        (draw, answer) for draw, answer in answers if answer and _of_target(answer.pairs, target)
    ]
    if not panels:
        return False
    with figure(folder, name, 1, len(panels), (4.6 * len(panels) + 0.6, 4.1)) as (_, axes):
        for axis, (draw, answer) in zip(axes[0], panels):
            draw(axis, answer, records, target)
            axis.set_ylabel(f"acceptance α ({NAMES[answer.estimator]})")
    return True


def _of_target(rows: Sequence[Any], target: ModelRecord) -> list[Any]:
    return [row for row in rows if row.target_id == target.model_id]


def _by_temperature(
    axis: Any, answer: Temperature, records: StudyRecords, target: ModelRecord
) -> None:
    alpha = {p.draft_id: p.alpha for p in _of_target(answer.pairs, target)}
    temperatures = [row.temperature for row in answer.by_temperature]
    for draft, style in series(drafts_shown(records, set(alpha))):
        label = short_count(draft.params_nonembedding)
        axis.plot(temperatures, alpha[draft.model_id], lw=1.2, ms=4, label=label, **style)
    axis.set(
        xlabel="sampling temperature T",
        title=f"By temperature, {target_label(target.params_nonembedding)}",
    )
    legend_beside(axis, title="draft")


def _by_domain(axis: Any, answer: Domain, records: StudyRecords, target: ModelRecord) -> None:
    rows = _of_target(answer.pairs, target)
    for k, (domain, style) in enumerate(series([row.domain for row in answer.by_domain])):
        x, y = [p.gap[k] for p in rows], [p.alpha[k] for p in rows]
        axis.plot(x, y, ls="", ms=4.5, label=domain, **style)
    axis.set(
        xlabel="loss gap on that text, draft − target (nats)",
        title=f"By text, {target_label(target.params_nonembedding)}",
    )
    axis.legend(loc="best")


def _same_data(axis: Any, answer: SameData, records: StudyRecords, target: ModelRecord) -> None:
    own, others = _of_target(answer.own, target), _of_target(answer.pairs, target)
    loss, alpha = [p.loss for p in others], [p.alpha for p in others]
    same = [p.alpha_same_data for p in others]
    label = "trained on the study's text"
    axis.plot(
        [p.loss for p in own], [p.alpha for p in own], "o", color=COLOURS[0], ms=4.5, label=label
    )
    # The interval of a difference is that of the same-data value upside down, for the other draft's
    # α is the same in every resample.
    bars = error_bars(others, "difference", "")[::-1]
    style = dict(fmt="_", color=COLOURS[0], elinewidth=0.8, ms=8)
    axis.errorbar(loss, same, yerr=bars, label="such a draft at the other's loss", **style)
    axis.plot(loss, alpha, "D", color=COLOURS[1], ms=4.5, label="trained on other text")
    axis.vlines(loss, same, alpha, color="0.6", lw=0.7, ls=":")
    axis.set(
        xlabel="draft loss on the study's text (nats per token)",
        title=f"Other training text, {target_label(target.params_nonembedding)}",
    )
    axis.legend(loc="best")


def _objectives(records: StudyRecords, folder: Path, name: str) -> bool:
    answer = _evidence(records).objectives
    if not answer:
        return False
    shown = objectives_shown(answer)
    last_budget, middle = shown.last_budget, shown.middle_size
    with figure(folder, name, 1, 3, (14.4, 4.2)) as (_, axes):
        by_size, by_budget, by_loss = axes[0]
        for objective, style in series(shown.objectives):
            rows = [r for r in answer.results if r.objective == objective]
            last = [r for r in rows if r.train_tokens == last_budget]
            x, label = [r.draft_params for r in last], NAMES.get(objective, objective)
            y = [r.alpha.estimate for r in last]
            bars = error_bars([r.alpha for r in last], "estimate", "")
            by_size.errorbar(x, y, yerr=bars, label=label, lw=1.2, ms=4, elinewidth=0.8, **style)
            by_loss.plot([r.loss_nats for r in last], y, lw=1.0, ms=4, **style)
            own = [r for r in rows if r.draft_params == middle]
            gains = [r.gain for r in own]
            by_budget.errorbar(
                [r.train_tokens for r in own],
                [g.estimate for g in gains],
                yerr=error_bars(gains, "estimate", ""),
                lw=1.2,
                ms=4,
                elinewidth=0.8,
                **style,
            )
        log_sizes(by_size, "draft size (non-embedding parameters)")
        log_sizes(by_budget, "training tokens since the parent")
        target = target_label(records.models_by_id[answer.teacher_id].params_nonembedding)
        by_size.set(
            ylabel=f"acceptance α ({NAMES[answer.estimator]})",
            title=f"{short_count(last_budget)} tokens, {target}",
        )
        by_budget.set(ylabel="gain in α", title=f"Draft of {short_count(middle)}")
        by_loss.set(
            xlabel="draft loss on the text (nats per token)",
            ylabel="acceptance α",
            title=f"{short_count(last_budget)} tokens",
        )
        by_size.legend(loc="best")
    return True


def _kinds(records: StudyRecords, folder: Path, name: str) -> bool:
    answer = _evidence(records).kinds
    if not answer:
        return False
    groups = sorted({(r.kind, r.objective) for r in answer.results})
    panels = {"speedup": "FLOPs"}
    if np.isfinite([r.clock_speedup.estimate for r in answer.results]).any():
        panels["clock_speedup"] = "on the clock"
    with figure(folder, name, 1, len(panels), (5.75 * len(panels), 4.4)) as (_, axes):
        for axis, (column, where) in zip(axes[0], panels.items()):
            for (kind, objective), style in series(groups):
                rows = [r for r in answer.results if (r.kind, r.objective) == (kind, objective)]
                shown = [getattr(r, column) for r in rows]
                axis.errorbar(
                    [r.cost for r in rows],
                    [s.estimate for s in shown],
                    yerr=error_bars(shown, "estimate", ""),
                    label=f"{kind}, {NAMES.get(objective, objective)}",
                    lw=1.0,
                    ms=4,
                    elinewidth=0.8,
                    **style,
                )
            axis.axhline(1.0, color="0.6", lw=0.7)
            axis.set(
                xscale="log",
                xlabel="cost of a draft step in steps of the target (FLOPs)",
                ylabel=f"best speed-up S ({where})",
                title=target_label(answer.target_params),
            )
        axes[0][0].legend(loc="best")
    return True


_FIGURES = {
    "residuals": _residuals,
    "holdout": _holdout,
    "dependence": _dependence,
    "conditions": _conditions,
    "objectives": _objectives,
    "kinds": _kinds,
    "clock": draw_clock,
    "clock_sizes": draw_clock_sizes,
}
