"""What rules of thumb cost at each target: a draft 200 times smaller, the paper's line, and γ = 4 by habit."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pandas as pd

from paper_figures.common import DRAFT_TOKENS, SIZES, TARGET_TOKENS, TARGETS, Claim, optima
from paper_figures.linear_law import M0, MU
from sdsl_jax.report.style import figure, legend_beside, series
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, Scenario, optimal_lookahead, speedup

TITLE = "The price of rules of thumb"
CAPTION = (
    "Speed-up lost at each target, against N* at its best whole lookahead: by a draft 200 times smaller and by the paper's "
    f"line N = μM + M₀ (μ = {MU:.3g} and M₀ = {M0 / 1e6:.1f}M parameters), each at its own best whole lookahead, and by γ = 4, "
    "with the draft that is best for it and with N*."
)
RULES = {
    "lost_200x_pct": "N = M/200",
    "lost_line_pct": "N = μM + M₀, the paper's line",
    "lost_gamma4_best_draft_pct": "γ = 4, best N for it",
    "lost_gamma4_pct": "γ = 4 at N*",
}


def compute() -> pd.DataFrame:
    """One row for each target: S and what each rule loses, in percent."""
    best = optima(SIZES, DRAFT_TOKENS, TARGET_TOKENS)
    rows = []
    with jax.enable_x64(True):
        for target, top, size in zip(TARGETS, best.speedup_integer, best.params):
            problem = Scenario(
                target.params, DRAFT_TOKENS, target.tokens, BESIROGLU, PAPER_PLANE
            ).problem()
            rules = np.array([target.params / 200, MU * target.params + M0])
            at_rules = optimal_lookahead(
                problem.acceptance(rules), problem.cost.draft_step(rules)
            ).speedup_integer
            grid = np.geomspace(1e7, 2e10, 4001)
            habit = np.asarray(
                speedup(problem.acceptance(grid), 4.0, problem.cost.draft_step(grid))
            ).max()
            values = [*np.asarray(at_rules), habit, float(problem.speedup(size, 4.0))]
            lost = {name: 100 * (1 - value / top) for name, value in zip(RULES, values)}
            rows.append(
                {
                    "target": target.name,
                    "target_params": target.params,
                    "speedup_integer": float(top),
                }
                | lost
            )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """A row of losses for each target."""
    with figure(folder, name, 1, 1, (8.0, 4.4)) as (_, axes):
        axis, y = axes[0, 0], np.arange(len(table))[::-1]
        for column, style in series(RULES):
            axis.plot(table[column], y, ls="", label=RULES[column], **style)
        axis.set_yticks(y, table.target)
        axis.set(xlabel="speed-up lost (%)", title="What each rule loses", xlim=(-0.4, None))
        legend_beside(axis)


def claims(table: pd.DataFrame) -> list[Claim]:
    """The worst, and for the habit the best, over the targets."""
    notes = {
        "lost_line_pct": "as flat as the optimum is",
        "lost_gamma4_pct": "the habit costs more than any of these draft sizes",
    }
    made = [
        Claim(
            f"largest loss by {label} (%)",
            None,
            float(table[column].max()),
            ".2f",
            notes.get(column, ""),
        )
        for column, label in RULES.items()
    ]
    return [
        *made,
        Claim("smallest loss by γ = 4 at N* (%)", None, float(table.lost_gamma4_pct.min()), ".2f"),
    ]
