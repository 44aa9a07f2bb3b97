"""N* against M: the paper's straight line, the power law beside it, and both beyond the range they were fitted on."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pandas as pd
import scipy.stats

from paper_figures.common import (
    DRAFT_TOKENS,
    FAMILY_TOKENS,
    SIZES,
    TARGET_TOKENS,
    TARGETS,
    Claim,
    optima,
)
from sdsl_jax.counts import short_count
from sdsl_jax.report.style import COLOURS, MARKERS, figure, label_sizes
from sdsl_jax.theory import linear_law

TITLE = "N* against M: a line and a power law"
CAPTION = (
    "Left: N* of the 13 targets, drafts trained on each family's tokens, with the pooled line (95% band) and a power law through the same "
    "points. Right: both beyond the targets they were fitted on, against the optimum itself (D = 180e9, D′ = 3e12; the power law is of all D, and so lies lower)."
)
MU, M0 = 2.71e-3, 8.71e7


def compute() -> pd.DataFrame:
    """The pool (13 targets × the 5 token counts of the families), and a curve beyond it (pool = False)."""
    pool = [
        pd.DataFrame(
            {
                "pool": True,
                "target": [t.name for t in TARGETS],
                "target_params": SIZES,
                "draft_tokens": d,
                "target_tokens": TARGET_TOKENS,
                "draft_params": optima(SIZES, d, TARGET_TOKENS).params,
            }
        )
        for d in FAMILY_TOKENS
    ]
    far = np.geomspace(1e9, 2e12, 80)
    beyond = [
        pd.DataFrame(
            {
                "pool": False,
                "target": "",
                "target_params": far,
                "draft_tokens": d,
                "target_tokens": 3e12,
                "draft_params": optima(far, d, 3e12).params,
            }
        )
        for d in (DRAFT_TOKENS, 18e12)
    ]
    return pd.concat([*pool, *beyond], ignore_index=True)


def fits(table: pd.DataFrame) -> tuple[tuple[float, ...], tuple[float, float]]:
    """(μ, M₀ and the half-widths of their 95% intervals) of the pooled line; exponent and log scale of the power law."""
    pool = table[table.pool]
    with jax.enable_x64(True):
        line = linear_law(pool.target_params.to_numpy(), pool.draft_params.to_numpy())
        values = [float(x) for x in line]
    quantile = float(scipy.stats.t.ppf(0.975, len(pool) - 2))
    exponent, scale = np.polyfit(np.log(pool.target_params), np.log(pool.draft_params), 1)
    return (values[0], values[1], quantile * values[2], quantile * values[3], values[4]), (
        float(exponent),
        float(scale),
    )


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """The pool with both fits, and their extrapolation."""
    (mu, m0, _, _, r_squared), (exponent, scale) = fits(table)
    pool, beyond = table[table.pool], table[~table.pool & (table.draft_tokens == DRAFT_TOKENS)]
    with figure(folder, name, 1, 2, (11.0, 4.2)) as (_, axes):
        left, right = axes[0]
        for i, (tokens, rows) in enumerate(pool.groupby("draft_tokens")):
            style = {"color": f"{0.15 + 0.15 * i:.2f}", "marker": MARKERS[i]}
            x, y = rows.target_params / 1e9, rows.draft_params / 1e6
            left.plot(x, y, ls="", ms=4, label=f"D = {short_count(tokens)}", **style)
        m = np.linspace(10e9, 115e9, 100)
        x = pool.target_params.to_numpy()
        sigma = np.sqrt(np.square(pool.draft_params - mu * x - m0).sum() / (len(x) - 2))
        half = (
            scipy.stats.t.ppf(0.975, len(x) - 2)
            * sigma
            * np.sqrt(1 / len(x) + (m - x.mean()) ** 2 / (len(x) * x.var()))
        )
        left.plot(
            m / 1e9,
            (mu * m + m0) / 1e6,
            color=COLOURS[0],
            lw=1.2,
            label=f"our pooled line, R² = {r_squared:.3f}",
        )
        left.fill_between(
            m / 1e9,
            (mu * m + m0 - half) / 1e6,
            (mu * m + m0 + half) / 1e6,
            color="0.2",
            alpha=0.15,
            lw=0,
        )
        left.plot(
            m / 1e9,
            (MU * m + M0) / 1e6,
            color=COLOURS[1],
            lw=1.2,
            ls="--",
            label="line of the paper",
        )
        left.plot(
            m / 1e9,
            np.exp(scale) * m**exponent / 1e6,
            color=COLOURS[2],
            lw=1.2,
            ls=":",
            label=f"power law, M^{exponent:.2f}",
        )
        left.set(
            xlabel="target size M (billions)",
            ylabel="optimal draft N* (millions)",
            title="On the paper's targets",
        )
        left.legend(loc="upper left", fontsize=8)
        right.loglog(beyond.target_params, beyond.draft_params, color="0.2", lw=2, label="optimum")
        ours = mu * beyond.target_params + m0
        right.loglog(beyond.target_params, ours, color=COLOURS[0], lw=1.2, label="our pooled line")
        right.loglog(
            beyond.target_params,
            MU * beyond.target_params + M0,
            color=COLOURS[1],
            ls="--",
            label="line of the paper",
        )
        right.loglog(
            beyond.target_params,
            np.exp(scale) * beyond.target_params**exponent,
            color=COLOURS[2],
            ls=":",
            label="power law",
        )
        right.axvspan(
            SIZES.min(), SIZES.max(), color="0.5", alpha=0.12, lw=0, label="targets of the paper"
        )
        label_sizes(right.xaxis, "target size M (total parameters)")
        label_sizes(right.yaxis, "optimal draft N* (total parameters)")
        right.set_title("Beyond them")
        right.legend(loc="upper left", fontsize=8)


def _curvature(table: pd.DataFrame) -> float:
    """Share of the pooled line's residual sum of squares that is common to all D: a function of the target alone."""
    pool = table[table.pool]
    slope, intercept = np.polyfit(pool.target_params, pool.draft_params, 1)
    residual = pool.draft_params - slope * pool.target_params - intercept
    common = residual.groupby(pool.target).transform("mean")
    return float(np.square(common).sum() / np.square(residual).sum())


