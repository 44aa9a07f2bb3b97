"""The settings of a study: frozen dataclasses, read from TOML and written back to it; no jax, no arrays."""

from sdsl_jax.config.measurement import (
    ClockConfig,
    ConditionsConfig,
    DomainConfig,
    HoldoutConfig,
    MeasureConfig,
)
from sdsl_jax.config.protocol import ProtocolConfig, ProtocolMeasure, ProtocolModel
from sdsl_jax.config.sections import (
    CodesignConfig,
    DataConfig,
    FamilyConfig,
    FitConfig,
    LadderConfig,
    ParallelConfig,
    StudyConfig,
    TrainingConfig,
)
from sdsl_jax.config.toml import (
    from_dict,
    load_protocol,
    load_study,
    parse_override,
    to_dict,
    to_toml,
)

__all__ = [
    "ClockConfig",
    "CodesignConfig",
    "ConditionsConfig",
    "DataConfig",
    "DomainConfig",
    "FamilyConfig",
    "FitConfig",
    "HoldoutConfig",
    "LadderConfig",
    "MeasureConfig",
    "ParallelConfig",
    "ProtocolConfig",
    "ProtocolMeasure",
    "ProtocolModel",
    "StudyConfig",
    "TrainingConfig",
    "from_dict",
    "load_protocol",
    "load_study",
    "parse_override",
    "to_dict",
    "to_toml",
]
