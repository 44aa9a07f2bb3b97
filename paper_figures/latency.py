"""The paper's latency table again: does it follow the distance from N*, or the depth of the draft?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from paper_figures.common import DRAFT_TOKENS, Claim, optima
from sdsl_jax.report.style import figure, legend_beside, series

TITLE = "The latency table re-examined"
CAPTION = (
    "Time per output token of four drafts for OPT-13B, as the paper measured it, against |N − N*|/M and against the depth of the draft. OPT-1.3B is "
    "farther from N* than OPT-350M and faster. Within OPT, time follows layers; the Qwen draft, of another vocabulary, is a case of its own."
)
# Draft, parameters, layers, and the seconds of the paper: first token, 250 tokens, per output
# token.
MEASURED = (
    ("OPT-125M", 125e6, 12, 0.0486, 2.51, 0.0101),
    ("OPT-350M", 350e6, 24, 0.0500, 3.69, 0.0147),
    ("OPT-1.3B", 1.3e9, 24, 0.0478, 3.51, 0.0140),
    ("Qwen2.5-0.5B", 0.5e9, 24, 0.1094, 33.72, 0.1349),
)
TARGET, TARGET_TOKENS = 13e9, 180e9


def compute() -> pd.DataFrame:
    """The paper's rows with the distance from N*."""
    table = pd.DataFrame(
        MEASURED,
        columns=[
            "draft",
            "draft_params",
            "layers",
            "ttft_seconds",
            "total_seconds",
            "tpot_seconds",
        ],
    )
    table["optimal_draft_params"] = float(optima(TARGET, DRAFT_TOKENS, TARGET_TOKENS).params)
    table["distance"] = (table.draft_params - table.optimal_draft_params).abs() / TARGET
    return table


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """TPOT against both explanations."""
    with figure(folder, name, 1, 2, (10.0, 3.8)) as (_, axes):
        for axis, column, label, title in (
            (axes[0, 0], "distance", "|N − N*| / M", "Against the distance from N*"),
            (axes[0, 1], "layers", "layers of the draft", "Against depth"),
        ):
            for row, style in series(table.itertuples()):
                at = (getattr(row, column), 1e3 * row.tpot_seconds)
                axis.plot(*at, ls="", ms=8, label=row.draft, **style)
                place = (0, -17) if row.draft == "OPT-1.3B" else (0, 9)
                axis.annotate(
                    f"{at[1]:.1f}",
                    at,
                    xytext=place,
                    textcoords="offset points",
                    ha="center",
                    fontsize=8.5,
                )
            axis.margins(0.12, 0.2)
            axis.set(
                yscale="log", xlabel=label, ylabel="time per output token (ms, paper)", title=title
            )
        legend_beside(axes[0, 1])


def claims(table: pd.DataFrame) -> list[Claim]:
    """Rank correlations and the distances."""
    opt = table[table.draft.str.startswith("OPT")]
    made = [
        Claim(f"|N − N*|/M of {row.draft}", None, row.distance, ".4f") for row in table.itertuples()
    ]
    rank = float(scipy.stats.spearmanr(table.distance, table.tpot_seconds).statistic)
    made.append(
        Claim(
            "rank correlation of TPOT with |N − N*|/M, all four drafts",
            None,
            rank,
            ".2f",
            "the paper says that time rises with the distance; four points",
        )
    )
    ratio = float(opt.tpot_seconds.iloc[1] / opt.tpot_seconds.iloc[0])
    made.append(
        Claim(
            "TPOT of OPT-350M over OPT-125M",
            None,
            ratio,
            ".2f",
            "24 layers over 12; 1.3B with 24 layers is no slower than 350M",
        )
    )
    made.append(
        Claim(
            "total / 250 tokens over TPOT, mean",
            None,
            float(np.mean(table.total_seconds / 250 / table.tpot_seconds)),
            ".2f",
            "consistency of the table",
        )
    )
    return made
