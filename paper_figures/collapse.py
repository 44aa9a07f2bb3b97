"""N*/M against M: curves of different D nearly fall on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.common import FAMILY_TOKENS, Claim, optima
from sdsl_jax.counts import short_count
from sdsl_jax.report.style import dashed, figure, legend_beside, log_sizes

TITLE = "N*/M over M, for several D"
CAPTION = (
    "N*/M falls with M and hardly depends on D: curves for the families' token counts, D′ = 3e12. Right: each curve over their mean; "
    "those of 12T, 15T and 18T tokens lie within 0.4% of each other."
)
TARGET_TOKENS = 3e12


def compute() -> pd.DataFrame:
    """One row for each M and D."""
    sizes, tokens = np.geomspace(10e9, 150e9, 40), np.asarray(FAMILY_TOKENS)
    best = optima(sizes[:, None], tokens[None], TARGET_TOKENS)
    return pd.DataFrame(
        {
            "target_params": np.repeat(sizes, len(tokens)),
            "draft_tokens": np.tile(tokens, len(sizes)),
            "draft_params": best.params.ravel(),
            "ratio": (best.params / sizes[:, None]).ravel(),
        }
    )


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Curves, and their ratio to the mean."""
    mean = table.groupby("target_params").ratio.mean()
    with figure(folder, name, 1, 2, (10.5, 3.9)) as (_, axes):
        curves = dict(iter(table.groupby("draft_tokens")))
        for i, (tokens, style) in enumerate(dashed(curves)):
            rows = curves[tokens]
            # Later lines are thinner, so that those of nearly equal values show through.
            style |= {"lw": 3.4 - 0.5 * i, "label": f"D = {short_count(tokens)}"}
            axes[0, 0].plot(rows.target_params, 1e3 * rows.ratio, **style)
            axes[0, 1].plot(rows.target_params, rows.ratio.to_numpy() / mean.to_numpy(), **style)
        for axis in axes[0]:
            log_sizes(axis, "target size M (total parameters)")
        axes[0, 0].set(ylabel="N*/M (thousandths)", title="The best ratio falls with M")
        axes[0, 1].set(
            ylabel="ratio to the mean over D", title="… and hardly depends on D", ylim=(0.9, 1.15)
        )
        legend_beside(axes[0, 1])


def claims(table: pd.DataFrame) -> list[Claim]:
    """How tight the collapse is, and how far from constant the ratio."""
    by_size = table.groupby("target_params").ratio
    spread = float((by_size.max() / by_size.min()).max() - 1)
    mean = by_size.mean()
    return [
        Claim(
            "largest spread of N*/M over D at one M",
            None,
            spread,
            ".3f",
            "the collapse over D holds to this",
        ),
        Claim(
            "N*/M at 10e9 over N*/M at 150e9",
            None,
            float(mean.iloc[0] / mean.iloc[-1]),
            ".2f",
            "not a constant ratio",
        ),
    ]
