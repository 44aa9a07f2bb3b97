"""How flat the optimum is: speed-up over draft size and lookahead for one target."""

from __future__ import annotations

from pathlib import Path

import jax
import matplotlib
import numpy as np
import pandas as pd

from paper_figures.common import DRAFT_TOKENS, TARGETS, Claim, optima
from sdsl_jax.report.style import COLOURS, figure, log_sizes
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, Scenario

TITLE = "Flatness of the optimum"
CAPTION = (
    "Speed-up over (N, γ) for the 70B target, in percent of the best: the lines enclose what is within 1% and 5%. Draft size "
    "is forgiven over half a decade, lookahead from about 7 to 15."
)
TARGET = next(t for t in TARGETS if t.name == "Llama-3-70B")


def compute() -> pd.DataFrame:
    """One row for each draft size and lookahead."""
    sizes, lookaheads = np.geomspace(3e7, 7e9, 90), np.linspace(1, 30, 88)
    with jax.enable_x64(True):
        problem = Scenario(
            TARGET.params, DRAFT_TOKENS, TARGET.tokens, BESIROGLU, PAPER_PLANE
        ).problem()
        values = np.asarray(problem.speedup(sizes[None], lookaheads[:, None]))
    n, gamma = np.meshgrid(sizes, lookaheads)
    return pd.DataFrame(
        {"draft_params": n.ravel(), "lookahead": gamma.ravel(), "speedup": values.ravel()}
    )


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """The map."""
    best = optima(TARGET.params, DRAFT_TOKENS, TARGET.tokens)
    share = (
        100
        * table.pivot(index="lookahead", columns="draft_params", values="speedup")
        / float(best.speedup)
    )
    with figure(folder, name, 1, 1, (7.2, 4.4)) as (made, axes):
        axis = axes[0, 0]
        levels = [50, 60, 70, 80, 85, 90, 95, 99, 100]
        colours = matplotlib.colors.ListedColormap(
            matplotlib.colormaps["viridis"](np.linspace(0, 1, len(levels)))
        )
        norm = matplotlib.colors.BoundaryNorm(levels, len(levels), extend="min")
        shade = axis.contourf(
            share.columns, share.index, share, levels=levels, cmap=colours, norm=norm, extend="min"
        )
        axis.contour(
            share.columns, share.index, share, levels=[95, 99], colors="white", linewidths=1.0
        )
        axis.plot(best.params, best.lookahead, "o", color=COLOURS[1])
        axis.annotate(
            "optimum",
            (best.params, best.lookahead),
            xytext=(7, 3),
            textcoords="offset points",
            fontsize=9,
        )
        axis.axhline(4, color="black", ls=":", lw=1.2)
        axis.annotate("γ = 4", (3.3e7, 4.2), fontsize=9)
        log_sizes(axis, "draft size N (total parameters)")
        axis.set(
            ylabel="lookahead γ (drafts per round)",
            title="70B target: speed-up in percent of the best",
        )
        made.colorbar(
            shade,
            ax=axis,
            ticks=levels,
            spacing="uniform",
            label="% of the best speed-up (white lines: 95 and 99)",
        )


def claims(table: pd.DataFrame) -> list[Claim]:
    """The intervals of the 70B target."""
    found = optima(TARGET.params, DRAFT_TOKENS, TARGET.tokens)
    made = []
    for share, ends in (("1%", found.indifference_1pct), ("5%", found.indifference_5pct)):
        for end, value in zip(("smallest", "largest"), ends):
            made.append(Claim(f"{end} draft within {share}, M = 70B", None, float(value), ".3g"))
    # The lookahead alone, each at the draft size that is best for it.
    with jax.enable_x64(True):
        problem = Scenario(
            TARGET.params, DRAFT_TOKENS, TARGET.tokens, BESIROGLU, PAPER_PLANE
        ).problem()
        sizes, lookaheads = np.geomspace(1e8, 1e9, 400), np.linspace(4, 20, 1601)
        best = np.asarray(problem.speedup(sizes[None], lookaheads[:, None])).max(axis=1)
    good = lookaheads[best >= 0.99 * float(found.speedup)]
    made.append(Claim("smallest γ within 1% at some draft size", None, float(good[0]), ".1f"))
    made.append(Claim("largest γ within 1% at some draft size", None, float(good[-1]), ".1f"))
    return made
