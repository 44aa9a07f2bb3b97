"""The charts of an explorer page, as Vega-Lite specifications of named datasets; see `view.View`."""

from __future__ import annotations

from typing import Any

from sdsl_jax.explore.state import Choices
from sdsl_jax.report.style import COLOURS
from sdsl_jax.report.vega import CONFIG

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name: nothing is loaded from it
_BLUE, _ORANGE, _GREEN, _PURPLE = COLOURS[:4]
# Labels such as 50M at 1, 2 and 5 times each power of ten, as the tables write them.
_COUNTS = (
    "indexof([1, 2, 5], round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))) < 0"
    " ? '' : replace(format(datum.value, '.3~s'), 'G', 'B')"
)
_MAP_HEIGHT, _HEIGHT = 300, 240


def _axis(title: str | None, **more: Any) -> dict[str, Any]:
    return {"title": title, **more}


def _size(field: str, title: str, **more: Any) -> dict[str, Any]:
    """A logarithmic axis of sizes."""
    scale = {"type": "log", "nice": False, "padding": 0}
    axis = _axis(title, labelExpr=_COUNTS, grid=False)
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis, **more}


def _flattened(name: str, *columns: str) -> dict[str, Any]:
    return {"data": {"name": name}, "transform": [{"flatten": list(columns)}]}


def _tooltip(*fields: tuple[str, str, str]) -> list[dict[str, Any]]:
    """(field, title, format) of every line; a format of "count" writes 54.7M."""
    return [
        {"field": field, "title": title, "type": "nominal"}
        if not form
        else {"field": field, "title": title, "format": form, "type": "quantitative"}
        for field, title, form in fields
    ]


_OF_DESIGN = _tooltip(
    ("name", "draft", ""),
    ("size", "N", ".3~s"),
    ("lookahead", "γ", "d"),
    ("speedup", "speed-up S", ".4f"),
)


def _map(size: str) -> dict[str, Any]:
    """S over draft size and lookahead, the region within 1%, the best design and the candidates."""
    gamma = {
        "field": "lookahead",
        "type": "ordinal",
        "sort": "descending",
        "axis": _axis("lookahead γ (tokens drafted per round)", labelAngle=0),
    }
    x, x2 = _size("left", size), {"field": "right"}
    tooltip = _tooltip(
        ("size", "N", ".3~s"),
        ("lookahead", "γ", "d"),
        ("speedup", "speed-up S", ".4f"),
        ("lost", "lost against the best", ".1%"),
    )
    colour = {
        "field": "speedup",
        "type": "quantitative",
        "scale": {"scheme": "viridis", "zero": False},
        "legend": {"title": "speed-up S", "gradientLength": 200, "format": ".2f"},
    }
    cells = _flattened("map", "left", "right", "size", "speedup", "lost")
    whole = [*cells["transform"], {"filter": "isValid(datum.speedup)"}]
    ends = [
        {"op": "min", "field": "left", "as": "left"},
        {"op": "max", "field": "right", "as": "right"},
    ]
    near = [
        *whole,
        {"filter": "datum.lost <= 0.01"},
        {"aggregate": ends, "groupby": ["lookahead"]},
    ]
    return {
        "description": "Heat map of the speed-up over draft size and lookahead, with the best design, "
        "the designs within 1% of it, and the candidates.",
        "height": _MAP_HEIGHT,
        "layer": [
            {
                **cells,
                "transform": whole,
                "mark": {"type": "rect", "clip": True, "x2Offset": 0.6},
                "encoding": {"x": x, "x2": x2, "y": gamma, "color": colour, "tooltip": tooltip},
            },
            {
                **cells,
                "transform": near,
                "mark": {
                    "type": "rect",
                    "fillOpacity": 0,
                    "stroke": "#000000",
                    "strokeWidth": 1.2,
                    "clip": True,
                },
                "encoding": {"x": x, "x2": x2, "y": gamma},
            },
            _points("measured", gamma, _size("size", size), "circle", _PURPLE, 55),
            _points("candidates", gamma, _size("size", size), "diamond", COLOURS[4], 110),
            _points("best", gamma, _size("size", size), _STAR, "#ffffff", 260),
        ],
    }


_STAR = "M0,-1L0.23,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.23,-0.31Z"


def _points(
    name: str, y: dict[str, Any], x: dict[str, Any], shape: str, colour: str, size: float
) -> dict[str, Any]:
    mark = {
        "type": "point",
        "shape": shape,
        "filled": True,
        "fill": colour,
        "stroke": "#000000",
        "strokeWidth": 1,
        "opacity": 1,
        "size": size,
        # The best design is often the smallest draft, at the edge.
        "clip": name != "best",
    }
    encoding = {"x": x, "y": y, "tooltip": _OF_DESIGN}
    return {"data": {"name": name}, "mark": mark, "encoding": encoding}


