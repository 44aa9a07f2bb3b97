"""Interactive charts of the design problem: speed-up against draft size, and the map that the optimiser climbs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sdsl_jax.evidence import StudyRecords
from sdsl_jax.report.chart_parts import (
    PAIR,
    Axis,
    Chart,
    Row,
    Series,
    Spec,
    bars,
    cells,
    chart,
    curves,
    interval_tips,
    level,
    points,
    shade,
    stars,
    surface,
    tips,
    upper,
)
from sdsl_jax.report.figure_data import (
    best_measured,
    cost_models,
    drawn_laws,
    solved,
    target_names,
)
from sdsl_jax.report.style import NAMES

_SIZE = "draft size N (non-embedding parameters)"
# Cells of a map along each axis: the page stays small, and a cell is still easy to point at.
_CELLS = 24


def speedup_charts(records: StudyRecords) -> Iterator[Chart]:
    """S against N at the best lookahead for each cost model, with trained drafts and optima."""
    targets, laws = target_names(records), drawn_laws(records)
    series = Series("target", list(targets.values()))
    for cost_model in cost_models(records):
        lines: list[Row] = []
        near: list[Row] = []
        best: list[Row] = []
        trained: list[Row] = []
        for target in records.targets:
            name = targets[target.params_nonembedding]
            for law in laws:
                found = solved(records, target, cost_model, law)
                if found is None:
                    continue
                entry, landscape = found
                lines += [
                    {"series": name, "law": NAMES[law]} | row for row in _columns(landscape.curve)
                ]
                if law != laws[0]:
                    continue
                low, high = entry.indifference_1pct
                if entry.speculate and low is not None:
                    near.append({"series": name, "low": low, "high": high})
                    best.append(
                        {"series": name, "target_id": entry.target_id}
                        | {c: getattr(entry, c) for c in _OPTIMUM}
                    )
                trained += [
                    {"series": name, "target_id": entry.target_id} | vars(row)
                    for row in best_measured(entry)
                ]
        title = upper(NAMES[cost_model])
        speedup, size = Axis("speed-up S at the best lookahead γ ≥ 1"), Axis(_SIZE, True, True)
        x, y = size.of("draft_params"), speedup.of("speedup")
        dash = {
            "field": "law",
            "type": "nominal",
            "title": "law",
            "scale": {"domain": [NAMES[law] for law in laws], "range": [[1, 0], [2, 3]]},
            "legend": {"orient": "bottom", "columns": 1, "labelLimit": 240},
        }
        at_curve = {
            "series": "target",
            "law": "law",
            "draft_params": "draft size|,.0f",
            "lookahead": "best γ|.1f",
            "speedup": "predicted S|.3f",
            "acceptance": "α|.3f",
            "cost": "draft step (target steps)|.3f",
        }
        at_draft = PAIR | {
            "draft_params": "draft size|,",
            "train_tokens": "training tokens|,",
            "lookahead": "γ|d",
            "tokens_per_round": "tokens per round|.3f",
            "speedup": "measured S|.3f",
        }
        at_best = {
            "target_id": "target",
            "draft_params": "N*|,.0f",
            "lookahead": "γ*|.2f",
            "speedup": "S*|.3f",
            "acceptance": "α|.3f",
        }
        shaded: Spec = {
            "data": {"name": "sizes within 1%"},
            "mark": {"type": "rect", "fillOpacity": 0.13},
            "encoding": {
                "x": size.of("low"),
                "x2": {"field": "high"},
                "color": series.colour(),
                "opacity": {"condition": {"param": "shown", "value": 1}, "value": 0},
            },
        }
        yield chart(
            f"speedup-{cost_model}",
            title + (": no optimum above plain decoding" if not best else ""),
            f"Speed-up over plain decoding against draft size for each target, with {NAMES[cost_model]}: "
            "lines by two acceptance laws, points of trained drafts, stars at the optima, and bands of "
            "the sizes within 1% of them.",
            {
                "laws": lines,
                "trained drafts": trained,
                "optima": best,
                "sizes within 1%": near,
            },
            [
                *([shaded] if near else []),
                level(speedup, 1.0, "plain decoding"),
                curves("laws", x, y, series, tips(**at_curve), dash),
                bars("trained drafts", x, y, "speedup", series),
                points(
                    "trained drafts",
                    x,
                    y,
                    tips(
                        **at_draft,
                        **interval_tips(records.config.measure.confidence, "speedup", ".3f"),
                    ),
                    series,
                    hollow=True,
                    toggles=True,
                ),
                *([stars("optima", x, y, tips(**at_best), series)] if best else []),
            ],
            height=340,
        )


_OPTIMUM = ("draft_params", "lookahead", "lookahead_integer", "speedup", "acceptance", "cost")


def _columns(table: Any) -> list[Row]:
    """Rows of an object whose attributes are columns."""
    columns = vars(table)
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def optimiser_charts(records: StudyRecords) -> Iterator[Chart]:
    """The map of S for each target and cost model, with the path of gradient ascent."""
    law, targets = drawn_laws(records)[0], target_names(records)
    for cost_model in cost_models(records):
        for number, target in enumerate(records.targets, 1):
            found = solved(records, target, cost_model, law)
            if found is None:
                continue
            entry, landscape = found
            where = landscape.map
            thin = max(1, len(where.draft_params) // _CELLS)
            sizes, lookaheads = where.draft_params[::thin], where.lookahead[::thin]
            values = np.asarray(where.speedup)[::thin, ::thin]
            x = Axis(_SIZE, True, True, domain=(sizes[0], sizes[-1]))
            y = Axis("lookahead γ (tokens)", domain=(lookaheads[0], lookaheads[-1]))
            place = x.of("draft_params"), y.of("lookahead")
            at = {"draft_params": "draft size|,.0f", "lookahead": "γ|.2f", "speedup": "S|.3f"}
            shaded = surface(
                "map",
                x,
                y,
                shade(
                    "speedup",
                    "speed-up S (white: plain decoding)",
                    (float(values.min()), float(values.max())),
                    middle=1.0,
                ),
                tooltip=tips(at_x="draft size|,.0f", at_y="γ|.2f", speedup="S|.3f"),
            )
            path = [
                row | {"step": i}
                for i, row in enumerate(_columns(landscape.path))
                # The path may begin outside the map.
                if lookaheads[0] <= row["lookahead"] <= lookaheads[-1]
                and sizes[0] <= row["draft_params"] <= sizes[-1]
            ]
            (line,) = curves("gradient ascent", *place, color="black")
            line["encoding"]["order"] = {"field": "step"}
            reference = entry.reference
            optimum = (
                []
                if reference.draft_params is None
                else [{c: getattr(reference, c) for c in (*at, "method")}]
            )
            star = stars(
                "reference",
                *place,
                tips(method="reference", **at),
                color="white",
                stroke="black",
            )
            end = "star: reference" if optimum else "speculation does not pay"
            if entry.lookahead is None:
                end = "no finite optimum"
            yield chart(
                f"optimiser-{cost_model}-{number}",
                [
                    f"{upper(targets[target.params_nonembedding])}, {NAMES[cost_model]}",
                    f"line: gradient ascent; {end}",
                ],
                f"Speed-up over draft size and lookahead for {target.model_id} with {NAMES[cost_model]}, "
                "and the path of gradient ascent.",
                {
                    "map": cells(sizes, lookaheads, values, "speedup", log_x=True),
                    "gradient ascent": path,
                    "reference": optimum,
                },
                [
                    shaded,
                    line,
                    points(
                        "gradient ascent",
                        *place,
                        tips(step="point of the path|d", **at),
                        size=18,
                        colour="black",
                    ),
                    *([star] if optimum else []),
                ],
            )
