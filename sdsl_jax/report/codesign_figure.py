"""The landscape of a co-design problem: speed-up over draft size and lookahead, and designs as good as the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from sdsl_jax.codesign.answer import Answer
from sdsl_jax.codesign.comparison import Candidate
from sdsl_jax.codesign.designs import Landscape
from sdsl_jax.codesign.schedule import Schedule
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.report.style import COLOURS, figure, log_sizes

_LEVELS = 20
# At most so many steps between the labels of the colour bar.
_TICKS = 8
# Half the sizes of the markers of the best design and of candidates, in points.
_STAR, _DIAMOND = 9.0, 5.0
# Where labels may be, seen from their markers, the nearest first, in points.
_OFFSETS = sorted(
    (
        (x, y)
        for y in range(-90, 91, 15)
        for x in (0, -48, 48, -96, 96)
        if abs(y) > 11 or abs(x) > 11
    ),
    key=lambda place: (place[0] ** 2 / 3 + place[1] ** 2, -place[1]),
)
# Losses that contours show, with their line styles.
_LOSSES = {0.01: "-", 0.05: "--"}


def draw_landscape(surface: Landscape, answer: Answer, title: str, file: Path) -> None:
    """S as filled contours, with the forbidden region hatched, the designs within 1% and 5% of the
    best one outlined, the best design and the candidates.

    Args:
      surface: S over draft size and lookahead.
      answer: The answer whose best design and candidates are marked.
      title: Title of the figure.
      file: The PNG to write; a PDF is written beside it.

    Raises:
      SdslError: the name does not end in .png, or the file cannot be written.
    """
    require(file.suffix == ".png", f"cannot draw {file}: its name must end in .png.")
    with figure(file.parent, file.stem, 1, 1, (7.6, 5.6)) as (drawing, axes):
        axis = axes[0, 0]
        place = surface.draft_params, surface.lookahead
        filled = axis.contourf(
            *place, surface.speedup, locator=_rounds(_LEVELS), cmap="viridis", zorder=0
        )
        bar = drawing.colorbar(filled, ax=axis, label="speed-up S over the target alone")
        bar.locator = _rounds(_TICKS)
        bar.update_ticks()
        handles: list[Any] = []
        if surface.speedup.min() < 1 < surface.speedup.max():
            axis.contour(*place, surface.speedup, [1.0], colors="white", linestyles=":")
            handles.append(_line("white", ":", "S = 1: as fast as the target alone"))
        if not surface.allowed.all():
            _forbid(axis, surface)
            look: dict[str, Any] = {
                "facecolor": "0.55",
                "alpha": 0.6,
                "hatch": "///",
                "edgecolor": "white",
            }
            handles.append(Patch(**look, label="breaks a limit"))
        lost = np.where(surface.allowed, surface.lost, np.nan)
        for loss, style in _LOSSES.items():
            if answer.feasible and np.nanmin(lost) < loss < np.nanmax(lost):
                axis.contour(*place, lost, [loss], colors="black", linestyles=style, linewidths=1.4)
                handles.append(_line("black", style, f"within {loss:.0%} of the best design"))
        best = getattr(answer.design.draft_params, surface.counted), answer.lookahead
        star: dict[str, Any] = {"marker": "*", "color": "white", "mec": "black", "ls": ""}
        axis.plot(*best, **star, ms=17, zorder=5)
        label = "best design" if answer.feasible else "breaks the limits least"
        handles.append(Line2D([], [], **star, ms=14, label=f"{label}, S = {answer.speedup:.2f}"))
        if answer.candidates:
            diamond: dict[str, Any] = {"marker": "D", "color": COLOURS[4], "mec": "black", "ls": ""}
            shown = _mark(axis, surface, answer.candidates, diamond)
            handles.append(Line2D([], [], **diamond, label="candidates, best whole γ"))
        axis.set_xlim(surface.draft_params[0], surface.draft_params[-1])
        axis.set_ylim(surface.lookahead[0], surface.lookahead[-1])
        log_sizes(axis, f"draft size N ({surface.counted.replace('_', '-')} parameters)")
        axis.set_ylabel("lookahead γ (tokens per round)")
        axis.set_title(title)
        axis.grid(False)
        legend = drawing.legend(handles=handles, loc="outside lower center", ncols=2, frameon=True)
        # White lines and stars need a ground to be seen on.
        legend.get_frame().set(facecolor="0.8", edgecolor="none")
        if answer.candidates:
            drawing.draw_without_rendering()  # which settles where points are on the page
            _label(drawing, axis, shown, best)


def _line(colour: str, style: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, ls=style, label=label)


def _forbid(axis: Any, surface: Landscape) -> None:
    """Hatches what breaks a limit."""
    forbidden = surface.draft_params, surface.lookahead, np.where(surface.allowed, 0.0, 1.0)
    with matplotlib.rc_context({"hatch.color": "white", "hatch.linewidth": 0.7}):
        axis.contourf(*forbidden, levels=[0.5, 1.5], colors=["0.35"], alpha=0.45)
        axis.contourf(*forbidden, levels=[0.5, 1.5], colors="none", hatches=["///"])
        if surface.allowed.any():
            axis.contour(*forbidden, levels=[0.5], colors="white", linewidths=1)


def _rounds(bins: int) -> ticker.MaxNLocator:
    """At most so many steps between round numbers."""
    return ticker.MaxNLocator(bins, steps=[1, 2, 5, 10])


def _mark(
    axis: Any, surface: Landscape, candidates: Sequence[Candidate], marker: dict[str, Any]
) -> list[tuple[float, Candidate]]:
    """Marks candidates at their best lookaheads; those outside are left out.

    Returns:
      Those that are shown, with their place on the axis of sizes, in order of it.
    """
    places = [(getattr(row.draft_params, surface.counted), row) for row in candidates]
    inside = surface.draft_params[0], surface.draft_params[-1]
    shown = [(size, row) for size, row in places if inside[0] <= size <= inside[1]]
    for size, row in shown:
        axis.plot(size, row.lookahead, **marker, ms=7, zorder=4)
    return sorted(shown, key=lambda place: place[0])


def _label(
    drawing: Figure, axis: Any, shown: list[tuple[float, Candidate]], best: tuple[float, float]
) -> None:
    """Labels candidates with size and speed-up, each in the nearest place that is free.

    Places that are taken are those of other labels, of the markers and of the best design.
    """
    pixel = drawing.dpi / 72
    halves = [_STAR, *[_DIAMOND] * len(shown)]
    points = axis.transData.transform([best, *((size, row.lookahead) for size, row in shown)])
    taken = [
        Bbox.from_extents(*(point - half * pixel), *(point + half * pixel))
        for point, half in zip(points, halves)
    ]
    frame = axis.get_window_extent()
    for size, row in shown:
        text = f"{short_count(row.size)}: {row.speedup:.2f}×"
        style: dict[str, Any] = {"fontsize": 8, "ha": "center", "va": "center", "zorder": 6}
        trial = axis.text(size, row.lookahead, text, **style)
        around = trial.get_window_extent().padded(3 * pixel)
        trial.remove()
        boxes = {place: Bbox(around.get_points() + pixel * np.asarray(place)) for place in _OFFSETS}
        free = [
            place
            for place, box in boxes.items()
            if all(frame.contains(*corner) for corner in box.get_points())
            and not box.count_overlaps(taken)
        ]
        place = (free or _OFFSETS)[0]
        taken.append(boxes[place])
        axis.annotate(
            text,
            (size, row.lookahead),
            place,
            textcoords="offset points",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "0.2", "shrinkA": 0, "shrinkB": 4},
            **style,
        )


def draw_schedule(schedule: Schedule, file: Path) -> None:
    """The best lookahead over batch and context, its speed-up written into each cell.

    Args:
      schedule: What is drawn.
      file: The PNG to write; a PDF is written beside it.

    Raises:
      SdslError: the name does not end in .png, or the file cannot be written.
    """
    require(file.suffix == ".png", f"cannot draw {file}: its name must end in .png.")
    batches = list(dict.fromkeys(cell.batch for cell in schedule.cells))
    contexts = list(dict.fromkeys(cell.context for cell in schedule.cells))
    gammas = np.full((len(contexts), len(batches)), np.nan)
    for cell in schedule.cells:
        if cell.fits is not False:
            gammas[contexts.index(cell.context), batches.index(cell.batch)] = cell.lookahead
    size = (1.6 + 0.75 * len(batches), 1.6 + 0.5 * len(contexts))
    with figure(file.parent, file.stem, 1, 1, size) as (drawing, axes):
        axis = axes[0, 0]
        most = max(1, int(np.nanmax(gammas)))
        colours = matplotlib.colormaps["viridis"].resampled(most + 1).with_extremes(bad="0.85")
        drawn = axis.pcolormesh(
            np.ma.masked_invalid(gammas),
            cmap=colours,
            vmin=-0.5,
            vmax=most + 0.5,
            edgecolors="white",
        )
        drawing.colorbar(drawn, ax=axis, label="lookahead γ (0: off)", ticks=range(most + 1))
        for cell in schedule.cells:
            at = batches.index(cell.batch) + 0.5, contexts.index(cell.context) + 0.5
            gain = f"{cell.speedup:.2f}×" if cell.lookahead else "off"
            text = "no room" if cell.fits is False else gain
            dark = cell.fits is not False and cell.lookahead < 0.6 * most
            axis.text(*at, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
        axis.set_xticks(np.arange(len(batches)) + 0.5, [str(b) for b in batches])
        axis.set_yticks(np.arange(len(contexts)) + 0.5, [f"{c:,.0f}" for c in contexts])
        axis.set_xlabel("rows decoded together")
        axis.set_ylabel("context of each row")
        axis.set_title("Best lookahead and its speed-up")
