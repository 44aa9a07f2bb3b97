"""Throughput against draft size for several targets."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pandas as pd

from paper_figures.common import DRAFT_TOKENS, TARGETS, Claim, optima
from sdsl_jax.counts import short_count
from sdsl_jax.report.style import dashed, figure, legend_beside, log_sizes
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, Scenario, optimal_lookahead

TITLE = "Throughput against draft size"
CAPTION = (
    "Speed-up at the best lookahead of each draft size, and that lookahead, at D = 180e9; dots: N*. Below about 3M parameters the affine plane "
    "gives α ≤ 0, which counts as no acceptance (S = 1, γ* = 0): that end is the law's, not a measurement."
)
SHOWN = ("OPT-13B", "OPT-30B", "Llama-3-70B", "Qwen1.5-110B")


def compute() -> pd.DataFrame:
    """One row for each target and draft size."""
    parts = []
    for target in (t for t in TARGETS if t.name in SHOWN):
        sizes = np.geomspace(1e6, target.params / 3, 300)
        with jax.enable_x64(True):
            problem = Scenario(
                target.params, DRAFT_TOKENS, target.tokens, BESIROGLU, PAPER_PLANE
            ).problem()
            alpha = np.asarray(problem.acceptance(sizes))
            best = optimal_lookahead(alpha, problem.cost.draft_step(sizes))
        parts.append(
            pd.DataFrame(
                {
                    "target": target.name,
                    "target_params": target.params,
                    "draft_params": sizes,
                    "acceptance": alpha,
                    "lookahead": np.asarray(best.lookahead),
                    "speedup": np.asarray(best.speedup),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """S and γ* against N."""
    with figure(folder, name, 1, 2, (10.5, 4.0)) as (_, axes):
        for target, style in dashed(t for t in TARGETS if t.name in SHOWN):
            rows = table[table.target == target.name]
            best = optima(target.params, DRAFT_TOKENS, target.tokens)
            label = f"{target.name}: N* = {short_count(float(best.params))}"
            for axis, column, value in (
                (axes[0, 0], "speedup", best.speedup),
                (axes[0, 1], "lookahead", best.lookahead),
            ):
                axis.plot(rows.draft_params, rows[column], label=label, **style)
                axis.plot(best.params, value, "o", color=style["color"])
        for axis, label, title in (
            (axes[0, 0], "speed-up S at the best lookahead", "A flat maximum over draft size"),
            (axes[0, 1], "best lookahead γ* (drafts per round)", "The best lookahead of each size"),
        ):
            log_sizes(axis, "draft size N (total parameters)", subs=(1.0,))
            axis.set(ylabel=label, title=title)
        legend_beside(axes[0, 1])


def claims(table: pd.DataFrame) -> list[Claim]:
    """The paper shows curves; the height of the best of each is ours."""
    best = table.loc[table.groupby("target").speedup.idxmax()]
    return [
        Claim(f"largest S for {row.target}", None, row.speedup, ".3f") for row in best.itertuples()
    ]
