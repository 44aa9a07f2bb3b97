"""Figures of the design problem: speed-up against draft size, and the path of the optimiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.report.figure_data import best_measured, cost_models, drawn_laws, solved
from sdsl_jax.report.style import (
    COLOURS,
    NAMES,
    figure,
    handle,
    log_sizes,
    mark_plain_decoding,
    series,
    target_label,
)


def draw_speedup(records: StudyRecords, folder: Path, name: str) -> None:
    """S against N at the best lookahead, with measured drafts and the indifference interval."""
    costs, laws = cost_models(records), drawn_laws(records)
    dashes = dict(zip(laws, ("-", ":")))
    with figure(folder, name, 1, len(costs), (5.2 * len(costs), 4.1)) as (_, axes):
        for axis, cost_model in zip(axes[0], costs):
            heights, optimum = [0.97, 1.03], False
            handles = []
            for target, style in series(records.targets):
                colour = style["color"]
                label = target_label(target.params_nonembedding)
                handles.append(handle(label, mfc="white", **style | {"ls": "-"}))
                for law, dash in dashes.items():
                    found = solved(records, target, cost_model, law)
                    if found is None:
                        continue
                    entry, landscape = found
                    curve = landscape.curve
                    values = np.asarray(curve.speedup, float)  # a hole where the law reaches 1
                    width = 1.8 if dash == "-" else 1
                    axis.plot(curve.draft_params, values, ls=dash, color=colour, lw=width)
                    heights += [np.nanmin(values), np.nanmax(values)]
                    if law != laws[0]:
                        continue
                    low, high = entry.indifference_1pct
                    if entry.speculate and low is not None:
                        optimum = True
                        axis.axvspan(low, high, color=colour, alpha=0.13, lw=0)
                        at = entry.draft_params, entry.speedup
                        axis.plot(*at, "*", color=colour, ms=12, mec="white")
                    measured = best_measured(entry)
                    sizes, speedups = (
                        [d.draft_params for d in measured],
                        [d.speedup for d in measured],
                    )
                    axis.plot(sizes, speedups, **style | {"ls": "", "mfc": "white"})
                    heights += speedups
            handles += [
                handle(NAMES[law], ls=dash, lw=1.8 if dash == "-" else 1)
                for law, dash in dashes.items()
            ]
            if optimum:
                handles.append(handle("optimum, shaded: within 1%", marker="*", ms=10))
            else:
                handles.append(handle("no optimum above plain decoding"))
            handles.append(handle("trained drafts, measured", marker="o", mfc="white"))
            mark_plain_decoding(axis)
            log_sizes(axis, "draft size N (non-embedding parameters)")
            lowest, highest = min(heights), max(heights)
            axis.set(
                ylim=(max(0.0, lowest - 0.05), highest + 0.05 + 0.4 * (highest - lowest)),
                ylabel="speed-up S at the best lookahead γ ≥ 1",
                title=f"{NAMES[cost_model][0].upper()}{NAMES[cost_model][1:]}",
            )
            axis.legend(handles=handles, loc="upper right", ncols=2)


def draw_optimiser(records: StudyRecords, folder: Path, name: str) -> None:
    """The path of gradient ascent over the map of S, with the reference."""
    costs, law, targets = cost_models(records), drawn_laws(records)[0], records.targets
    size = 4.9 * len(targets), 3.9 * len(costs)
    with figure(folder, name, len(costs), len(targets), size) as (drawn, axes):
        for row, cost_model in zip(axes, costs):
            for axis, target in zip(row, targets):
                label = short_count(target.params_nonembedding)
                axis.set_title(f"Target {label}, {NAMES[cost_model]}")
                found = solved(records, target, cost_model, law)
                if found is None:
                    continue
                entry, landscape = found
                surface, path = landscape.map, landscape.path
                grid = surface.draft_params, surface.lookahead, np.asarray(surface.speedup).T
                shade = axis.contourf(*grid, levels=14, cmap="viridis")
                drawn.colorbar(shade, ax=axis, label="speed-up S")
                if grid[2].min() < 1 < grid[2].max():
                    axis.contour(*grid, levels=[1.0], colors="white", linewidths=1)
                style = dict(color=COLOURS[1], lw=1.4, marker=".", ms=3)
                axis.plot(path.draft_params, path.lookahead, **style)
                start = path.draft_params[0], path.lookahead[0]
                axis.plot(*start, "o", color=COLOURS[1], mec="white")
                reference = entry.reference
                if reference.draft_params is not None:
                    at = reference.draft_params, reference.lookahead
                    axis.plot(*at, "*", color="white", mec="black", ms=14)
                else:
                    axis.text(
                        0.5,
                        0.95,
                        "no finite optimum"
                        if entry.lookahead is None
                        else "speculation does not pay",
                        transform=axis.transAxes,
                        ha="center",
                        va="top",
                        color="white",
                        weight="bold",
                    )
                log_sizes(axis, "draft size N (non-embedding parameters)")
                axis.set_ylim(min(surface.lookahead), max(surface.lookahead))
                axis.set_ylabel("lookahead γ (tokens)")
                axis.grid(False)
        drawn.legend(
            handles=[
                handle("gradient ascent, best start", color=COLOURS[1], marker=".", ls="-"),
                handle("its start", color=COLOURS[1], marker="o", mec="white"),
                handle(
                    "reference, if speculation pays", color="white", marker="*", mec="black", ms=14
                ),
                handle("S = 1, if crossed (white)", color="0.7", ls="-"),
            ],
            loc="outside lower center",
            ncols=4,
        )
