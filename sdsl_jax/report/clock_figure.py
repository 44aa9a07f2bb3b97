"""Decoders on the clock: predicted against measured, what choices forgo, and what batches do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter, ScalarFormatter

from sdsl_jax.counts import short_count
from sdsl_jax.report.inputs import Records
from sdsl_jax.report.style import COLOURS, NAMES, colours, figure, mark_plain_decoding

CLOCK_CAPTION = (
    "On the clock of this machine. Left: speed-up over plain decoding of every draft and lookahead, measured in interleaved "
    "runs, against what laws and calibrated machine predict; dashed: equal, and 5% off. Middle: share of the best measured "
    "speed-up that each way of choosing forgoes, mean over targets (bars) and each target (points); the best decoder was chosen "
    "on one half of the repetitions and judged on the other. Right: the best of the same few decoders at each batch; points: "
    "measured, lines: predicted."
)


def draw_clock(records: Records, folder: Path, name: str) -> bool:
    """Draws the figure if the study timed decoders."""
    found = records.evidence.get("clock")
    if not found:
        return False
    with figure(folder, name, 1, 3, (14.5, 4.4)) as (drawn, axes):
        drawn.set_layout_engine(
            "constrained", w_pad=0.12
        )  # in inches: labels of one panel stay clear of the next
        _cells(axes[0, 0], found)
        _regrets(axes[0, 1], found)
        _batches(axes[0, 2], found)
    return True


def _colours(found: dict[str, Any]) -> dict[int, str]:
    sizes = sorted({row["target_params"] for row in found["targets"]})
    return dict(zip(sizes, colours(len(sizes))))


def _cells(axis: Any, found: dict[str, Any]) -> None:
    for size, colour in _colours(found).items():
        rows = [c for c in found["cells"] if c["target_params"] == size and c["batch"] == 1]
        axis.plot(
            [c["speedup"] for c in rows],
            [c["predicted"] for c in rows],
            "o",
            color=colour,
            ms=3.5,
            alpha=0.8,
            label=f"target {short_count(size)}",
        )
    values = [v for c in found["cells"] for v in (c["speedup"], c["predicted"])]
    span = np.asarray([0.9 * min(values), 1.1 * max(values)])
    for factor, width in ((0.95, 0.6), (1.0, 1.0), (1.05, 0.6)):
        axis.plot(span, factor * span, color="0.5", lw=width, ls="--", zorder=0)
    axis.set(xscale="log", yscale="log", xlim=span, ylim=span)
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0) if span[0] <= t <= span[1]]
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(FixedLocator(ticks))
        each.set_major_formatter(ScalarFormatter())
        each.set_minor_formatter(NullFormatter())
    error = found["error"]["median_absolute"]
    axis.set(
        xlabel="measured speed-up S",
        ylabel="predicted speed-up S",
        title=f"Every draft and lookahead: median error {error:.1%}",
    )
    axis.legend(loc="upper left")


def _regrets(axis: Any, found: dict[str, Any]) -> None:
    policies = [name for name, value in found["mean_regret"].items() if value is not None]
    at = np.arange(len(policies))[::-1]
    means = [found["mean_regret"][name] for name in policies]
    axis.barh(at, means, color=[COLOURS[5]] + ["0.85"] * (len(policies) - 1), height=0.4)
    for size, colour in _colours(found).items():
        row = next(r for r in found["targets"] if r["target_params"] == size)
        axis.plot([row["regret"][name] for name in policies], at, "o", color=colour, ms=4)
    for place, mean in zip(at, means):
        axis.annotate(
            f"{mean:.1%}", (0, place + 0.2), (3, 2), textcoords="offset points", fontsize=8
        )
    axis.set_yticks(at, [NAMES[name] for name in policies])
    axis.set_ylim(-0.6, len(policies) - 0.3)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set(xlabel="share of the best measured S forgone", title="What a choice costs")


def _batches(axis: Any, found: dict[str, Any]) -> None:
    if not found["batches"]:
        axis.set_axis_off()
        return
    for row in found["batches"]:
        colour = _colours(found).get(row["target_params"], "0.4")
        batch = [p["batch"] for p in row["points"]]
        axis.plot(batch, [p["predicted"] for p in row["points"]], "-", color=colour)
        axis.plot(batch, [p["measured"] for p in row["points"]], "o", color=colour)
    mark_plain_decoding(axis)
    batches = sorted({p["batch"] for row in found["batches"] for p in row["points"]})
    axis.set_xscale("log")
    axis.set_xticks(batches, [str(b) for b in batches])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="batch (rows)", ylabel="best speed-up S", title="Does it pay in batches?")
    axis.legend(
        handles=[
            Line2D([], [], color="0.3", marker="o", ls="", label="measured"),
            Line2D([], [], color="0.3", label="predicted"),
        ],
        loc="best",
    )
