"""The best lookahead by load: measured, and predicted from a few cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paper_figures.common import Claim
from paper_figures.published import LOADS, loads
from sdsl_jax.fitting.acceptance_lengths import fit_position_pool, fit_series, predict_lengths
from sdsl_jax.fitting.acceptance_rows import read_acceptance_rows, series_of_lengths
from sdsl_jax.report.style import COLOURS, figure, legend_beside, percent_axis, series

TITLE = "The best lookahead by load"
CAPTION = (
    "Apertus 8B, two drafters × two domains × six loads; speed-up over plain decoding at the same load. Left: what is lost by keeping the γ that is best at batch 1, by γ = 3 everywhere, and (DSpark) by the γ that is predicted from "
    "τ at γ = 1 and 2, the law by position of the other domain, and the speed at γ = 1 and 3 of each load. Right: the speed-up at γ = 7, predicted in this way."
)
GIVEN = (1, 3)  # lookaheads whose speed at each load is given


def _lengths() -> dict[tuple[str, str], dict[int, float]]:
    """τ of each DSpark domain at every γ: that of two γ as measured, others by the law of the other domains."""
    rows = read_acceptance_rows(LOADS, "temperature == 0 and method == 'dspark'")
    lengths = series_of_lengths(rows)
    domains = np.asarray(lengths.part("domain"))
    small, found = lengths.table.smallest(2), {}
    for i, domain in enumerate(domains):
        pool = fit_position_pool(lengths.table.of_series(domains != domain))
        laws = fit_series(small, pool)
        found["DSpark", str(domain)] = {
            gamma: float(predict_lengths(laws, pool, gamma).tokens_per_round[i])
            for gamma in (1, 2, 3, 4, 5, 7)
        }
    return found


def compute() -> pd.DataFrame:
    """A row for each drafter, domain, load and lookahead: measured speed-up, and predicted where it can be."""
    tau, parts = _lengths(), []
    for (drafter, domain, batch), cell in loads().groupby(["drafter", "domain", "batch"]):
        speed = cell.set_index("gamma").speedup.sort_index()
        predicted: Any = np.nan
        if (drafter, domain) in tau:
            lengths = tau[drafter, domain]
            # A round costs τ/S of plain steps at this load: a line in γ through two of them.
            low, high = (lengths[g] / speed[g] for g in GIVEN)
            slope = (high - low) / (GIVEN[1] - GIVEN[0])
            predicted = [lengths[g] / (low + slope * (g - GIVEN[0])) for g in speed.index]
        parts.append(
            pd.DataFrame(
                {
                    "drafter": drafter,
                    "domain": domain,
                    "batch": int(batch),
                    "lookahead": speed.index,
                    "measured": speed.to_numpy(),
                    "predicted": predicted,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def regrets(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each drafter, domain and load: the best γ (0 = off), and the share of the best speed that rules lose."""
    rows = []
    for (drafter, domain), group in table.groupby(["drafter", "domain"]):
        speeds = group.pivot(index="batch", columns="lookahead", values="measured")
        guesses = group.pivot(index="batch", columns="lookahead", values="predicted")
        at_one = speeds.loc[1].idxmax()
        for batch, speed in speeds.iterrows():
            best = max(1.0, speed.max())
            row = {
                "drafter": drafter,
                "domain": domain,
                "batch": batch,
                "best": int(speed.idxmax()) if speed.max() > 1 else 0,
                "keep": 1 - speed[at_one] / best,
                "three": 1 - speed[3] / best,
            }
            guess = guesses.loc[batch]
            if guess.notna().all():
                chosen = int(guess.idxmax()) if guess.max() > 1 else 0
                row["chosen"] = chosen
                row["predicted"] = 1 - (speed[chosen] if chosen else 1.0) / best
                row["keep_predicted"] = 1 - guess[at_one] / max(1.0, guess.max())
            rows.append(row)
    return pd.DataFrame(rows)