def _curve(size: str) -> dict[str, Any]:
    """S against draft size with its interval, and the sizes that lose little."""
    x = _size("size", size)
    y = {
        "field": "speedup",
        "type": "quantitative",
        "scale": {"zero": False},
        "axis": _axis("speed-up S over the target alone"),
    }
    flat = _flattened("curve", "size", "speedup", "lookahead", "low", "high")
    tooltip = _tooltip(
        ("size", "N", ".3~s"),
        ("lookahead", "best γ", "d"),
        ("speedup", "speed-up S", ".4f"),
        ("low", "90% interval from", ".3f"),
        ("high", "to", ".3f"),
    )
    ends = {"low": {**x, "field": "low"}, "high": {"field": "high"}}
    band = {"type": "area", "opacity": 0.22, "color": _BLUE, "clip": True}
    return {
        "description": "Line of the best speed-up against draft size, with the interval that the laws leave "
        "open, the sizes within 1% and 5% of the best, and measured drafts.",
        "height": _HEIGHT,
        "layer": [
            {
                "data": {"name": "within"},
                "mark": {"type": "rect", "color": _GREEN, "opacity": 0.13, "clip": True},
                "encoding": {
                    "x": ends["low"],
                    "x2": ends["high"],
                    "tooltip": _tooltip(
                        ("loss", "drafts", ""), ("low", "from N", ".3~s"), ("high", "to N", ".3~s")
                    ),
                },
            },
            {
                **flat,
                "transform": [*flat["transform"], {"filter": "isValid(datum.low)"}],
                "mark": band,
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"values": [{"speedup": 1}]},
                "mark": {"type": "rule", "color": "#777777", "strokeDash": [4, 3]},
                "encoding": {"y": y},
            },
            {
                **flat,
                "mark": {"type": "line", "color": _BLUE, "strokeWidth": 2.2, "clip": True},
                "encoding": {"x": x, "y": y},
            },
            {
                **flat,
                "mark": {"type": "point", "size": 90, "opacity": 0},
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
            {
                "data": {"name": "measured"},
                "mark": {"type": "rule", "color": _PURPLE, "clip": True},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "speedup_low"},
                    "y2": {"field": "speedup_high"},
                },
            },
            _points("measured", y, x, "circle", _PURPLE, 55),
            _points("candidates", y, x, "diamond", COLOURS[4], 110),
            _points("best", y, x, _STAR, "#ffffff", 260),
        ],
    }


def _schedule() -> dict[str, Any]:
    """The best lookahead of every batch and context."""
    batch = {"field": "batch", "type": "ordinal", "axis": _axis("batch (sequences)", labelAngle=0)}
    context = {
        "field": "context",
        "type": "ordinal",
        "sort": "descending",
        "axis": _axis("context (tokens)", labelExpr="format(datum.value, ',d')"),
    }
    flat = _flattened("schedule", "batch", "lookahead", "speedup", "fits")
    fitting = [*flat["transform"], {"filter": "datum.fits"}]
    tooltip = _tooltip(
        ("batch", "batch", "d"),
        ("context", "context", ",d"),
        ("lookahead", "best γ", "d"),
        ("speedup", "speed-up S", ".3f"),
    )
    colour = {
        "field": "lookahead",
        "type": "quantitative",
        "scale": {"scheme": "blues", "domain": [0, 12], "clamp": True},
        "legend": None,
    }
    dark = {"test": "datum.fits && datum.lookahead > 7", "value": "#ffffff"}
    place = {"x": batch, "y": context}
    return {
        "description": "Table of the best lookahead by batch and context; 0 where speculation does not pay.",
        "height": 140,
        "layer": [
            {
                **flat,
                "transform": fitting,
                "mark": {"type": "rect", "stroke": "#ffffff"},
                "encoding": {**place, "color": colour, "tooltip": tooltip},
            },
            {
                **flat,
                "mark": {"type": "text", "fontSize": 13},
                "encoding": {
                    **place,
                    "text": {
                        "condition": {
                            "test": "datum.fits",
                            "field": "lookahead",
                            "type": "quantitative",
                        },
                        "value": "×",
                    },
                    "color": {"condition": dark, "value": "#1a1a1a"},
                },
            },
            {
                "data": {"name": "measured_schedule"},
                "mark": {
                    "type": "point",
                    "shape": "circle",
                    "size": 500,
                    "stroke": _PURPLE,
                    "strokeWidth": 2,
                },
                "encoding": {**place, "tooltip": _OF_DESIGN},
            },
        ],
    }


def _round() -> dict[str, Any]:
    """The time of a round, by part, beside that of the target alone."""
    parts = ["drafting", "verification", "overheads", "plain steps"]
    return {
        "description": "Bars of the milliseconds of a speculative round by part, and of the target alone for as many tokens.",
        "height": 92,
        "data": {"name": "round"},
        "mark": {"type": "bar"},
        "encoding": {
            "y": {
                "field": "way",
                "type": "nominal",
                "axis": _axis(None, labelLimit=190),
                "sort": None,
            },
            "x": {
                "field": "milliseconds",
                "type": "quantitative",
                "stack": True,
                "axis": _axis("time of a round (ms)"),
            },
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": parts, "range": [_ORANGE, _BLUE, "#999999", "#bbbbbb"]},
                "legend": {"title": None, "orient": "bottom", "columns": 2, "columnPadding": 8},
            },
            "order": {"field": "part_order", "type": "quantitative"},
            "tooltip": _tooltip(
                ("way", "of", ""), ("part", "part", ""), ("milliseconds", "ms", ".3f")
            ),
        },
        "transform": [{"calculate": f"indexof({parts!r}, datum.part)", "as": "part_order"}],
    }


# The datasets of each chart; where the first has no rows there is nothing to show.
DATASETS = {
    "map": ("map", "best", "candidates", "measured"),
    "curve": ("curve", "within", "best", "candidates", "measured"),
    "schedule": ("schedule", "measured_schedule"),
    "round": ("round",),
}


def charts(choices: Choices) -> dict[str, dict[str, Any]]:
    """The specification of every chart by the name of its place on the page, without data."""
    size = f"draft size N ({choices.counted.replace('_', '-')} parameters)"
    every = {"map": _map(size), "curve": _curve(size), "schedule": _schedule(), "round": _round()}
    common = {
        "$schema": _SCHEMA,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
    }
    return {name: {**common, **chart} for name, chart in every.items()}
