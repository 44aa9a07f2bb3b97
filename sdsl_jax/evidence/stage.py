"""The evidence stage: records in, `evidence.json` out, with one entry for each question asked of them."""

from __future__ import annotations

from dataclasses import dataclass

from sdsl_jax.evidence.claims import Claims, Sensitivity, claims, sensitivity
from sdsl_jax.evidence.clock import Clock, clock
from sdsl_jax.evidence.conditions import Domain, Temperature, domain, temperature
from sdsl_jax.evidence.dependence import Dependence, dependence
from sdsl_jax.evidence.estimators import Estimators, estimators
from sdsl_jax.evidence.fit_quality import Coverage, Residuals, coverage, residuals
from sdsl_jax.evidence.holdout import Holdout, holdout
from sdsl_jax.evidence.law_comparison import LawComparison, LawInputs, acceptance_laws, law_inputs
from sdsl_jax.evidence.same_data import SameData, same_data
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records.documents import described


@dataclass(frozen=True)
class Evidence:
    """`evidence.json`: what the records say for and against the laws.

    An answer is None where the records do not hold what it needs.
    """

    claims: Claims | None = described("which conclusions of the paper hold here", default=None)
    holdout: Holdout | None = described("predictions beside what was measured later", default=None)
    residuals: Residuals | None = described("what the laws do not explain", default=None)
    coverage: Coverage | None = described("how often intervals hold the truth", default=None)
    acceptance_laws: LawComparison | None = described(
        "which acceptance law predicts what it has not seen", default=None
    )
    law_inputs: LawInputs | None = described("which sizes and losses laws should use", default=None)
    sensitivity: Sensitivity | None = described("what moves the optimum", default=None)
    dependence: Dependence | None = described("whether acceptance is independent", default=None)
    estimators: Estimators | None = described("whether the ways to measure α agree", default=None)
    temperature: Temperature | None = described("what temperature does to α", default=None)
    domain: Domain | None = described("what other text does to α", default=None)
    same_data: SameData | None = described("whether loss alone predicts α", default=None)
    clock: Clock | None = described("predicted and measured speed-ups on the clock", default=None)


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
    )
