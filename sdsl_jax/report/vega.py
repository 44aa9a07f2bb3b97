"""Interactive charts in pages that need no network: Vega-Lite, bundled, and data that cannot close a script."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import vl_convert
from markupsafe import Markup

from sdsl_jax.report.style import COLOURS

# The look of every chart, close to that of the figures for papers.
CONFIG: dict[str, Any] = {
    "font": "system-ui, sans-serif",
    "background": "#ffffff",
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12.5,
        "titleFontWeight": "normal",
        "gridColor": "#e6e6e6",
        "domainColor": "#888888",
        "tickColor": "#888888",
        "labelOverlap": True,
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "title": {"fontSize": 13.5, "fontWeight": "normal", "anchor": "start"},
    "view": {"stroke": None},
    "range": {"category": list(COLOURS)},
    "point": {"size": 60},
}


@functools.cache
def library() -> str:
    """JavaScript of Vega, Vega-Lite and Vega-Embed, for a `<script type="module">`; it defines `vegaEmbed`."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )


def script_json(value: Any) -> Markup:
    """A value as JSON for a script element of a page: no text in it can close the element.

    Numbers that are not finite become null, as JSON has none.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
