"""Tokens per round at a larger lookahead, from the two smallest that were measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.common import Claim
from paper_figures.published import LENGTHS, LOADS
from sdsl_jax.fitting.acceptance_fits import fit_lengths
from sdsl_jax.report.style import NAMES, figure, legend_beside, series

TITLE = "Tokens per round at larger lookaheads"
CAPTION = (
    "Error of τ at the lookaheads beyond the two smallest of each series, predicted from those two. The law by position takes decay and drop from other drafts "
    "(SpecBundle: 14 EAGLE-3 heads, 88 series) or from other domains (Apertus: one DSpark head, rows at temperature 0 only). Left: each point is a series, the bar its median. Right: the Apertus head; hollow points were given."
)
# Table, rows, and what is left out whole. Apertus has one head with several γ: its domains are left out.
SOURCES = {
    "SpecBundle": (LENGTHS, "", "draft"),
    "SpecBundle, by target": (LENGTHS, "", "target"),
    "Apertus": (LOADS, "temperature == 0 and method == 'dspark'", "domain"),
}
LAWS = (
    "geometric_at_smallest",
    "geometric_fitted",
    "beta_over_rounds",
    "persistent",
    "position_one_drop",
    "position",
)


def compute() -> pd.DataFrame:
    """A row for each source, law, series and predicted lookahead."""
    rows = []
    for source, (path, where, left_out) in SOURCES.items():
        laws = ("position",) if "," in source else LAWS
        fits = fit_lengths(path, where=where, leave_out=left_out, laws=laws)
        for row in fits.errors:
            about = tuple(map(str, row.series))  # type: ignore[call-overload]
            rows.append(
                (
                    source,
                    row.law,
                    about[2],
                    about[4],
                    row.lookahead,
                    row.measured,
                    row.predicted,
                    row.log_error,
                )
            )
    columns = (
        "source",
        "law",
        "draft",
        "domain",
        "lookahead",
        "measured",
        "predicted",
        "log_error",
    )
    return pd.DataFrame(rows, columns=list(columns))


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Errors of every law, and the curves of one head."""
    table = table.assign(error=100 * (table.predicted / table.measured - 1))
    with figure(folder, name, 1, 2, (11.5, 4.2)) as (_, axes):
        left, right = axes[0]
        random = np.random.default_rng(0)
        for i, (law, style) in enumerate(series(LAWS)):
            rows = table[(table.law == law) & (table.source == "SpecBundle")]
            at = len(LAWS) - 1 - i + random.uniform(-0.25, 0.25, len(rows))
            left.plot(rows.error, at, ls="", alpha=0.45, ms=3.5, **style)
            middle = len(LAWS) - 1 - i
            left.plot([rows.error.median()] * 2, [middle - 0.38, middle + 0.38], color="0.1", lw=2)
        left.axvline(0, color="0.4", lw=0.8)
        left.set_yticks(range(len(LAWS)), [NAMES[law] for law in reversed(LAWS)])
        left.set(xlabel="error of τ at γ = 7 (%)", title="SpecBundle, from γ = 3 and 5")
        shown = ("geometric_fitted", "persistent", "position")
        styles = dict(series(LAWS))
        apertus = table[table.source == "Apertus"]
        given = pd.read_csv(LOADS)
        for domain, rows in apertus.groupby("domain"):
            mine = given[
                (given.domain == domain) & (given.method == "dspark") & (given.temperature == 0)
            ]
            first = mine.groupby("gamma").acceptance_length.mean().dropna().iloc[:2]
            right.plot(first.index, first, ls="", marker="o", mfc="none", color="0.2", ms=6)
            once = rows[rows.law == "position"]
            right.plot(once.lookahead, once.measured, ls="", marker="o", color="0.2", ms=6)
            for law in shown:
                line = rows[rows.law == law]
                right.plot(
                    [first.index[-1], *line.lookahead],
                    [first.iloc[-1], *line.predicted],
                    color=styles[law]["color"],
                    lw=1.2,
                    label=NAMES[law] if domain == "chat" else None,
                )
            right.annotate(
                str(domain),
                (once.lookahead.iloc[-1], once.measured.iloc[-1]),
                (-30, -16 if domain == "summarization" else 11),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="0.3",
            )
        right.set(
            xlabel="lookahead γ",
            ylabel="tokens per round τ",
            title="Apertus DSpark, from γ = 1 and 2",
        )
        legend_beside(right)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Errors of each law, and the largest one."""
    made = []
    table = table.assign(error=100 * (table.predicted / table.measured - 1))
    for source, (_, _, left_out) in SOURCES.items():
        rows = table[table.source == source]
        title = source.partition(",")[0]
        for law in dict.fromkeys(rows.law):
            error = rows[rows.law == law].error
            size = error.abs()
            made.append(
                Claim(
                    f"{title}, every {left_out} left out: median size of the error of τ (%), {NAMES[law]}",
                    None,
                    float(size.median()),
                    ".2f",
                    f"median {error.median():+.2f}, 90% {size.quantile(0.9):.2f}, worst {size.max():.2f}, {len(error)} predictions",
                )
            )
        mine = rows[rows.law == "position"]
        worst = mine.loc[mine.error.abs().idxmax()]
        made.append(
            Claim(
                f"{title}: τ at γ = {worst.lookahead} of the worst series ({worst.draft}, {worst.domain})",
                float(worst.measured),
                float(worst.predicted),
                ".3f",
                "the largest miss of the law by position",
            )
        )
    return made
