"""Figures of the design problem: speed-up against draft size, and the path of the optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from sdsl_jax.counts import short_count
from sdsl_jax.records import ModelRecord
from sdsl_jax.report.inputs import Records
from sdsl_jax.report.style import COLOURS, NAMES, colours, figure, label_sizes, mark_plain_decoding


def _of(
    records: Records, target: ModelRecord, cost_model: str, law: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Entry and landscape of one target, cost model and acceptance law."""
    wanted = (target.model_id, cost_model, law)
    for entry, landscape in zip(records.codesign, records.landscapes):
        if (entry["target_id"], entry["cost_model"], entry["acceptance_law"]) == wanted:
            return entry, landscape
    return None


def _cost_models(records: Records) -> list[str]:
    return list(dict.fromkeys(entry["cost_model"] for entry in records.codesign))


def _best_measured(entry: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Sizes of the drafts with the most tokens, and the speed-up of each at its best measured lookahead."""
    most = max((row["train_tokens"] for row in entry["trained"]), default=0)
    best: dict[float, float] = {}
    for row in entry["trained"]:
        if row["train_tokens"] == most:
            best[row["draft_params"]] = max(row["speedup"], best.get(row["draft_params"], 0.0))
    return list(best), list(best.values())


def draw_speedup(records: Records, folder: Path, name: str) -> None:
    """S against N at the best lookahead, with measured drafts and the indifference interval."""
    models = _cost_models(records)
    with figure(folder, name, 1, len(models), (5.2 * len(models), 4.1)) as (_, axes):
        for axis, cost_model in zip(axes[0], models):
            lowest, highest = 0.97, 1.03
            for target, colour in zip(records.targets, colours(len(records.targets))):
                for law, style in zip(records.solved_laws, ("-", ":")):
                    found = _of(records, target, cost_model, law)
                    if found is None:
                        continue
                    entry, landscape = found
                    curve = landscape["curve"]
                    values = np.asarray(curve["speedup"], float)  # a hole where the law reaches 1
                    axis.plot(
                        curve["draft_params"],
                        values,
                        style,
                        color=colour,
                        lw=1.8 if style == "-" else 1,
                    )
                    lowest, highest = (
                        min(lowest, np.nanmin(values)),
                        max(highest, np.nanmax(values)),
                    )
                    if style == "-":
                        if entry["speculate"] and entry["indifference_1pct"][0] is not None:
                            axis.axvspan(
                                *entry["indifference_1pct"], color=colour, alpha=0.13, lw=0
                            )
                            axis.plot(
                                entry["draft_params"],
                                entry["speedup"],
                                "*",
                                color=colour,
                                ms=12,
                                mec="white",
                            )
                        x, y = _best_measured(entry)
                        axis.plot(x, y, "o", color=colour, mfc="white")
                        lowest, highest = min([lowest, *y]), max([highest, *y])
            handles = [
                Line2D([], [], color=colour, label=f"target {short_count(t.params_nonembedding)}")
                for t, colour in zip(records.targets, colours(len(records.targets)))
            ]
            handles += [
                Line2D([], [], color="0.3", ls="-", label=NAMES[records.best_law]),
                Line2D([], [], color="0.3", ls=":", lw=1, label=NAMES[records.solved_laws[-1]]),
                Line2D(
                    [],
                    [],
                    color="0.3",
                    marker="*",
                    ms=10,
                    ls="",
                    label="optimum, shaded: within 1%",
                ),
                Line2D(
                    [],
                    [],
                    color="0.3",
                    marker="o",
                    mfc="white",
                    ls="",
                    label="trained drafts, measured",
                ),
            ]
            mark_plain_decoding(axis)
            axis.set_xscale("log")
            label_sizes(axis.xaxis, "draft size N (non-embedding parameters)")
            axis.set_ylim(max(0.0, lowest - 0.05), highest + 0.05 + 0.4 * (highest - lowest))
            axis.set_ylabel("speed-up S at the best lookahead γ ≥ 1")
            axis.set_title(f"{NAMES[cost_model][0].upper()}{NAMES[cost_model][1:]}")
            axis.legend(handles=handles, loc="upper right", ncols=2)


def draw_optimiser(records: Records, folder: Path, name: str) -> None:
    """The path of gradient ascent over the map of S, with the reference."""
    models = _cost_models(records)
    with figure(
        folder,
        name,
        len(models),
        len(records.targets),
        (4.9 * len(records.targets), 3.9 * len(models)),
    ) as (
        made,
        axes,
    ):
        for row, cost_model in zip(axes, models):
            for axis, target in zip(row, records.targets):
                found = _of(records, target, cost_model, records.best_law)
                axis.set_title(
                    f"Target {short_count(target.params_nonembedding)}, {NAMES[cost_model]}"
                )
                if found is None:
                    continue
                entry, landscape = found
                surface, path = landscape["map"], landscape["path"]
                values = np.asarray(surface["speedup"]).T
                drawn = axis.contourf(
                    surface["draft_params"], surface["lookahead"], values, levels=14, cmap="viridis"
                )
                made.colorbar(drawn, ax=axis, label="speed-up S")
                if values.min() < 1 < values.max():
                    axis.contour(
                        surface["draft_params"],
                        surface["lookahead"],
                        values,
                        levels=[1.0],
                        colors="white",
                        linewidths=1,
                    )
                axis.plot(
                    path["draft_params"],
                    path["lookahead"],
                    color=COLOURS[1],
                    lw=1.4,
                    marker=".",
                    ms=3,
                )
                axis.plot(
                    path["draft_params"][0],
                    path["lookahead"][0],
                    "o",
                    color=COLOURS[1],
                    mec="white",
                )
                reference = entry["reference"]
                if reference["draft_params"] is not None:
                    at = reference["draft_params"], reference["lookahead"]
                    axis.plot(*at, "*", color="white", mec="black", ms=14)
                else:
                    axis.text(
                        0.5,
                        0.95,
                        "speculation does not pay"
                        if entry["lookahead"] is not None
                        else "no finite optimum",
                        transform=axis.transAxes,
                        ha="center",
                        va="top",
                        color="white",
                        weight="bold",
                    )
                axis.set_xscale("log")
                label_sizes(axis.xaxis, "draft size N (non-embedding parameters)")
                axis.set_ylim(min(surface["lookahead"]), max(surface["lookahead"]))
                axis.set_ylabel("lookahead γ (tokens)")
                axis.grid(False)
        handles = [
            Line2D([], [], color=COLOURS[1], marker=".", label="gradient ascent, best start"),
            Line2D([], [], color=COLOURS[1], marker="o", mec="white", ls="", label="its start"),
            Line2D(
                [],
                [],
                color="white",
                marker="*",
                mec="black",
                ms=14,
                ls="",
                label="reference, if speculation pays",
            ),
            Line2D([], [], color="0.7", label="S = 1, if crossed (white)"),
        ]
        made.legend(handles=handles, loc="outside lower center", ncols=4)
