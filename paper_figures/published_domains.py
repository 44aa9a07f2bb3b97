"""Acceptance by domain: levels, and what is predicted of domains, targets and drafts that were left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.common import Claim
from paper_figures.published import DOMAINS, LENGTHS
from sdsl_jax.fitting.acceptance_fits import fit_domains
from sdsl_jax.fitting.acceptance_rows import read_acceptance_rows, rows_of_levels
from sdsl_jax.fitting.domain_levels import held_out_levels, variance_shares
from sdsl_jax.report.style import figure, legend_beside, series

TITLE = "Acceptance by domain"
CAPTION = (
    "DSpark's Table 1: 3 drafters × 4 targets × 9 domains, α from τ at γ = 7. Left: α predicted by a fit that did not see the target, or did not see the domain. "
    "Right: α of each domain (points: the 12 pairs) and the 90% interval that the other eight domains give for a new one, for the middle drafter."
)
LEFT_OUT = ("target", "domain", "draft")


def compute() -> pd.DataFrame:
    """A row for each measurement of DSpark's table and what was left out."""
    levels = rows_of_levels(read_acceptance_rows(DOMAINS))
    share = lambda logit: 1 / (1 + np.exp(-np.asarray(logit)))  # noqa: E731
    parts = []
    for name in LEFT_OUT:
        held_out = held_out_levels(levels.table, levels.table.factors[name])
        low, high = held_out.prediction.interval(0.9)
        parts.append(
            pd.DataFrame(
                {
                    "left_out": name,
                    "method": levels.rows.columns["method"],
                    "target": levels.rows.columns["target"],
                    "domain": levels.rows.columns["domain"],
                    "tokens_per_round": levels.rows.tokens_per_round,
                    "measured": levels.alpha,
                    "predicted": share(held_out.prediction.logit),
                    "low": share(low),
                    "high": share(high),
                    "without_domains": share(held_out.plain),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Predicted against measured, and the levels with the interval for a new domain."""
    with figure(folder, name, 1, 2, (11, 4.4)) as (_, axes):
        left, right = axes[0]
        left.plot([0.5, 0.95], [0.5, 0.95], color="0.5", lw=0.8)
        for what, style in series(("target", "domain")):
            rows = table[table.left_out == what]
            left.plot(
                rows.measured,
                rows.predicted,
                ls="",
                ms=4,
                alpha=0.7,
                label=f"{what} left out",
                **style,
            )
        left.set(xlabel="measured α", ylabel="predicted α", title="The domain decides")
        left.legend(loc="upper left")
        rows = table[table.left_out == "domain"]
        order = rows.groupby("domain").measured.median().sort_values()
        for y, domain in enumerate(order.index):
            mine = rows[rows.domain == domain]
            right.plot(
                [mine.low.median(), mine.high.median()],
                [y, y],
                color="0.75",
                lw=6,
                solid_capstyle="butt",
            )
            for method, style in series(("dflash", "dspark", "eagle3")):
                own = mine[mine.method == method]
                right.plot(
                    own.measured,
                    [y] * len(own),
                    ls="",
                    ms=4,
                    label=method if y == 0 else None,
                    **style,
                )
        right.set_yticks(range(len(order)), list(order.index))
        right.set(xlabel="α", title="Measured, and the interval for a new domain")
        legend_beside(right)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Shares of variance, errors on what was left out, and the largest miss."""
    once = table[table.left_out == "target"]
    logit = np.log(once.measured / (1 - once.measured)).to_numpy()
    factors = {f: list(once[f]) for f in ("domain", "method", "target")}
    made = [
        Claim(f"share of the variance of logit α (%): {name}", None, 100 * value, ".1f", note)
        for (name, value), note in zip(
            variance_shares(logit, factors).shares.items(),
            (
                "sums of squares of a balanced design",
                "kind of drafter",
                "",
                "interactions and noise",
            ),
        )
    ]
    for name in LEFT_OUT:
        rows = table[table.left_out == name]
        size = (rows.predicted - rows.measured).abs()
        covered = ((rows.low <= rows.measured) & (rows.measured <= rows.high)).mean()
        plain = (rows.without_domains - rows.measured).abs().median()
        made.append(
            Claim(
                f"every {name} left out: median size of the error of α",
                None,
                float(size.median()),
                ".3f",
                f"90% {size.quantile(0.9):.3f}, worst {size.max():.3f}; {covered:.0%} inside the 90% interval; without levels of domains {plain:.3f}",
            )
        )
        worst = rows.loc[size.idxmax()]
        made.append(
            Claim(
                f"α of the worst row, {name} left out ({worst.method}, {worst.target}, {worst.domain})",
                float(worst.measured),
                float(worst.predicted),
                ".3f",
                "the largest miss",
            )
        )
    other = fit_domains(LENGTHS)
    for row in other.errors:
        made.append(
            Claim(
                f"SpecBundle, {row.left_out} left out: median size of the error of α",
                None,
                row.median,
                ".3f",
                f"90% {row.ninety:.3f}, worst {row.worst:.3f}; {row.covered:.0%} inside; without levels of domains {row.without:.3f}",
            )
        )
    return made