def listing(table: pd.DataFrame) -> str:
    """A table of the best γ, measured and predicted."""
    lines = [
        "| drafter, domain | rows | best γ | predicted γ | loss with it | loss with γ of batch 1 | loss with γ = 3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in regrets(table).itertuples():
        known = row.chosen == row.chosen
        chosen = f"{row.chosen:.0f}" if known else "–"
        lost = f"{100 * row.predicted:.1f}%" if known else "–"
        lines.append(
            f"| {row.drafter}, {row.domain} | {row.batch} | {row.best or 'off'} | {'off' if chosen == '0' else chosen} | {lost} "
            f"| {100 * row.keep:.1f}% | {100 * row.three:.1f}% |"
        )
    return "\n".join(lines) + "\n\n"


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Losses of three rules over the load, and predicted against measured speed-up at γ = 7."""
    found = regrets(table)
    with figure(folder, name, 1, 2, (11.5, 4.2)) as (_, axes):
        left, right = axes[0]
        rules = {"keep": "γ of batch 1", "three": "γ = 3", "predicted": "predicted γ"}
        dashes = {"DSpark": "-", "EAGLE 3.1": ":"}
        for (rule, label), colour in zip(rules.items(), COLOURS):
            for (drafter, domain), rows in found.groupby(["drafter", "domain"]):
                if rows[rule].notna().all():
                    marker = "o" if domain == "chat" else "s"
                    left.plot(rows.batch, rows[rule], color=colour, ls=dashes[str(drafter)], marker=marker, ms=4,
                              label=f"{label}, {drafter}, {domain}")  # fmt: skip
        left.set_xscale("log", base=2)
        left.set_xticks(
            sorted(found.batch.unique()), [str(b) for b in sorted(found.batch.unique())]
        )
        percent_axis(left.yaxis, 0)
        left.set(
            xlabel="rows decoded together",
            ylabel="speed lost",
            title="One γ for every load costs speed",
        )
        legend_beside(left, fontsize=7)
        rows = table[(table.lookahead == 7) & table.predicted.notna()]
        for domain, style in series(sorted(rows.domain.unique())):
            own = rows[rows.domain == domain]
            right.plot(own.batch, own.measured, ls="", label=f"{domain}, measured", **style)
            right.plot(
                own.batch, own.predicted, ls="-", color=style["color"], label=f"{domain}, predicted"
            )
        right.axhline(1, color="0.5", lw=0.8)
        right.set_xscale("log", base=2)
        right.set_xticks(sorted(rows.batch.unique()), [str(b) for b in sorted(rows.batch.unique())])
        right.set(
            xlabel="rows decoded together",
            ylabel="speed-up at γ = 7",
            title="Predicted from γ = 1, 2 and 3",
        )
        legend_beside(right)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Losses at 32 rows and more, and errors of the predicted speed-up."""
    found = regrets(table)
    heavy = found[found.batch >= 32]
    made = []
    for (drafter, domain), rows in heavy.groupby(["drafter", "domain"]):
        known = rows.predicted.notna().all()
        worst = rows.loc[rows.keep.idxmax()]
        made.append(
            Claim(
                f"{drafter}, {domain}, 32 to 256 rows: largest loss by keeping the γ of batch 1 (%)",
                100 * worst.keep,
                100 * (worst.keep_predicted if known else np.nan),
                ".1f",
                f"smallest {100 * rows.keep.min():.1f}, at {worst.batch} rows largest"
                + (
                    "" if known else "; no prediction: this drafter's τ is published at γ = 7 alone"
                ),
            )
        )
    for drafter, rows in found.groupby("drafter"):
        made.append(
            Claim(
                f"{drafter}: largest loss with γ = 3 at every load (%)",
                100 * rows.three.max(),
                np.nan,
                ".1f",
                "against the best measured γ or none",
            )
        )
    predicted = found[found.predicted.notna()]
    made.append(
        Claim(
            "DSpark: largest loss with the predicted γ, all loads (%)",
            None,
            100 * predicted.predicted.max(),
            ".1f",
            f"mean {100 * predicted.predicted.mean():.1f}; the same γ as measured in {(predicted.chosen == predicted.best).sum()} of {len(predicted)} cells",
        )
    )
    rows = table[table.predicted.notna() & ~table.lookahead.isin(GIVEN)]
    error = 100 * (rows.predicted / rows.measured - 1)
    worst = rows.loc[error.abs().idxmax()]
    made += [
        Claim(
            "DSpark: median size of the error of S at γ = 2, 4, 5 and 7 (%)",
            None,
            float(error.abs().median()),
            ".1f",
            f"90% {error.abs().quantile(0.9):.1f}; sweeps agree to about 5%",
        ),
        Claim(
            f"DSpark: S of the worst cell ({worst.domain}, {worst.batch} rows, γ = {worst.lookahead})",
            float(worst.measured),
            float(worst.predicted),
            ".2f",
            "the largest miss: a line in γ is too simple a cost",
        ),
    ]
    return made
