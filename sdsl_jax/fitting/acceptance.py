"""Acceptance laws fitted to a table of pairs, ranked by their error on drafts that the fit did not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from sdsl_jax.config import FitConfig
from sdsl_jax.errors import require
from sdsl_jax.fitting.forms import ACCEPTANCE_FORMS, pair_data
from sdsl_jax.fitting.law_fit import FitWarning, LawFit, best_fit, fit_form, law_of
from sdsl_jax.fitting.loss import loss_table
from sdsl_jax.records import AcceptanceRecord, ModelRecord, column
from sdsl_jax.statistics import resampled
from sdsl_jax.theory import ModelPoint

# Descents of a fit without uncertainty.
_STARTS = 16
# With fewer training runs of targets, resampling cannot show how far targets of one loss differ.
FEW_TARGETS = 5


class PairTable(NamedTuple):
    """Measured pairs.

    Attributes:
      draft: Sizes, losses and training tokens of the drafts, arrays [n].
      target: Sizes, losses and training tokens of the targets, arrays [n].
      alpha: Acceptance probabilities.
      draft_model: Index of the draft of each row among the models.
      target_model: Index of the target of each row among the models.
      draft_run: Label of the draft's training run; rows of one run are resampled together.
      target_run: Label of the target's training run.
    """

    draft: ModelPoint
    target: ModelPoint
    alpha: Float[np.ndarray, " n"]
    draft_model: np.ndarray
    target_model: np.ndarray
    draft_run: np.ndarray
    target_run: np.ndarray

    @property
    def draft_sizes(self) -> Float[np.ndarray, " n"]:
        """Size of the draft of each row."""
        return np.asarray(self.draft.params, float)

    @property
    def target_sizes(self) -> Float[np.ndarray, " n"]:
        """Size of the target of each row."""
        return np.asarray(self.target.params, float)

    def rows(self, chosen: Bool[np.ndarray, " n"]) -> PairTable:
        """Some of the rows."""
        return jax.tree.map(lambda x: np.asarray(x)[chosen], self)


def pair_table(
    models: list[ModelRecord],
    acceptance: list[AcceptanceRecord],
    estimator: str,
    params: str = "params_nonembedding",
) -> PairTable:
    """The rows of one estimator whose models are known, as a table.

    Args:
      models: Records of drafts and targets.
      acceptance: Records of acceptance, of any estimator.
      estimator: Estimator whose rows are taken.
      params: Column with the sizes.

    Raises:
      SdslError: Fewer than 4 drafts were measured by this estimator.
    """
    by_id = {model.model_id: i for i, model in enumerate(models)}
    rows = [
        r
        for r in acceptance
        if r.estimator == estimator and r.draft_id in by_id and r.target_id in by_id
    ]
    drafts = len({r.draft_id for r in rows})
    require(
        drafts >= 4,
        f"the acceptance laws need pairs of at least 4 drafts measured by {estimator}; the records hold {drafts}.",
    )
    draft, target = (
        np.asarray([by_id[getattr(r, role)] for r in rows]) for role in ("draft_id", "target_id")
    )
    columns = [
        np.asarray(column(models, name), float) for name in (params, "loss_nats", "train_tokens")
    ]
    points = [ModelPoint(*(values[of] for values in columns)) for of in (draft, target)]
    runs = loss_table(models).rungs
    alpha = np.asarray(column(rows, "alpha"), float)
    return PairTable(points[0], points[1], alpha, draft, target, runs[draft], runs[target])


def pair_resamples(table: PairTable, draws: int, seed: int) -> Float[np.ndarray, "draws n"]:
    """Bootstrap weights of pairs. Runs of drafts and runs of targets are drawn independently; a pair weighs the product."""
    return resampled(table.draft_run, draws, seed) * resampled(table.target_run, draws, seed + 1)


def fit_law(
    name: str,
    table: PairTable,
    delta: float,
    kept: Bool[np.ndarray, " n"],
) -> Any:
    """The estimates of one acceptance law, without uncertainty.

    Args:
      name: Name of the law.
      table: Measured pairs.
      delta: Residual at which the Huber loss turns linear.
      kept: Rows to fit to. One compilation serves any choice of rows.
    """
    form = ACCEPTANCE_FORMS[name]
    with jax.enable_x64(True):
        data = pair_data(table.draft, table.target, table.alpha)
        best = best_fit(form, data, np.asarray(kept, float), delta, _STARTS, seed=0)
        return jax.tree.map(np.asarray, law_of(form, best.parameters, data))


def fit_acceptance_laws(
    table: PairTable,
    config: FitConfig,
    weights: Float[np.ndarray, "draws n"],
    seed: int,
    basis: str,
    laws: Sequence[str] = (),
) -> list[LawFit]:
    """Fits acceptance laws, the best by left-out draft sizes first.

    Args:
      table: Measured pairs.
      config: Settings of the fit.
      weights: Bootstrap weights of the rows.
      seed: Seed of the starts.
      basis: What the resamples are.
      laws: Names of the laws to fit; all if empty.

    Raises:
      SdslError: There is no such law, the table has too few draft sizes, or one acceptance only.
    """
    for name in laws:
        require(
            name in ACCEPTANCE_FORMS,
            f"there is no acceptance law {name!r}; known are {', '.join(ACCEPTANCE_FORMS)}.",
        )
    sizes = table.draft_sizes
    require(
        len(set(sizes)) >= 3,
        f"the acceptance laws need drafts of at least 3 sizes, to leave each out in turn; there are {len(set(sizes))}.",
    )
    require(
        float(np.ptp(table.alpha)) > 0,
        f"every pair has the acceptance {table.alpha[0]:g}: there is nothing to fit a law to.",
    )
    with jax.enable_x64(True):
        data = pair_data(table.draft, table.target, table.alpha)
        fits = [
            fit_form(
                form,
                data,
                weights,
                delta=config.acceptance_huber_delta,
                starts=config.starts,
                confidence=config.confidence,
                seed=seed,
                residual_unit="acceptance probability",
                basis=basis,
                # A draft is left out with all its budgets: they share a trunk, and one would give
                # the others away.
                groups=sizes,
            )
            for name, form in ACCEPTANCE_FORMS.items()
            if name in (laws or ACCEPTANCE_FORMS)
        ]
    runs, few = len(np.unique(table.target_run)), list[FitWarning]()
    if runs < FEW_TARGETS:
        sure = "a guess" if runs < 3 else "less sure than the intervals say"
        text = f"fitted on {runs} training run{'s' * (runs > 1)} of targets: how α depends on the target is {sure}"
        few = [FitWarning("design", text)]
    variance = float(np.var(table.alpha))
    fits = [
        fitted.with_warnings(*fitted.warnings, *few, r_squared=1 - fitted.rmse**2 / variance)
        for fitted in fits
    ]
    return sorted(fits, key=lambda fitted: fitted.record.left_out_rmse)
