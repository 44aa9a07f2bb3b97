"""The landscape of a co-design problem: speed-up over draft size and lookahead, and designs as good as the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sdsl_jax.codesign.answer import Answer
from sdsl_jax.codesign.designs import Candidate, Landscape
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.report.style import COLOURS, figure, log_sizes

_LEVELS = 20
# Labels of candidates that are nearer than this in ln N are put at different heights.
_NEAR = 0.5
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
        filled = axis.contourf(*place, surface.speedup, levels=_LEVELS, cmap="viridis", zorder=0)
        drawing.colorbar(filled, ax=axis, label="speed-up S over the target alone", format="%.2f")
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
            _mark(axis, surface, answer.candidates, diamond)
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


def _mark(
    axis: Any, surface: Landscape, candidates: Sequence[Candidate], marker: dict[str, Any]
) -> None:
    """Candidates at their best lookaheads, labelled with their sizes; those outside are left out."""
    last, raised = -np.inf, False
    for row in sorted(candidates, key=lambda row: row.size):
        size = getattr(row.draft_params, surface.counted)
        if not surface.draft_params[0] <= size <= surface.draft_params[-1]:
            continue
        raised = not raised if np.log(size) - last < _NEAR else False
        last = np.log(size)
        axis.plot(size, row.lookahead, **marker, ms=7, zorder=4)
        axis.annotate(
            f"{short_count(row.size)}: {row.speedup:.2f}×",
            (size, row.lookahead),
            (0, 22 if raised else 9),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
            zorder=6,
        )
