"""The landscape of a co-design problem: speed-up over draft size and lookahead, what is allowed, and where the optimiser went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sdsl_jax.codesign.evaluate import Landscape
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.report.style import COLOURS, figure, label_sizes

_LEVELS = 20
# Labels of candidates that are nearer than this in ln N are put at different heights.
_NEAR = 0.5


def draw_landscape(
    surface: Landscape, path: np.ndarray | None, values: dict[str, Any], title: str, file: Path
) -> None:
    """S as filled contours, with the forbidden region hatched, the optimiser's path, the optimum
    and the candidates.

    Args:
      surface: S over draft size and lookahead.
      path: draft size and lookahead at every step of the optimiser, [steps, 2]; None where they
        were no variables.
      values: the answer, as `sdsl codesign --json` prints it.
      title: of the figure.
      file: to be written, a PNG; a PDF is written beside it.

    Raises:
      SdslError: the name does not end in .png, or the file cannot be written.
    """
    require(file.suffix == ".png", f"the picture is to be {file}; its name must end in .png.")
    with figure(file.parent, file.stem, 1, 1, (7.6, 5.4)) as (made, axes):
        axis = axes[0, 0]
        drawn = axis.contourf(
            surface.draft_params,
            surface.lookahead,
            surface.speedup,
            levels=_LEVELS,
            cmap="viridis",
            zorder=0,
        )
        made.colorbar(drawn, ax=axis, label="speed-up S over the target alone", format="%.2f")
        handles: list[Any] = []
        if surface.speedup.min() < 1 < surface.speedup.max():
            axis.contour(
                surface.draft_params,
                surface.lookahead,
                surface.speedup,
                [1.0],
                colors="white",
                linestyles="--",
            )
            handles.append(
                Line2D([], [], color="white", ls="--", label="S = 1: as fast as the target alone")
            )
        if not surface.allowed.all():
            _forbid(axis, surface)
            handles.append(
                Patch(
                    facecolor="0.55",
                    alpha=0.6,
                    hatch="///",
                    edgecolor="white",
                    label="breaks a limit",
                )
            )
        if path is not None:
            axis.plot(path[:, 0], path[:, 1], color=COLOURS[1], lw=1.5)
            axis.plot(*path[0], "o", color=COLOURS[1], mec="white", ms=7)
            handles.append(
                Line2D(
                    [],
                    [],
                    color=COLOURS[1],
                    marker="o",
                    mec="white",
                    label="path of the optimiser, from its start",
                )
            )
        best = values["design"]["draft_params"][surface.counted], values["lookahead"]
        axis.plot(*best, "*", color="white", mec="black", ms=17, zorder=5)
        handles.append(
            Line2D(
                [],
                [],
                color="white",
                marker="*",
                mec="black",
                ms=14,
                ls="",
                label=("optimum" if values["feasible"] else "breaks the limits least")
                + f", S = {values['speedup']:.2f}",
            )
        )
        if values["candidates"]:
            _mark(axis, surface, values["candidates"])
            handles.append(
                Line2D(
                    [],
                    [],
                    color=COLOURS[4],
                    marker="D",
                    mec="black",
                    ls="",
                    label="candidates, best whole γ",
                )
            )
        axis.set_xscale("log")
        axis.set_xlim(surface.draft_params[0], surface.draft_params[-1])
        axis.set_ylim(surface.lookahead[0], surface.lookahead[-1])
        label_sizes(axis.xaxis, f"draft size N ({surface.counted.replace('_', '-')} parameters)")
        axis.set_ylabel("lookahead γ (tokens per round)")
        axis.set_title(title)
        axis.grid(False)
        legend = made.legend(handles=handles, loc="outside lower center", ncols=2, frameon=True)
        # White lines and stars need a ground to be seen on.
        legend.get_frame().set(facecolor="0.8", edgecolor="none")


def _forbid(axis: Any, surface: Landscape) -> None:
    """Hatches what breaks a limit."""
    forbidden = np.where(surface.allowed, 0.0, 1.0)
    with matplotlib.rc_context({"hatch.color": "white", "hatch.linewidth": 0.7}):
        axis.contourf(
            surface.draft_params,
            surface.lookahead,
            forbidden,
            levels=[0.5, 1.5],
            colors=["0.35"],
            alpha=0.45,
        )
        axis.contourf(
            surface.draft_params,
            surface.lookahead,
            forbidden,
            levels=[0.5, 1.5],
            colors="none",
            hatches=["///"],
        )
        if surface.allowed.any():
            axis.contour(
                surface.draft_params,
                surface.lookahead,
                forbidden,
                levels=[0.5],
                colors="white",
                linewidths=1,
            )


def _mark(axis: Any, surface: Landscape, candidates: list[dict[str, Any]]) -> None:
    """Candidates at their best lookaheads, named by their sizes; those that lie outside are left out."""
    last, raised = -np.inf, False
    for row in sorted(candidates, key=lambda c: c["size"]):
        size = row["draft_params"][surface.counted]
        if not surface.draft_params[0] <= size <= surface.draft_params[-1]:
            continue
        raised = not raised if np.log(size) - last < _NEAR else False
        last = np.log(size)
        axis.plot(size, row["lookahead"], "D", color=COLOURS[4], mec="black", ms=7, zorder=4)
        axis.annotate(
            f"{short_count(row['size'])}: {row['speedup']:.2f}×",
            (size, row["lookahead"]),
            (0, 22 if raised else 9),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
            zorder=6,
        )
