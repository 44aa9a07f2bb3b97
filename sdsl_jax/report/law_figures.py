"""Figures of what the laws leave over and of what they predicted: each is drawn only if the evidence holds what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from sdsl_jax.counts import short_count
from sdsl_jax.report.inputs import Records
from sdsl_jax.report.style import COLOURS, NAMES, colours, figure, label_sizes

LAW_CAPTIONS = {
    "residuals": "What the laws leave over. Left: measured over predicted loss − 1 of every model that the loss law was fitted "
    "to; bars: mean of each size. Right: measured − predicted acceptance under the best law; bars: mean of each draft size.",
    "holdout": "Predictions that were published before the held-out models were looked at. Left: losses, with the published "
    "intervals. Middle: acceptance of every pair with a held-out member. Right: the measured speed-up (FLOPs) that each way of "
    "choosing draft and lookahead gives for the largest target, and what it forgoes of the best.",
}


def _residuals(records: Records, folder: Path, name: str) -> bool:
    found = records.evidence.get("residuals")
    if not found:
        return False
    with figure(folder, name, 1, 2, (11.5, 3.9)) as (_, axes):
        left, right = axes[0]
        points = found["loss_points"]
        budgets = sorted({p["tokens"] for p in points})
        for budget, colour in zip(budgets, colours(len(budgets))):
            chosen = [p for p in points if p["tokens"] == budget]
            x = [p["params"] for p in chosen]
            left.plot(
                x,
                [np.expm1(p["residual"]) for p in chosen],
                "o",
                color=colour,
                ms=4,
                label=short_count(budget),
            )
        _means(left, [(row["size"], np.expm1(row["mean"])) for row in found["loss_by_size"]])
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        left.set(
            ylabel="measured / predicted loss − 1",
            title=f"Loss law, residual {found['loss_rmse']:.2%}",
        )
        left.legend(title="tokens", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        pairs = found["alpha_points"]
        targets = sorted({p["target_params"] for p in pairs})
        for target, colour in zip(targets, colours(len(targets))):
            chosen = [p for p in pairs if p["target_params"] == target]
            x = [p["draft_params"] for p in chosen]
            right.plot(
                x,
                [p["residual"] for p in chosen],
                "o",
                color=colour,
                ms=4,
                label=short_count(target),
            )
        _means(right, [(row["size"], row["mean"]) for row in found["alpha_by_draft"]])
        right.set(
            ylabel="measured − predicted α",
            title=f"{NAMES[found['alpha_law']].capitalize()}, residual {found['alpha_rmse']:.4f}",
        )
        right.legend(title="target", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for axis, label in (
            (left, "non-embedding parameters"),
            (right, "draft size (non-embedding parameters)"),
        ):
            axis.axhline(0, color="0.4", lw=0.8)
            axis.set_xscale("log")
            label_sizes(axis.xaxis, label)
    return True


def _means(axis: Any, rows: list[tuple[float, float]]) -> None:
    for size, mean in rows:
        axis.plot([size / 1.12, size * 1.12], [mean, mean], color="0.2", lw=2.2, zorder=4)


def _holdout(records: Records, folder: Path, name: str) -> bool:
    found = records.evidence.get("holdout")
    if not found:
        return False
    with figure(folder, name, 1, 3, (14.5, 4.4)) as (_, axes):
        left, middle, right = axes[0]
        rows = found["losses"]
        sizes = sorted({row["params"] for row in rows})
        for size, colour in zip(sizes, colours(len(sizes))):
            chosen = [row for row in rows if row["params"] == size]
            y = np.asarray([row["loss"] for row in chosen])
            bars = [
                y - [row["low"] for row in chosen],
                np.asarray([row["high"] for row in chosen]) - y,
            ]
            label = f"{short_count(size)} ({chosen[0]['extrapolation']:.2g}×)"
            left.errorbar(
                [r["measured"] for r in chosen],
                y,
                yerr=bars,
                fmt="o",
                color=colour,
                elinewidth=0.8,
                label=label,
            )
        _diagonal(left, [v for row in rows for v in (row["measured"], row["loss"])])
        left.set(
            xlabel="measured loss (nats per token)",
            ylabel="predicted loss (nats per token)",
            title="Losses of held-out models",
        )
        left.legend(title="size (over largest seen)", loc="upper left")
        pairs = found["pairs"]
        kinds = {
            (True, False): "held-out draft",
            (False, True): "held-out target",
            (True, True): "both held out",
        }
        for (draft, target), colour in zip(kinds, COLOURS):
            chosen = [
                p for p in pairs if (p["draft_held_out"], p["target_held_out"]) == (draft, target)
            ]
            if chosen:
                measured, predicted = [p["measured"] for p in chosen], [p["alpha"] for p in chosen]
                middle.plot(
                    measured,
                    predicted,
                    "o",
                    color=colour,
                    ms=3.5,
                    alpha=0.8,
                    label=kinds[draft, target],
                )
        _diagonal(middle, [v for p in pairs for v in (p["measured"], p["alpha"])])
        error = found["alpha_by_law"][found["best_law"]]["mae"]
        middle.set(
            xlabel="measured α",
            ylabel="predicted α",
            title=f"Acceptance, mean absolute error {error:.4f}",
        )
        middle.legend(loc="upper left")
        strategies = found["choice"]["strategies"]
        speedups = [s["speedup"] for s in strategies.values()]
        at = np.arange(len(speedups))[::-1]
        right.barh(
            at,
            speedups,
            color=[COLOURS[5] if i < 2 else "0.85" for i in range(len(speedups))],
            height=0.7,
        )
        best = found["choice"]["best_measured"]
        right.axvline(best["speedup"], color=COLOURS[1], lw=1.2)
        for place, (label, s) in zip(at, strategies.items()):
            text = f"{label}" + (
                f": {s['draft_id'].removeprefix('draft-')}, γ = {s['lookahead']}"
                if s["draft_id"]
                else ""
            )
            right.annotate(
                text, (0, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5
            )
            right.annotate(
                f"−{s['regret']:.1%}",
                (best["speedup"], place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        right.set_yticks([])
        right.set_xlim(0, best["speedup"] * 1.18)
        right.set(
            xlabel="measured speed-up S (FLOPs)", title=f"Choices for {found['choice']['target']}"
        )
        handles = [
            Line2D(
                [],
                [],
                color=COLOURS[1],
                label=f"best measured: {best['draft_id'].removeprefix('draft-')}, γ = {best['lookahead']}",
            )
        ]
        right.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return True


def _diagonal(axis: Any, values: list[float]) -> None:
    span = [min(values), max(values)]
    axis.plot(span, span, color="0.5", lw=0.8, ls="--")


LAW_FIGURES = {"residuals": _residuals, "holdout": _holdout}
