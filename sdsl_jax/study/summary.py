"""The table that ends a study."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sdsl_jax.records import read_json, read_table


class SummaryRow(NamedTuple):
    """One line of the table that ends a study."""

    target: str
    cost_model: str
    acceptance_law: str
    draft_params: float | None
    indifference: tuple[float, float] | None
    lookahead: float | None
    speedup: float | None
    reference_params: float | None
    reference_lookahead: float | None
    nearest_draft: str | None
    nearest_lookahead: int | None
    nearest_speedup: float | None
    speculate: bool
    clock_lookahead: int | None
    clock_speedup: float | None


def summary(folder: Path) -> list[SummaryRow]:
    """The optimum of every target and cost model under the acceptance law that predicts left-out drafts best."""
    entries = read_json(
        folder / "records" / "codesign.json", list, ("target_id", "reference", "nearest_trained")
    )
    clocked = {
        (r.draft_id, r.target_id, r.lookahead): r for r in read_table(folder / "records", "clock")
    }
    rows = []
    for entry in entries:
        if entry["acceptance_law"] != entries[0]["acceptance_law"]:
            continue
        nearest = entry["nearest_trained"] or {}
        timed = clocked.get(
            (nearest.get("draft_id", ""), entry["target_id"], max(1, entry["lookahead_integer"]))
        )
        interval = entry["indifference_1pct"]
        rows.append(
            SummaryRow(
                target=entry["target_id"],
                cost_model=entry["cost_model"],
                acceptance_law=entry["acceptance_law"],
                draft_params=entry["draft_params"],
                indifference=None if interval[0] is None else (interval[0], interval[1]),
                lookahead=entry["lookahead"],
                speedup=entry["speedup"],
                reference_params=entry["reference"]["draft_params"],
                reference_lookahead=entry["reference"]["lookahead"],
                nearest_draft=nearest.get("draft_id"),
                nearest_lookahead=nearest.get("lookahead"),
                nearest_speedup=nearest.get("speedup"),
                speculate=entry["speculate"],
                clock_lookahead=timed.lookahead if timed else None,
                clock_speedup=timed.speedup if timed else None,
            )
        )
    return rows
