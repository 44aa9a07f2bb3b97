"""Decoders on the clock: predicted against measured, what choices lose, and what batches do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.evidence.clock import Clock
from sdsl_jax.report.style import (
    COLOURS,
    NAMES,
    figure,
    handle,
    mark_plain_decoding,
    percent_axis,
    series,
    target_label,
)

CLOCK_CAPTION = (
    "On the clock of this machine. Left: speed-up over plain decoding of every draft and lookahead, measured in interleaved "
    "runs, against what laws and calibrated machine predict; grey lines: predicted equals measured (solid), and 5% above and "
    "below (dashed). "
    "Middle: share of the best measured "
    "speed-up that each way of choosing loses, mean over targets (bars) and each target (points); the best decoder was chosen "
    "on one half of the repetitions and judged on the other. Right: the best of the same few decoders at each batch; points: "
    "measured, lines: predicted."
)


def draw_clock(records: StudyRecords, folder: Path, name: str) -> bool:
    """Draws the figure if the study timed decoders."""
    evidence = records.document("evidence", Evidence)
    clock = evidence and evidence.clock
    if not clock:
        return False
    styles = dict(series(sorted({row.target_params for row in clock.targets})))
    with figure(folder, name, 1, 3, (14.5, 4.4)) as (drawn, axes):
        # In inches: labels of one panel stay clear of the next.
        drawn.set_layout_engine("constrained", w_pad=0.12)
        _cells(axes[0, 0], clock, styles)
        _regrets(axes[0, 1], clock, styles)
        _batches(axes[0, 2], clock, styles)
    return True


def _cells(axis: Any, clock: Clock, styles: dict[int, dict[str, Any]]) -> None:
    for size, style in styles.items():
        rows = [c for c in clock.cells if c.target_params == size and c.batch == 1]
        x, y = [c.speedup for c in rows], [c.predicted for c in rows]
        axis.plot(x, y, ls="", ms=3.8, alpha=0.8, label=target_label(size), **style)
    values = [v for c in clock.cells for v in (c.speedup, c.predicted)]
    span = np.asarray([0.9 * min(values), 1.1 * max(values)])
    for factor, width in ((0.95, 0.6), (1.0, 1.0), (1.05, 0.6)):
        label = {1.0: "equal", 1.05: "±5%"}.get(factor)
        dashes = "-" if factor == 1 else "--"
        axis.plot(span, factor * span, color="0.5", lw=width, ls=dashes, zorder=0, label=label)
    axis.set(xscale="log", yscale="log", xlim=span, ylim=span)
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0) if span[0] <= t <= span[1]]
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(FixedLocator(ticks))
        each.set_major_formatter(ScalarFormatter())
        each.set_minor_formatter(NullFormatter())
    error = f": median error {clock.error.median_absolute:.1%}" if clock.error else ""
    axis.set(
        xlabel="measured speed-up S",
        ylabel="predicted speed-up S",
        title=f"Every draft and lookahead{error}",
    )
    axis.legend(loc="upper left")


def _regrets(axis: Any, clock: Clock, styles: dict[int, dict[str, Any]]) -> None:
    policies = list(clock.mean_regret)
    at = np.arange(len(policies))[::-1]
    means = list(clock.mean_regret.values())
    axis.barh(at, means, color=[COLOURS[5]] + ["0.85"] * (len(policies) - 1), height=0.4)
    for size, style in styles.items():
        row = next(r for r in clock.targets if r.target_params == size)
        axis.plot([row.regret[name] for name in policies], at, ls="", ms=4, **style)
    for place, mean in zip(at, means):
        axis.annotate(
            f"{mean:.1%}", (0, place + 0.2), (3, 2), textcoords="offset points", fontsize=8
        )
    axis.set_yticks(at, [NAMES[name] for name in policies])
    axis.set_ylim(-0.6, len(policies) - 0.3)
    percent_axis(axis.xaxis, decimals=0)
    axis.set(
        xlabel="share of the best measured S lost",
        title="What a choice costs (bars: mean; points: targets)",
    )


def _batches(axis: Any, clock: Clock, styles: dict[int, dict[str, Any]]) -> None:
    if not clock.batches:
        axis.set_axis_off()
        return
    handles = []
    for row in clock.batches:
        style = styles.get(row.target_params, {"color": "0.4", "marker": "x"})
        batch = [p.batch for p in row.points]
        axis.plot(batch, [p.predicted for p in row.points], color=style["color"])
        axis.plot(batch, [p.measured for p in row.points], ls="", **style)
        handles.append(handle(target_label(row.target_params), **style | {"ls": "-"}))
    mark_plain_decoding(axis)
    batches = sorted({p.batch for row in clock.batches for p in row.points})
    axis.set_xscale("log")
    axis.set_xticks(batches, [str(b) for b in batches])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="batch (rows)", ylabel="best speed-up S", title="Does it pay in batches?")
    handles += [handle("points: measured", marker="o"), handle("lines: predicted", ls="-")]
    axis.legend(handles=handles, loc="best")
