"""How N* depends on the training tokens of draft and target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.common import DRAFT_TOKENS, Claim, optima
from sdsl_jax.counts import short_count
from sdsl_jax.report.style import dashed, figure, legend_beside, log_sizes

TITLE = "Dependence on log D and log D′"
CAPTION = (
    "N* over draft tokens (left, at D′ = 3e12) and target tokens (right, at D = 180e9), each over its value at the left end. "
    "Note the scales: D moves N* by a few percent a decade, D′ by less than one."
)
SIZES = (13e9, 30e9, 70e9, 110e9)


def compute() -> pd.DataFrame:
    """One row for each M, variable and number of tokens."""
    tokens, sizes = np.geomspace(100e9, 30e12, 40), np.asarray(SIZES)
    parts = []
    for variable, found in (
        ("draft_tokens", optima(sizes[:, None], tokens[None], 3e12)),
        ("target_tokens", optima(sizes[:, None], DRAFT_TOKENS, tokens[None])),
    ):
        parts.append(
            pd.DataFrame(
                {
                    "variable": variable,
                    "target_params": np.repeat(sizes, len(tokens)),
                    "tokens": np.tile(tokens, len(sizes)),
                    "draft_params": found.params.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def slope(table: pd.DataFrame, variable: str, size: float) -> float:
    """Mean of d ln N*/d ln tokens over the range."""
    rows = table[(table.variable == variable) & (table.target_params == size)]
    return float(
        np.log(rows.draft_params.iloc[-1] / rows.draft_params.iloc[0])
        / np.log(rows.tokens.iloc[-1] / rows.tokens.iloc[0])
    )


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Relative change of N*."""
    with figure(folder, name, 1, 2, (10.5, 3.9)) as (_, axes):
        for axis, variable, label, title in (
            (axes[0, 0], "draft_tokens", "draft tokens D", "Better-trained drafts may be smaller"),
            (axes[0, 1], "target_tokens", "target tokens D′", "The target's tokens hardly matter"),
        ):
            for size, style in dashed(SIZES):
                rows = table[(table.variable == variable) & (table.target_params == size)]
                change = 100 * (rows.draft_params / rows.draft_params.iloc[0] - 1)
                axis.plot(rows.tokens, change, label=f"M = {short_count(size)}", **style)
            log_sizes(axis, label)
            axis.set(ylabel="change of N* (%)", title=title)
        legend_beside(axes[0, 1])


def claims(table: pd.DataFrame) -> list[Claim]:
    """Mean elasticities over the range, for one target."""
    return [
        Claim("mean d ln N*/d ln D, M = 70B", None, slope(table, "draft_tokens", 70e9), ".4f"),
        Claim("mean d ln N*/d ln D′, M = 70B", None, slope(table, "target_tokens", 70e9), ".5f"),
    ]
