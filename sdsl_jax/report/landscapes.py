"""Figures of the design problem: speed-up against draft size, and the path of the optimiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.records import ModelRecord
from sdsl_jax.records.codesign import CodesignEntry, CodesignLandscape
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


def _of(
    records: StudyRecords, target: ModelRecord, cost_model: str, law: str
) -> tuple[CodesignEntry, CodesignLandscape] | None:
    """Entry and landscape of one target, cost model and acceptance law."""
    name = target.model_id, cost_model, law
    return next(
        (
            (e, landscape)
            for e, landscape in zip(records.codesign, records.landscapes)
            if (e.target_id, e.cost_model, e.acceptance_law) == name
        ),
        None,
    )


def _cost_models(records: StudyRecords) -> list[str]:
    return list(dict.fromkeys(entry.cost_model for entry in records.codesign))


def _best_measured(entry: CodesignEntry) -> dict[float, float]:
    """By size of the drafts with the most tokens: the speed-up at its best measured lookahead."""
    most = max((row.train_tokens for row in entry.trained), default=0)
    best: dict[float, float] = {}
    for row in entry.trained:
        if row.train_tokens == most:
            best[row.draft_params] = max(row.speedup, best.get(row.draft_params, 0.0))
    return best


def draw_speedup(records: StudyRecords, folder: Path, name: str) -> None:
    """S against N at the best lookahead, with measured drafts and the indifference interval."""
    cost_models = _cost_models(records)
    laws = list(dict.fromkeys(entry.acceptance_law for entry in records.codesign))
    dashes = dict(zip(laws, ("-", ":")))
    with figure(folder, name, 1, len(cost_models), (5.2 * len(cost_models), 4.1)) as (_, axes):
        for axis, cost_model in zip(axes[0], cost_models):
            heights, optimum = [0.97, 1.03], False
            handles = []
            for target, style in series(records.targets):
                colour = style["color"]
                label = target_label(target.params_nonembedding)
                handles.append(handle(label, mfc="white", **style | {"ls": "-"}))
                for law, dash in dashes.items():
                    solved = _of(records, target, cost_model, law)
                    if solved is None:
                        continue
                    entry, landscape = solved
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
                    measured = _best_measured(entry)
                    axis.plot(
                        measured.keys(), measured.values(), **style | {"ls": "", "mfc": "white"}
                    )
                    heights += measured.values()
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
    cost_models = _cost_models(records)
    law, targets = records.codesign[0].acceptance_law, records.targets
    size = 4.9 * len(targets), 3.9 * len(cost_models)
    with figure(folder, name, len(cost_models), len(targets), size) as (drawn, axes):
        for row, cost_model in zip(axes, cost_models):
            for axis, target in zip(row, targets):
                label = short_count(target.params_nonembedding)
                axis.set_title(f"Target {label}, {NAMES[cost_model]}")
                solved = _of(records, target, cost_model, law)
                if solved is None:
                    continue
                entry, landscape = solved
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
