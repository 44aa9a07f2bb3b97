"""Speed-up against the size of the draft relative to its target, in FLOPs and on the clock, for targets of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.evidence.clock_sizes import BestSize, ClockSizes, TargetSizes
from sdsl_jax.report.style import figure, handle, mark_plain_decoding, series, target_label

CLOCK_SIZES_CAPTION = (
    "Speed-up at the best lookahead against the size of the draft over that of its target, both in non-embedding parameters. "
    "Left: in FLOPs. Right: on the clock. Points: drafts that were measured (filled: models trained on the text; hollow: drafts "
    "of other kinds). Lines: the fitted laws, with the costs of the same drafts. Stars: N*/M. Dotted: a draft 200 times smaller."
)
_TITLES = {"flops": "In FLOPs", "clock": "On the clock"}
_TICKS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)


def draw_clock_sizes(records: StudyRecords, folder: Path, name: str) -> bool:
    """Draws the figure if the study timed decoders whose tokens per round are known."""
    evidence = records.document("evidence", Evidence)
    answer = evidence and evidence.clock_sizes
    if not answer:
        return False
    draw_sizes([answer], folder, name)
    return True


def draw_sizes(answers: Sequence[ClockSizes], folder: Path, name: str) -> None:
    """One line and set of points for each target of one study or several.

    Args:
      answers: Answers of studies; the first that has a target is asked about it.
      folder: Folder of the files.
      name: Name of the files, without ending.
    """
    targets = targets_of(answers)
    with figure(folder, name, 1, 2, (9.4, 4.0)) as (drawn, axes):
        for axis, cost in zip(axes[0], _TITLES):
            for target, style in series(t.target_id for t in targets):
                one = next(t for t in targets if t.target_id == target)
                _target(axis, one, cost, style)
            mark_plain_decoding(axis)
            axis.axvline(1 / 200, color="0.4", lw=1.0, ls=":")
            axis.annotate(
                "M/200",
                (1 / 200, 0.99),
                (3, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color="0.3",
            )
            axis.set(xscale="log", yscale="log", xlabel="draft over target, N/M")
            axis.set(title=_TITLES[cost], ylabel="speed-up S at the best lookahead")
            low, high = axis.get_ylim()
            axis.yaxis.set_major_locator(FixedLocator([t for t in _TICKS if low <= t <= high]))
            axis.yaxis.set_major_formatter("{x:g}×")
            axis.yaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        styles = dict(series(t.target_id for t in targets))
        handles = [handle(target_label(t.target_params), **styles[t.target_id]) for t in targets]
        handles += [
            handle("points: measured", marker="o"),
            handle("lines: laws", ls="-"),
            handle("best size", marker="*", ms=10),
        ]
        drawn.legend(handles=handles, loc="outside lower center", ncols=5)


def targets_of(answers: Sequence[ClockSizes]) -> list[TargetSizes]:
    """The targets of several studies, each once, the smallest first."""
    by_id: dict[str, TargetSizes] = {}
    for answer in answers:
        for target in answer.targets:
            by_id.setdefault(target.target_id, target)
    return sorted(by_id.values(), key=lambda t: t.target_params)


def _target(axis: Any, target: TargetSizes, cost: str, style: dict[str, Any]) -> None:
    best: BestSize = getattr(target, cost)
    m = target.target_params
    if best.sizes:
        axis.plot(np.asarray(best.sizes) / m, best.speedups, color=style["color"], lw=1.4)
        at = best.draft_params.estimate / m, best.speedup.estimate
        axis.plot(*at, "*", color=style["color"], ms=11, mec="white", zorder=5)
    for own in (True, False):
        shown = [d for d in target.drafts if (d.trained_for == "text") == own]
        shown = [d for d in shown if d.draft_params < m]
        speedups = [getattr(d, cost).speedup for d in shown]
        y = np.asarray([s.estimate for s in speedups])
        bars = [y - [s.low for s in speedups], [s.high for s in speedups] - y] if shown else None
        axis.errorbar(
            [d.draft_params / m for d in shown],
            y,
            yerr=bars,
            ls="",
            ms=4,
            elinewidth=0.8,
            **style | ({} if own else {"mfc": "white"}),
        )
