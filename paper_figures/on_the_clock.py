"""The paper's claims on the clock: `python -m paper_figures.on_the_clock FOLDER...` reads the records of studies that timed decoders.

It writes `docs/images/on-the-clock.png` and `benchmarks/results/claims-on-the-clock.csv`, and prints the table as Markdown.
Each folder is that of a study, such as `runs/claims-on-the-clock`; a target that two of them hold is taken from the first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.evidence.clock_sizes import BestSize, ClockSizes, clock_sizes
from sdsl_jax.evidence.common import Estimate
from sdsl_jax.report.clock_sizes_figure import draw_sizes, targets_of

_ROOT = Path(__file__).parents[1]
IMAGE = _ROOT / "docs" / "images" / "on-the-clock.png"
TABLE = _ROOT / "benchmarks" / "results" / "claims-on-the-clock.csv"


def read(folders: Sequence[str]) -> list[ClockSizes]:
    """What each study says; a study that timed nothing is an error."""
    answers = []
    for folder in folders:
        answer = clock_sizes(StudyRecords(folder))
        if answer is None:
            raise SystemExit(
                f"{folder} holds no timed decoders whose tokens per round are known; run its stages measure and clock first."
            )
        answers.append(answer)
    return answers


def compute(answers: Sequence[ClockSizes]) -> pd.DataFrame:
    """A row for each target and cost."""
    confidence = {t.target_id: a.confidence for a in reversed(answers) for t in a.targets}
    rows = []
    for target in targets_of(answers):
        for cost in ("flops", "clock"):
            best: BestSize = getattr(target, cost)
            row = {
                "target": target.target_id,
                "target_params": target.target_params,
                "cost": cost,
                "source": target.source,
            }
            for name in ("draft_params", "ratio", "lookahead", "speedup"):
                value: Estimate = getattr(best, name)
                row |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
            for percent in (1, 5):
                low, high = getattr(best, f"within_{percent}pct")
                row |= {f"low_{percent}pct": low, f"high_{percent}pct": high}
            smallest, largest = best.on_edges
            row |= {"inside": best.inside, "on_smallest": smallest, "on_largest": largest}
            row |= dict(
                zip(("open_low", "open_high"), best.open_ends(confidence[target.target_id]))
            )
            rows.append(row | {"pays": best.pays})
    return pd.DataFrame(rows)


def listing(table: pd.DataFrame, answers: Sequence[ClockSizes]) -> str:
    """The table and the claims as Markdown."""
    lines = [
        "| target M | cost | N\\* | M/N\\* | γ\\* | S\\* | within 1% | within 5% | pays |",
        "| -------- | ---- | --- | ----- | --- | --- | --------- | --------- | ---- |",
    ]
    for r in table.itertuples():
        laws = r.source == "laws"
        below, above = "≤ " * r.open_high, "≥ " * r.open_low
        ends = f" [{below}{r.ratio_low:.3g}, {above}{r.ratio_high:.3g}]"
        ratio = ends if laws else " (measured)"
        mark = "" if r.inside > 0.5 else " †"
        cells = [
            short_count(r.target_params),
            {"flops": "FLOPs", "clock": "clock"}[r.cost],
            short_count(r.draft_params) + mark,
            f"{r.ratio:.3g}{ratio}",
            f"{r.lookahead:g}",
            f"{r.speedup:.2f} [{r.speedup_low:.2f}, {r.speedup_high:.2f}]",
            *(
                f"{short_count(low)} – {short_count(high)}"
                for low, high in ((r.low_1pct, r.high_1pct), (r.low_5pct, r.high_5pct))
            ),
            r.pays,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "†: the smallest or the largest draft; the best one may lie beyond it. ≤ and ≥: so may that end.",
        "",
    ]
    for answer in answers:
        for c in answer.claims:
            found = f"{c.estimate:.3g} [{c.low:.3g}, {c.high:.3g}]"
            lines.append(f"- {c.claim}: **{c.answer}**, {found} ({c.quantity})")
        if answer.pays_from:
            e = answer.pays_from
            sizes = [short_count(x) for x in (e.estimate, e.low, e.high)]
            lines.append(
                f"- speculation pays on the clock from {sizes[0]} parameters on [{sizes[1]}, {sizes[2]}]"
            )
    return "\n".join(lines) + "\n"


def main(folders: Sequence[str]) -> None:
    """Writes the figure and the table."""
    if not folders:
        raise SystemExit("name the folder of a study that timed decoders.")
    answers = read(folders)
    table = compute(answers)
    table.to_csv(TABLE, index=False, float_format="%.6g")
    with tempfile.TemporaryDirectory() as made:
        draw_sizes(answers, Path(made), "on-the-clock")
        IMAGE.write_bytes((Path(made) / IMAGE.name).read_bytes())
    print(listing(table, answers))


if __name__ == "__main__":
    main(sys.argv[1:])
