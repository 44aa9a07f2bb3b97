"""What the interactive charts are made of: axes, series with a legend that toggles, tooltips and layers, as Vega-Lite."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.report.style import colours

Row = dict[str, Any]
Spec = dict[str, Any]

# In the order of `style.MARKERS`, so that a series looks alike in a picture and in its chart.
STAR = "M0,-1L0.235,-0.324L0.951,-0.309L0.38,0.124L0.588,0.809L0,0.4L-0.588,0.809L-0.38,0.124L-0.951,-0.309L-0.235,-0.324Z"
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", STAR, "cross")
_HEIGHT = 300
# Characters of a title that fit a telephone.
_LINE = 54
# The counts of `short_count`, in the browser.
_COUNTS = "replace(format(datum.value, '~s'), 'G', 'B')"
GREY = "#7f7f7f"


class Chart(NamedTuple):
    """An interactive chart of the report.

    Attributes:
      name: Its name in the page, of letters, digits and hyphens.
      spec: The Vega-Lite specification, with its data.
    """

    name: str
    spec: Spec

    @property
    def heading(self) -> str:
        """Its title in one line."""
        return " ".join(self.spec["title"])


class Axis(NamedTuple):
    """An axis.

    Attributes:
      title: Its label, with the unit.
      log: Whether it is logarithmic.
      counts: Whether it shows parameters or tokens, such as 30k.
      percent: Whether it shows shares as percentages.
      whole: Whether only whole numbers are marked.
      zero: Whether it begins at 0.
      domain: Its ends; those of the data if omitted.
    """

    title: str
    log: bool = False
    counts: bool = False
    percent: bool = False
    whole: bool = False
    zero: bool = False
    domain: tuple[float, float] | None = None

    def of(self, field: str) -> Spec:
        """The encoding of a column along this axis."""
        scale: Spec = {"zero": self.zero and not self.log, "nice": self.domain is None}
        if self.log:
            scale = {"type": "log", "nice": False}
        if self.domain is not None:
            scale["domain"] = list(self.domain)
        elif self.log:
            scale["padding"] = 12
        axis: Spec = {"tickCount": 6}
        if self.counts:
            axis["labelExpr"] = _COUNTS
        if self.percent:
            axis["format"] = ".1~%"
        if self.whole:
            axis |= {"tickMinStep": 1, "format": "d"}
        return {
            "field": field,
            "type": "quantitative",
            "title": self.title,
            "scale": scale,
            "axis": axis,
        }


class Series(NamedTuple):
    """What the points and curves of a chart are told apart by.

    Attributes:
      title: Title of the legend.
      names: The values of the column `series`, in the order of the legend.
      shown: How many the legend shows in a row, at most.
    """

    title: str
    names: list[str]

    def colour(self) -> Spec:
        """The encoding of colours, with the legend."""
        # As many columns as there is room for: a legend must fit a telephone as well. The width of the
        # container, unlike that of the axes, does not depend on the legend; `width` makes it follow.
        room = "(isFinite(containerSize()[0]) ? containerSize()[0] : width) - 60 + 0 * width"
        entry = 7.5 * max(map(len, self.names), default=1) + 32
        columns = {"expr": f"max(1, floor(({room}) / {entry}))"}
        legend = {"orient": "bottom", "columns": columns, "symbolOpacity": 1, "symbolSize": 80}
        return {
            "field": "series",
            "type": "nominal",
            "title": self.title,
            "scale": {"domain": self.names, "range": colours(len(self.names))},
            "legend": legend,
        }

    def shape(self) -> Spec:
        """The encoding of markers, in the same legend."""
        marks = [_SHAPES[i % len(_SHAPES)] for i in range(len(self.names))]
        return self.colour() | {"scale": {"domain": self.names, "range": marks}}


def tips(**titles: str) -> list[Spec]:
    """The lines of a tooltip.

    Args:
      **titles: By column, what it is called, and after a bar how it is written, as D3 formats
        numbers; text without one.
    """
    lines = []
    for field, text in titles.items():
        title, _, how = text.partition("|")
        kind: Spec = {"type": "quantitative", "format": how} if how else {"type": "nominal"}
        lines.append({"field": field, "title": title} | kind)
    return lines


def interval_tips(confidence: float, column: str, how: str) -> dict[str, str]:
    """Lines of a tooltip for the ends of an interval, as `tips` takes them."""
    return {f"{column}_low": f"{confidence:.0%} interval from|{how}", f"{column}_high": f"to|{how}"}


# Drafts and targets of pairs.
PAIR = {"draft_id": "draft", "target_id": "target"}
_FADED: Spec = {"condition": {"param": "shown", "value": 1}, "value": 0.07}


def points(
    data: str,
    x: Spec,
    y: Spec,
    tooltip: list[Spec],
    series: Series | None = None,
    *,
    hollow: bool = False,
    toggles: bool = False,
    colour: str = "#0072B2",
    **mark: Any,
) -> Spec:
    """A layer of points.

    Args:
      data: Name of its data set.
      x: Encoding along x.
      y: Encoding along y.
      tooltip: Lines of the tooltip.
      series: What tells points apart; None for points of one colour.
      hollow: Whether they are drawn as rings.
      toggles: Whether the legend of this layer shows and hides series; true in one layer of a chart.
      colour: Colour of points without series.
      **mark: Other properties of the mark.
    """
    # A ring is white inside so that what lies below does not show through.
    look: Spec = {"filled": False, "fill": "white"} if hollow else {"filled": True}
    encoding: Spec = {"x": x, "y": y, "tooltip": tooltip}
    if series:
        encoding |= {"color": series.colour(), "shape": series.shape(), "opacity": _FADED}
    else:
        look |= {"color": colour}
    layer: Spec = {
        "data": {"name": data},
        "mark": {"type": "point", "size": 55, "strokeWidth": 1.6, "opacity": 1} | look | mark,
        "encoding": encoding,
    }
    if toggles:
        select = {"type": "point", "fields": ["series"], "toggle": "true"}
        layer["params"] = [{"name": "shown", "select": select, "bind": "legend"}]
    return layer


def bars(data: str, x: Spec, y: Spec, ends: str, series: Series | None = None) -> Spec:
    """A layer of intervals, from the column `ends`_low to `ends`_high of the y axis."""
    return _interval(data, {"x": x, "y": y | {"field": f"{ends}_low"}}, "y2", ends, series)


def _interval(data: str, encoding: Spec, end: str, ends: str, series: Series | None) -> Spec:
    mark: Spec = {"type": "rule", "strokeWidth": 1.1}
    encoding = encoding | {end: {"field": f"{ends}_high"}}
    if series:
        encoding |= {"color": series.colour(), "opacity": _FADED}
    else:
        mark["color"] = GREY
    return {"data": {"name": data}, "mark": mark, "encoding": encoding}


def curves(
    data: str,
    x: Spec,
    y: Spec,
    series: Series | None = None,
    tooltip: list[Spec] | None = None,
    dash: Spec | None = None,
    **mark: Any,
) -> list[Spec]:
    """Layers of curves; with a tooltip, invisible points along them answer the pointer.

    Args:
      data: Name of the data set.
      x: Encoding along x.
      y: Encoding along y.
      series: What tells curves apart; None for curves of one colour.
      tooltip: Lines of the tooltip; None for none.
      dash: Encoding of the line style.
      **mark: Other properties of the lines.
    """
    encoding: Spec = {"x": x, "y": y}
    if series:
        encoding |= {"color": series.colour(), "opacity": _FADED}
    lines: Spec = {
        "data": {"name": data},
        "mark": {"type": "line", "strokeWidth": 1.5} | mark,
        "encoding": encoding | ({"strokeDash": dash} if dash else {}),
    }
    if tooltip is None:
        return [lines]
    unseen = {"type": "point", "filled": True, "opacity": 0, "size": 90}
    return [
        lines,
        {
            "data": {"name": data},
            "mark": unseen,
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
    ]


def level(y: Axis, at: float, text: str = "") -> list[Spec]:
    """Layers of a horizontal line across the chart, and of words at its right end."""
    data, encoding = {"values": [{"level": at}]}, {"y": y.of("level")}
    line = {"data": data, "mark": {"type": "rule", "color": GREY}, "encoding": encoding}
    if not text:
        return [line]
    mark = {
        "type": "text",
        "text": text,
        "align": "right",
        "baseline": "bottom",
        "dx": -2,
        "dy": -2,
        "color": "#555555",
    }
    place = {"x": {"value": "width"}, **encoding}
    return [line, {"data": data, "mark": mark, "encoding": place}]


def equality(x: Axis, y: Axis, span: tuple[float, float], factor: float = 1.0) -> Spec:
    """A layer of the line on which y is x, or so many times x."""
    ends = [{"from": end, "to": factor * end} for end in span]
    return {
        "data": {"values": ends},
        "mark": {"type": "line", "color": GREY, "strokeWidth": 1, "strokeDash": [5, 3]},
        "encoding": {"x": x.of("from"), "y": y.of("to")},
    }


def surface(data: str, x: Axis, y: Axis, colour: Spec, **encoding: Any) -> Spec:
    """A layer of coloured cells, from the columns `x`, `x2`, `y` and `y2`.

    Args:
      data: Name of the data set.
      x: The x axis.
      y: The y axis.
      colour: Encoding of the colours, by `shade`.
      **encoding: Other encodings.
    """
    return {
        "data": {"name": data},
        "mark": {"type": "rect", "stroke": None},
        "encoding": {
            "x": x.of("x"),
            "x2": {"field": "x2"},
            "y": y.of("y"),
            "y2": {"field": "y2"},
            "color": colour,
            **encoding,
        },
    }


def shade(field: str, title: str, domain: tuple[float, float], middle: float | None = None) -> Spec:
    """The encoding of a number as a colour.

    Args:
      field: Column of the number.
      title: Its title.
      domain: The numbers that get the first and the last colour.
      middle: A number below which colours are orange and above which they are blue; None for one
        scale from dark to light.
    """
    scale: Spec = {"scheme": "viridis", "domain": list(domain)}
    if middle is not None:
        ends = [min(domain[0], middle - 1e-3), middle, max(domain[1], middle + 1e-3)]
        colours_at = ["#D55E00", "#ffffff", "#0072B2"]
        scale = {"domain": ends, "range": colours_at, "interpolate": "rgb"}
    legend = {
        "orient": "bottom",
        "gradientLength": {"expr": "min(width, 240)"},
        "titleLimit": 280,
    }
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": scale,
        "legend": legend,
    }


def edges(centres: Sequence[float], log: bool = False) -> list[float]:
    """Where cells around the points of a grid end; the first and last end at the points themselves."""
    if log:
        return [math.exp(e) for e in edges([math.log(c) for c in centres])]
    middles = [(a + b) / 2 for a, b in pairwise(centres)]
    return [centres[0], *middles, centres[-1]]


def chart(
    name: str,
    title: str | list[str],
    description: str,
    data: Mapping[str, Iterable[Row]],
    layers: Iterable[Spec | list[Spec]],
    height: int | Spec = _HEIGHT,
) -> Chart:
    """A chart as wide as its place in the page.

    Args:
      name: Its name in the page, of letters, digits and hyphens.
      title: What stands above it, in one line or several.
      description: What it shows, for those who cannot see it.
      data: Rows by the name of their data set, which the downloaded table gives each row.
      layers: Its layers, the lowest first.
      height: Pixels from the top to the bottom of the axes.
    """
    flat: list[Spec] = []
    for layer in layers:
        flat += layer if isinstance(layer, list) else [layer]
    lines = [title] if isinstance(title, str) else title
    spec: Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        # Vega-Lite would make the axes narrower for a title that is wider than they are.
        "title": [part for line in lines for part in textwrap.wrap(line, _LINE)],
        "description": description,
        "width": "container",
        "height": height,
        "datasets": {key: [rounded(row) for row in rows] for key, rows in data.items()},
        "layer": flat,
        # Legends stand below each other, or a telephone would cut the second one off.
        "config": {"legend": {"layout": {"bottom": {"anchor": "start", "direction": "vertical"}}}},
    }
    return Chart(name, spec)


def upper(text: str) -> str:
    """A text with a capital letter at its beginning, and its others as they are."""
    return text[:1].upper() + text[1:]


def rounded(row: Row) -> Row:
    """A row with numbers of seven digits: more than a screen or an interval tells apart."""
    return {
        key: float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value
        for key, value in row.items()
    }


def stars(
    data: str, x: Spec, y: Spec, tooltip: list[Spec], series: Series | None = None, **mark: Any
) -> Spec:
    """A layer of stars, of the colours of the series; see `points`."""
    look: Spec = {"shape": STAR, "size": 420, "stroke": "white", "strokeWidth": 0.8}
    layer = points(data, x, y, tooltip, series, **look | mark)
    layer["encoding"].pop("shape", None)
    return layer


def cells(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    values: np.ndarray,
    name: str,
    log_x: bool = False,
) -> list[Row]:
    """Cells of a map: values[i, j] at x[i] and y[j]."""
    at_x, at_y = edges(list(map(float, x)), log_x), edges(list(map(float, y)))
    return [
        {
            "x": at_x[i],
            "x2": at_x[i + 1],
            "y": at_y[j],
            "y2": at_y[j + 1],
            "at_x": float(x[i]),
            "at_y": float(y[j]),
            name: float(values[i, j]),
        }
        for i in range(len(x))
        for j in range(len(y))
    ]
