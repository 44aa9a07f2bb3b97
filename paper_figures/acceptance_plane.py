"""α against the perplexities of draft and target. The paper's pairs are not published: drawn from a ladder of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.common import Claim
from sdsl_jax.counts import short_count
from sdsl_jax.records import read_table
from sdsl_jax.report.figures import draw_plane
from sdsl_jax.report.style import figure, legend_beside, log_sizes, series
from sdsl_jax.theory import PAPER_PLANE
from sdsl_jax.theory import coefficients as coefficients_of

TITLE = "Acceptance against perplexities"
CAPTION = (
    "The affine plane fitted to pairs of our own ladder (drafts of 6k to 519k parameters, targets of 0.25 to 5 million, trained on "
    "State of the Union addresses; the paper's per-pair data are not published). Left: measured points on the fitted plane. "
    "Right: what the plane misses, which is U-shaped at each target: it is too low for the smallest and the largest drafts, "
    "since acceptance bends with perplexity and a plane cannot."
)
RECORDS = Path(__file__).parent / "records"
ESTIMATOR = "teacher_forced_samples"


def compute() -> pd.DataFrame:
    """One row for each pair of a draft and a larger target, with the prediction of the plane fitted by
    least squares."""
    models = {m.model_id: m for m in read_table(RECORDS, "models")}
    pairs = [r for r in read_table(RECORDS, "acceptance") if r.estimator == ESTIMATOR]
    table = pd.DataFrame(
        {
            "draft": [r.draft_id for r in pairs],
            "target": [r.target_id for r in pairs],
            "draft_params": [models[r.draft_id].params_nonembedding for r in pairs],
            "target_params": [models[r.target_id].params_nonembedding for r in pairs],
            "draft_perplexity": [models[r.draft_id].perplexity for r in pairs],
            "target_perplexity": [models[r.target_id].perplexity for r in pairs],
            "acceptance": [r.alpha for r in pairs],
        }
    )
    table = table[table.draft_params < table.target_params].reset_index(drop=True)
    design = np.stack(
        [table.draft_perplexity, table.target_perplexity, np.ones(len(table))], axis=1
    )
    table["plane"] = design @ np.linalg.lstsq(design, table.acceptance, rcond=None)[0]
    return table


def coefficients(table: pd.DataFrame) -> tuple[np.ndarray, float, float]:
    """A, B, C of the fitted plane, its R² and its mean squared error."""
    design = np.stack(
        [table.draft_perplexity, table.target_perplexity, np.ones(len(table))], axis=1
    )
    found = np.linalg.lstsq(design, table.acceptance, rcond=None)[0]
    error = float(np.square(table.acceptance - design @ found).mean())
    return found, 1 - error / float(np.var(table.acceptance)), error


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """The plane with the points, and the residuals against draft size."""
    (a, b, c), r_squared, _ = coefficients(table)
    with figure(folder, name, 1, 2, (10.5, 4.0)) as (drawn, axes):
        left, right = axes[0]
        x = np.linspace(table.draft_perplexity.min() - 0.3, table.draft_perplexity.max() + 0.3, 60)
        y = np.linspace(
            table.target_perplexity.min() - 0.15, table.target_perplexity.max() + 0.15, 60
        )
        points = table.draft_perplexity, table.target_perplexity, table.acceptance
        draw_plane(drawn, left, (x, y), a * x[None] + b * y[:, None] + c, points)
        left.set(
            xlabel="draft perplexity x",
            ylabel="target perplexity y",
            title=f"α = {a:.4f}·x + {b:.4f}·y + {c:.3f},  R² = {r_squared:.2f}",
        )
        groups = dict(iter(table.groupby("target_params")))
        for size, style in series(groups):
            group = groups[size]
            label = f"target {short_count(size)}"
            right.plot(
                group.draft_params, group.acceptance - group.plane, ls="", label=label, **style
            )
        right.axhline(0, color="0.4", lw=0.8)
        log_sizes(right, "draft size N (non-embedding parameters)")
        right.set(
            ylabel="measured α − plane", title="Too low at both ends of each target: α is curved"
        )
        legend_beside(right)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Ours is another ladder: signs and quality of the fit compare, the coefficients do not."""
    (a, b, _), r_squared, error = coefficients(table)
    paper, about = coefficients_of(PAPER_PLANE), PAPER_PLANE.about
    other = "another ladder, text and vocabulary: only the sign compares"
    return [
        Claim("A, α per unit of draft perplexity", paper["A"], a, ".4g", other),
        Claim("B, α per unit of target perplexity", paper["B"], b, ".4g", other),
        Claim(
            "R² of the plane",
            about.r_squared,
            r_squared,
            ".3f",
            "one corpus and one architecture leave less unexplained",
        ),
        Claim(
            "mean squared error of the plane", about.mean_squared_error, error, ".3g", "the same"
        ),
    ]
