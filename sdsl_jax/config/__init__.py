"""The settings of a study: frozen dataclasses, read from TOML and written back to it; no jax, no arrays."""

from sdsl_jax.config.measurement import ConditionsConfig, DomainConfig
from sdsl_jax.config.protocol import ProtocolConfig, ProtocolModel
from sdsl_jax.config.sections import DataConfig, FamilyConfig, FitConfig, StudyConfig
from sdsl_jax.config.toml import (
    from_dict,
    load_protocol,
    load_study,
    parse_override,
    to_dict,
    to_toml,
)
from sdsl_jax.config.training import (
    EXIT_KINDS,
    HEAD_KINDS,
    DistilConfig,
    DraftKind,
    ObjectiveName,
    ParallelConfig,
    TrainingConfig,
)

__all__ = [
    "EXIT_KINDS",
    "HEAD_KINDS",
    "ConditionsConfig",
    "DataConfig",
    "DistilConfig",
    "DomainConfig",
    "DraftKind",
    "FamilyConfig",
    "FitConfig",
    "ObjectiveName",
    "ParallelConfig",
    "ProtocolConfig",
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
