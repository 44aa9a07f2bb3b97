"""The evidence stage: records in, `evidence.json` out, with one entry for each question asked of them."""

from __future__ import annotations

from dataclasses import dataclass

from sdsl_jax.evidence.claims import Claims, Sensitivity, claims, sensitivity
from sdsl_jax.evidence.clock import Clock, clock
from sdsl_jax.evidence.clock_sizes import ClockSizes, clock_sizes
from sdsl_jax.evidence.conditions import Domain, Temperature, domain, temperature
from sdsl_jax.evidence.dependence import Dependence, dependence
from sdsl_jax.evidence.estimators import Estimators, estimators
from sdsl_jax.evidence.fit_quality import Coverage, Residuals, coverage, residuals
from sdsl_jax.evidence.holdout import Holdout, holdout
from sdsl_jax.evidence.kinds import Kinds, kinds
from sdsl_jax.evidence.law_comparison import LawComparison, LawInputs, acceptance_laws, law_inputs
from sdsl_jax.evidence.objectives import Objectives, objectives
from sdsl_jax.evidence.race import Race, race
from sdsl_jax.evidence.readouts import Readouts, readouts
from sdsl_jax.evidence.same_data import SameData, same_data
from sdsl_jax.evidence.study_records import StudyRecords


@dataclass(frozen=True)
class Evidence:
    """`evidence.json`: what the records say for and against the laws.

    An answer is None where the records do not hold what it needs.

    Attributes:
      claims: which conclusions of the paper hold here
      holdout: predictions beside what was measured later
      residuals: what the laws do not explain
      coverage: how often intervals hold the truth
      acceptance_laws: which acceptance law predicts what it has not seen
      law_inputs: which sizes and losses laws should use
      sensitivity: what moves the optimum
      dependence: whether acceptance is independent
      estimators: whether the ways to measure α agree
      temperature: what temperature does to α
      domain: what other text does to α
      same_data: whether loss alone predicts α
      clock: predicted and measured speed-ups on the clock
      objectives: what training for acceptance changes
      kinds: which kind of draft is best
      readouts: how size, tokens and the ids that a draft proposes make its acceptance
      race: how much faster the best draft decodes, on prompts that did not choose it
      clock_sizes: how large the best draft is on the clock and in FLOPs
    """

    claims: Claims | None = None
    holdout: Holdout | None = None
    residuals: Residuals | None = None
    coverage: Coverage | None = None
    acceptance_laws: LawComparison | None = None
    law_inputs: LawInputs | None = None
    sensitivity: Sensitivity | None = None
    dependence: Dependence | None = None
    estimators: Estimators | None = None
    temperature: Temperature | None = None
    domain: Domain | None = None
    same_data: SameData | None = None
    clock: Clock | None = None
    objectives: Objectives | None = None
    kinds: Kinds | None = None
    readouts: Readouts | None = None
    race: Race | None = None
    clock_sizes: ClockSizes | None = None


def gather(records: StudyRecords) -> Evidence:
    """Answers every question that the records can answer."""
    return Evidence(
        claims(records),
        holdout(records),
        residuals(records),
        coverage(records),
        acceptance_laws(records),
        law_inputs(records),
        sensitivity(records),
        dependence(records),
        estimators(records),
        temperature(records),
        domain(records),
        same_data(records),
        clock(records),
        objectives(records),
        kinds(records),
        readouts(records),
        race(records),
        clock_sizes(records),
    )
