"""Interactive charts of the evidence: those whose figures show points that one wants to name."""

from __future__ import annotations

from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.report.chart_parts import Chart


def evidence_charts(records: StudyRecords) -> dict[str, list[Chart]]:
    """The charts of what the evidence holds, by the name of the figure whose panels they are."""
    evidence = records.document("evidence", Evidence) or Evidence()
    del evidence
    return {}
