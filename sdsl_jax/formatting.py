"""How counts are written for people."""

from __future__ import annotations

import math


def short_count(value: float | None) -> str:
    """A count with at most three digits and a suffix: 189M, 3.2k; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    for divisor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * divisor:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.3g}"
