"""Step times of serving engines, from rows that the fit did not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.common import Claim
from paper_figures.published import TABLES
from sdsl_jax.fitting.step_times import fit_step_times, read_step_times
from sdsl_jax.hardware import load_hardware
from sdsl_jax.report.style import figure, legend_beside, series

TITLE = "Step times"
CAPTION = (
    "Milliseconds of one forward pass on an H100, by the engine that ran it. Two halves of an engine's rows that are alike in load "
    "predict each other, the choice of coefficients included; of three rows each is predicted from the other two. Left: measured "
    "and predicted. Right: error by context."
)
# Labels of the table, in short.
_SHORT = {
    "H100, CUDA graphs, FA3, vLLM 0.28": "vLLM, CUDA graphs (Qwen3-1.7B)",
    "H100 (Modal), prefix 512": "transformers (Llama-3.1-8B)",
    "H100, eager above capture size 8 (launch bound), vLLM 0.28": "vLLM, eager (Qwen3-1.7B)",
}


def compute() -> pd.DataFrame:
    """A row for each published step time."""
    device = load_hardware("h100").hardware
    rows = []
    for label, table in read_step_times(TABLES / "step_times.csv").items():
        fit = fit_step_times(table.timings, table.precision, device)
        for timing, predicted in zip(table.timings, fit.unseen_predicted):
            load = timing.batch, timing.tokens, timing.context
            milliseconds = 1e3 * timing.seconds, 1e3 * predicted
            rows.append((_SHORT.get(label, label), *load, *milliseconds, ", ".join(fit.fitted)))
    columns = ["engine", "batch", "tokens_per_row", "context", "measured", "predicted", "fitted"]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Predicted over measured, and the error by context."""
    with figure(folder, name, 1, 2, (11.5, 4.0)) as (_, axes):
        left, right = axes[0]
        for engine, style in series(dict.fromkeys(table.engine)):
            rows = table[table.engine == engine]
            left.plot(rows.measured, rows.predicted, ls="", label=engine, ms=5, **style)
            error = 100 * (rows.predicted / rows.measured - 1)
            if "eager" not in engine:
                right.plot(rows.context + 256, error, ls="", ms=5, **style)
        ends = np.array([1.5, 25.0])
        left.plot(ends, ends, color="0.4", lw=0.8)
        left.set(xscale="log", yscale="log", xlabel="measured (ms)", ylabel="predicted (ms)")
        left.set_title("One pass, left out of the fit")
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
            axis.set_ticks([2, 3, 5, 10, 20])
            axis.set_ticks([], minor=True)
        right.axhline(0, color="0.4", lw=0.8)
        contexts = sorted(set(table.context))
        right.set_xscale("log", base=2)
        right.set_xticks([c + 256 for c in contexts], [f"{c:,.0f}" for c in contexts])
        right.set_xticks([], minor=True)
        right.set(
            xlabel="context", ylabel="error (%)", title="Without the engine that no fit describes"
        )
        legend_beside(left)


def claims(table: pd.DataFrame) -> list[Claim]:
    """Median and worst error of each engine."""
    made = []
    for engine in dict.fromkeys(table.engine):
        rows = table[table.engine == engine]
        size = 100 * (rows.predicted / rows.measured - 1).abs()
        worst = rows.loc[size.idxmax()]
        where = (
            f"{worst.batch:g} rows of {worst.tokens_per_row:g} tokens, context {worst.context:g}"
        )
        made += [
            Claim(
                f"{engine}: median size of the error (%)",
                None,
                float(size.median()),
                ".1f",
                f"{len(rows)} rows; fitted in the end: {rows.fitted.iloc[0]}",
            ),
            Claim(
                f"{engine}: worst row (ms)",
                float(worst.measured),
                float(worst.predicted),
                ".2f",
                where,
            ),
        ]
    return made