def _points(half_width: float) -> float:
    """Points of our scatter that would give the paper's interval of μ."""
    return len(TARGETS) * len(FAMILY_TOKENS) * (half_width / 0.04e-3) ** 2


def claims(table: pd.DataFrame) -> list[Claim]:
    """μ, M₀ and their intervals; how far line and power law are off beyond the range."""
    (mu, m0, mu_half, m0_half, r_squared), (exponent, scale) = fits(table)
    pool = "our pool: 13 targets × D of the five families; the paper's pool is not stated"
    made = [
        Claim("μ", MU, mu, ".3g", f"{pool}; our 95% interval ±{mu_half:.2g}"),
        Claim("M₀", M0, m0, ".3g", f"our 95% interval ±{m0_half:.2g}"),
        Claim(
            "half-width of the 95% interval of μ",
            0.04e-3,
            mu_half,
            ".2g",
            f"so narrow an interval takes about {_points(mu_half):.0f} points that scatter like our 65",
        ),
        Claim("half-width of the 95% interval of M₀", 2.15e6, m0_half, ".2g", "the same"),
    ]
    for d in FAMILY_TOKENS:
        rows = table[table.pool & (table.draft_tokens == d)]
        slope, intercept = np.polyfit(rows.target_params, rows.draft_params, 1)
        made.append(
            Claim(
                f"μ at D = {short_count(d)} alone", MU, float(slope), ".3g", f"M₀ = {intercept:.3g}"
            )
        )
    made.append(
        Claim(
            "R² of the pooled line",
            None,
            r_squared,
            ".3f",
            f"of the rest {100 * _curvature(table):.0f}% is the curvature in M, and the remainder the dependence on D; none is chance",
        )
    )
    made.append(
        Claim("exponent of the power law", None, exponent, ".3f", "a line in M is a chord of it")
    )
    for d, rows in table[~table.pool].groupby("draft_tokens"):
        for size in (1e9, 1e12):
            truth = float(
                np.exp(
                    np.interp(np.log(size), np.log(rows.target_params), np.log(rows.draft_params))
                )
            )
            at = f"over the optimum at M = {short_count(size)}, D = {short_count(d)}"
            made.append(Claim(f"the paper's line {at}", None, (MU * size + M0) / truth, ".2f"))
            made.append(
                Claim(
                    f"our power law {at}",
                    None,
                    float(np.exp(scale) * size**exponent) / truth,
                    ".2f",
                )
            )
    return made
