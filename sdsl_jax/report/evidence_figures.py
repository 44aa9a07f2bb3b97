"""Figures for the sceptic: each is drawn only if the records hold what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sdsl_jax.counts import short_count
from sdsl_jax.records import ModelRecord, longest_trained
from sdsl_jax.report.clock_figure import CLOCK_CAPTION, draw_clock
from sdsl_jax.report.inputs import Records
from sdsl_jax.report.law_figures import LAW_CAPTIONS, LAW_FIGURES
from sdsl_jax.report.style import COLOURS, NAMES, colours, figure

EVIDENCE_CAPTIONS = LAW_CAPTIONS | {
    "dependence": "Left: the α that the geometric formula needs to give the tokens per round of each lookahead, for "
    "the drafts of the largest budget and the largest target; under independent acceptance every curve would be level. "
    "Dashed: exact α on the same samples, which the curves approach as more positions are tested. Bars: intervals over "
    "samples. Right: error of three models of the tokens per round, mean over all pairs, with intervals over drafts; "
    "hollow: lookaheads that a model was fitted to.",
    "conditions": "Acceptance where other things change, for the largest target: with the sampling temperature (drafts of the "
    "largest budget), from one text to another at the loss gap measured on each, and for drafts trained on other text beside "
    "the study's own at the same loss (bar: interval of the same-data value).",
    "clock": CLOCK_CAPTION,
}
_MODELS = ("geometric", "beta", "persistent")
_MOST_DRAFTS = 7


def draw_evidence(records: Records, folder: Path) -> None:
    """Draws the figures of `EVIDENCE_CAPTIONS` that the records hold something for, and removes older ones of the others."""
    for name, draw in _FIGURES.items():
        if not draw(records, folder, name):
            for kind in ("png", "pdf"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)


def _largest_budgets(records: Records, ids: set[str]) -> list[ModelRecord]:
    """Of some drafts one for each size, the smallest first: that of the largest budget; no more than can be told apart."""
    ordered = longest_trained((m for m in records.models if m.model_id in ids), "draft")
    if len(ordered) <= _MOST_DRAFTS:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, _MOST_DRAFTS).round().astype(int)]


def _bars(rows: list[dict[str, float | None]]) -> list[list[float]]:
    """Lower and upper lengths of error bars; none where an interval is not known."""
    return [
        [float("nan") if r[end] is None else abs(r["estimate"] - r[end]) for r in rows]  # type: ignore[operator]
        for end in ("low", "high")
    ]


def _title(target: ModelRecord) -> str:
    return f"target {short_count(target.params_nonembedding)}"


def _dependence(records: Records, folder: Path, name: str) -> bool:
    found, target = records.evidence.get("dependence"), records.targets[-1]
    if not found:
        return False
    exact = {p["draft_id"]: p["alpha"] for p in found["pairs"] if p["target_id"] == target.model_id}
    drafts = _largest_budgets(records, set(exact))
    with figure(folder, name, 1, 2, (11.5, 4.1)) as (_, axes):
        left, right = axes[0]
        for draft, colour in zip(drafts, colours(len(drafts))):
            rows = [
                r
                for r in records.expected
                if (r.draft_id, r.target_id) == (draft.model_id, target.model_id)
            ]
            rows.sort(key=lambda r: r.lookahead)
            error = [[r.alpha - r.alpha_low for r in rows], [r.alpha_high - r.alpha for r in rows]]
            x = [r.lookahead for r in rows]
            label = short_count(draft.params_nonembedding)
            style = dict(fmt="o-", color=colour, elinewidth=0.8, lw=1.2, ms=3.5, label=label)
            left.errorbar(x, [r.alpha for r in rows], yerr=error, **style)
            left.plot([min(x), max(x)], 2 * [exact[draft.model_id]], "--", color=colour, lw=0.8)
        left.set(xlabel="lookahead γ (tokens)", ylabel="α that gives τ(γ)")
        left.set_title(f"Inverted acceptance, {_title(target)} (dashed: exact)")
        left.legend(title="draft", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        rows = found["by_lookahead"]
        gamma = np.asarray([r["lookahead"] for r in rows])
        fitted = np.asarray([not r["judged"] for r in rows])
        for i, (model, colour) in enumerate(zip(_MODELS, COLOURS)):
            errors = [r["error"][model] for r in rows]
            y, at = np.asarray([e["estimate"] for e in errors]), gamma + 0.12 * (i - 1)
            right.errorbar(
                at,
                y,
                yerr=_bars(errors),
                fmt="o-",
                color=colour,
                elinewidth=0.8,
                lw=1.2,
                ms=4,
                label=NAMES[model],
            )
            if model != "geometric":
                right.plot(at[fitted], y[fitted], "o", mfc="white", mec=colour, ms=5, zorder=5)
        right.axhline(0, color="0.4", lw=0.8)
        right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        right.set(xlabel="lookahead γ (tokens)", ylabel="tokens per round, model / measured − 1")
        right.set_title(f"Error of τ, mean of {found['n']} pairs")
        right.legend(loc="best")
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return True


def _conditions(records: Records, folder: Path, name: str) -> bool:
    target = records.targets[-1]
    panels = [
        (draw, answer)
        for key, draw in (
            ("temperature", _by_temperature),
            ("domain", _by_domain),
            ("same_data", _same_data),
        )
        if (answer := records.evidence.get(key))
        and any(p["target_id"] == target.model_id for p in answer["pairs"])
    ]
    if not panels:
        return False
    with figure(folder, name, 1, len(panels), (4.6 * len(panels) + 0.6, 4.1)) as (_, axes):
        for axis, (draw, answer) in zip(axes[0], panels):
            draw(axis, answer, records, target)
            axis.set_ylabel(f"acceptance α ({NAMES[answer['estimator']]})")
    return True


def _by_temperature(
    axis: Any, answer: dict[str, Any], records: Records, target: ModelRecord
) -> None:
    alpha = {
        p["draft_id"]: p["alpha"] for p in answer["pairs"] if p["target_id"] == target.model_id
    }
    drafts = _largest_budgets(records, set(alpha))
    temperatures = [row["temperature"] for row in answer["by_temperature"]]
    for draft, colour in zip(drafts, colours(len(drafts))):
        label = short_count(draft.params_nonembedding)
        axis.plot(
            temperatures, alpha[draft.model_id], "o-", color=colour, lw=1.2, ms=4, label=label
        )
    axis.set(xlabel="sampling temperature T", title=f"By temperature, {_title(target)}")
    axis.legend(title="draft", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _by_domain(axis: Any, answer: dict[str, Any], records: Records, target: ModelRecord) -> None:
    rows = [p for p in answer["pairs"] if p["target_id"] == target.model_id]
    names = [row["domain"] for row in answer["by_domain"]]
    for k, (domain, colour) in enumerate(zip(names, colours(len(names)))):
        gap, alpha = [p["gap"][k] for p in rows], [p["alpha"][k] for p in rows]
        axis.plot(gap, alpha, "os^Dv*P"[k % 7], color=colour, ms=4.5, label=domain)
    axis.set(
        xlabel="loss gap on that text, draft − target (nats)", title=f"By text, {_title(target)}"
    )
    axis.legend(loc="best")


def _same_data(axis: Any, answer: dict[str, Any], records: Records, target: ModelRecord) -> None:
    own = [p for p in answer["own"] if p["target_id"] == target.model_id]
    others = [p for p in answer["pairs"] if p["target_id"] == target.model_id]
    loss, same = [p["loss"] for p in others], np.asarray([p["alpha_same_data"] for p in others])
    axis.plot([p["loss"] for p in own], [p["alpha"] for p in own], "o", color=COLOURS[0], ms=4.5)
    # The interval of a difference is that of the same-data value, for the other draft's α is the
    # same in every resample.
    low, high = (np.abs([p[end] - p["difference"] for p in others]) for end in ("high", "low"))
    axis.errorbar(loss, same, yerr=[low, high], fmt="_", color=COLOURS[0], elinewidth=0.8, ms=8)
    axis.plot(loss, [p["alpha"] for p in others], "D", color=COLOURS[1], ms=4.5)
    axis.vlines(loss, same, [p["alpha"] for p in others], color="0.6", lw=0.7, ls=":")
    axis.set(
        xlabel="draft loss on the study's text (nats per token)",
        title=f"Other training text, {_title(target)}",
    )
    axis.legend(
        handles=[
            Line2D(
                [], [], color=COLOURS[0], marker="o", ls="", label="trained on the study's text"
            ),
            Line2D(
                [],
                [],
                color=COLOURS[0],
                marker="_",
                ls="",
                label="such a draft at the other's loss",
            ),
            Line2D([], [], color=COLOURS[1], marker="D", ls="", label="trained on other text"),
        ],
        loc="best",
    )


_FIGURES = LAW_FIGURES | {"dependence": _dependence, "conditions": _conditions, "clock": draw_clock}
