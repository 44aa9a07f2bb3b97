"""What the figures and the report read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    LatencyRecord,
    ModelRecord,
    SurvivalRecord,
    longest_trained,
    read_json,
    read_table,
)


class Records(NamedTuple):
    """Everything that the figures and the report read."""

    models: list[ModelRecord]
    acceptance: list[AcceptanceRecord]
    survival: list[SurvivalRecord]
    latency: list[LatencyRecord]
    fits: dict[str, Any]
    codesign: list[dict[str, Any]]
    landscapes: list[dict[str, Any]]
    expected: list[ExpectedRecord]
    evidence: dict[str, Any]

    @property
    def best_law(self) -> str:
        """The acceptance law with the smallest error on left-out drafts."""
        return self.fits["acceptance_laws"][0]["law"]

    @property
    def solved_laws(self) -> list[str]:
        """The acceptance laws that optima were computed for, the best first."""
        return list(dict.fromkeys(entry["acceptance_law"] for entry in self.codesign))

    @property
    def targets(self) -> list[ModelRecord]:
        """The longest-trained target of each size, the smallest first."""
        return longest_trained(self.models, "target")


def read_records(folder: Path) -> Records:
    """Reads the records of a study.

    Raises:
      SdslError: one is missing or damaged.
    """
    return Records(
        models=read_table(folder, "models"),
        acceptance=read_table(folder, "acceptance"),
        survival=read_table(folder, "survival"),
        latency=read_table(folder, "latency"),
        fits=read_json(
            folder / "fits.json", dict, ("loss_law", "acceptance_laws", "hardware", "shape_rule")
        ),
        codesign=read_json(
            folder / "codesign.json", list, ("target_id", "reference", "nearest_trained", "trained")
        ),
        landscapes=read_json(folder / "landscapes.json", list, ("curve", "map", "path")),
        # Records from elsewhere may hold neither.
        expected=read_table(folder, "expected") if (folder / "expected.csv").exists() else [],
        evidence=read_json(folder / "evidence.json") if (folder / "evidence.json").exists() else {},
    )
