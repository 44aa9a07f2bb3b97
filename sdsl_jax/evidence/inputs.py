"""What the evidence is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sdsl_jax.config import StudyConfig
from sdsl_jax.hardware import HardwareFile
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    LossRecord,
    ModelRecord,
    RunRecord,
    SurvivalRecord,
)


class Inputs(NamedTuple):
    """All that the evidence is drawn from: the settings and the records of a study.

    Attributes:
      config: the study.
      models: its drafts and targets.
      acceptance: α of every pair by every estimator, in the study's own domain and at its
        temperature.
      survival: S_k of the live decoder.
      expected: expected tokens per round of every pair and lookahead, without decoding.
      conditions: exact α at other temperatures, in other domains, and of other drafts; may be
        empty.
      other_models: drafts trained on other text; may be empty.
      losses: losses of all these models in all these domains; may be empty.
      fits: contents of `fits.json`.
      codesign: contents of `codesign.json`.
      self_checks: of the decoder, by run.
      predictions: contents of `predictions.json`; None where nothing was held out.
      runs: of decoders on the clock; may be empty.
      timed_models: models of other folders that took part; may be empty.
      hardware: the calibrated device; None where nothing was timed.
    """

    config: StudyConfig
    models: list[ModelRecord]
    acceptance: list[AcceptanceRecord]
    survival: list[SurvivalRecord]
    expected: list[ExpectedRecord]
    conditions: list[AcceptanceRecord]
    other_models: list[ModelRecord]
    losses: list[LossRecord]
    fits: dict[str, Any]
    codesign: list[dict[str, Any]]
    self_checks: dict[str, float]
    predictions: dict[str, Any] | None = None
    runs: Sequence[RunRecord] = ()
    timed_models: Sequence[ModelRecord] = ()
    hardware: HardwareFile | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether the estimator that laws are fitted to was used on enough drafts to fit any."""
        known = {m.model_id for m in self.models}
        return (
            len(
                {r.draft_id for r in self.acceptance if r.estimator == self.config.fit.estimator}
                & known
            )
            >= 4
        )
