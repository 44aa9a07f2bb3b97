"""The tables that cross stages: one frozen dataclass per row, written as CSV beside a schema.

Everything from fitting onward reads only these, so laws, optima and figures can be redone in
seconds without weights, and from anybody's measurements. Units stand in the column names;
`SCHEMA_VERSION` changes when a column changes its meaning.
"""

from sdsl_jax.records.files import (
    column,
    read_json,
    read_table,
    schema,
    whole_file,
    write_json,
    write_table,
    write_text,
)
from sdsl_jax.records.folders import (
    require_records_folder,
    require_replaceable,
    require_study_folder,
    write_marked,
)
from sdsl_jax.records.tables import (
    SCHEMA_VERSION,
    TABLES,
    AcceptanceRecord,
    ClockRecord,
    ExpectedRecord,
    GenerationRecord,
    LatencyRecord,
    LossRecord,
    ModelRecord,
    RaceRecord,
    RunRecord,
    SurvivalRecord,
    TimingRecord,
    longest_trained,
)

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "AcceptanceRecord",
    "ClockRecord",
    "ExpectedRecord",
    "GenerationRecord",
    "LatencyRecord",
    "LossRecord",
    "ModelRecord",
    "RaceRecord",
    "RunRecord",
    "SurvivalRecord",
    "TimingRecord",
    "column",
    "longest_trained",
    "read_json",
    "read_table",
    "require_records_folder",
    "require_replaceable",
    "require_study_folder",
    "schema",
    "whole_file",
    "write_json",
    "write_marked",
    "write_table",
    "write_text",
]
