"""Loss laws fitted to a table of sizes, tokens and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.config import FitConfig
from sdsl_jax.errors import require
from sdsl_jax.fitting.forms import LOSS_FORMS, loss_data
from sdsl_jax.fitting.law_fit import FitWarning, LawFit, fit_form
from sdsl_jax.records import ModelRecord, column
from sdsl_jax.statistics import resampled

# Fewer models than three for each coefficient of the Chinchilla law.
_FEW_ROWS = 15
# In simulations 90% intervals over rungs held the truth in 74 to 84% of tables of 4 rungs, 85 to
# 93% of 5, 91 to 94% of 8.
_FEW_RUNGS = 5
# With fewer sizes the rest would not hold the law.
_SIZES_TO_LEAVE_OUT = 4
# Chance of warning of shared noise where there is none.
_FALSE_ALARM = 0.01


class LossTable(NamedTuple):
    """Trained models.

    Attributes:
      params: Sizes N, in one count.
      tokens: Training tokens D.
      loss: Losses on one text, in nats per token or any other unit.
      rungs: Labels of training runs; residuals within a run are correlated.
    """

    params: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    rungs: np.ndarray


def loss_table(models: list[ModelRecord], params: str = "params_nonembedding") -> LossTable:
    """Records of models as a table; a rung is one size of one role and seed.

    Args:
      models: Records of models.
      params: Column with the sizes.

    Raises:
      SdslError: They were trained for different objectives.
    """
    drafts = [m for m in models if m.role == "draft"]
    require_one_objective([m.trained_for for m in drafts])
    require(
        len({m.teacher_digest for m in drafts}) <= 1,
        "the table holds drafts that were trained for different teachers; no single law describes them.",
    )
    sizes, tokens, losses = (
        np.asarray(column(models, name), float) for name in (params, "train_tokens", "loss_nats")
    )
    labels = [(m.role, m.params_nonembedding, m.seed) for m in models]
    return LossTable(sizes, tokens, losses, np.asarray([labels.index(label) for label in labels]))


def require_one_objective(trained_for: Sequence[str]) -> None:
    """Checks that models may share a law.

    Args:
      trained_for: What each of them was trained for, see `ModelRecord.trained_for`.

    Raises:
      SdslError: They were trained for different objectives.
    """
    kinds = sorted(set(trained_for))
    require(
        len(kinds) <= 1,
        f"the table holds drafts that were trained for different objectives: {', '.join(kinds)}. No single law describes them: "
        "at equal loss, a draft trained for acceptance has more of it, and one of a truncated readout less. Choose one with "
        "--objective.",
    )


def resamples(table: LossTable, config: FitConfig, seed: int) -> Float[np.ndarray, "draws n"]:
    """Bootstrap weights of the rows: rows drawn one by one, or whole rungs."""
    labels = np.arange(len(table.params)) if config.resample == "rows" else table.rungs
    return resampled(labels, config.bootstrap, seed)


def fit_loss_law(
    table: LossTable,
    config: FitConfig,
    weights: Float[np.ndarray, "draws n"],
    seed: int,
    law: str = "chinchilla",
) -> LawFit:
    """Fits L(N, D), of one of the forms of `LOSS_FORMS`, by a Huber loss on ln L.

    Args:
      table: Trained models: at least one more than the law has coefficients, with at least 2 sizes
        and 2 token budgets.
      config: Settings of the fit.
      weights: Bootstrap weights of the rows.
      seed: Seed of the starts.
      law: "chinchilla", "kaplan" or "nested"; "best" for the one with the least error at left-out
        sizes, Chinchilla's where there are too few sizes to leave one out.

    Raises:
      SdslError: The rows cannot determine the law.
    """
    if law == "best":
        able = [name for name, form in LOSS_FORMS.items() if len(table.params) > len(form.names())]
        fits = [fit_loss_law(table, config, weights, seed, name) for name in able or ["chinchilla"]]
        return min(fits, key=lambda fitted: fitted.record.left_out_rmse)
    form = LOSS_FORMS[law]
    count, sizes, budgets = len(table.params), len(set(table.params)), len(set(table.tokens))
    needed = len(form.names()) + 1
    require(
        count >= needed and sizes >= 2 and budgets >= 2,
        f"the loss law has {needed - 1} coefficients and needs at least {needed} models, 2 sizes and 2 budgets of tokens; the "
        f"table has {count} models, and different sizes: {sizes}, different budgets: {budgets}.",
    )
    require(
        float(np.ptp(table.loss)) > 0,
        f"every model has the loss {table.loss[0]:g}: there is nothing to fit a law to.",
    )
    what = "rows" if config.resample == "rows" else "whole rungs"
    with jax.enable_x64(True):
        data = loss_data(table.params, table.tokens, table.loss)
        fitted = fit_form(
            form,
            data,
            weights,
            delta=config.huber_delta,
            starts=config.starts,
            confidence=config.confidence,
            seed=seed,
            residual_unit="log of the loss",
            basis=f"bootstrap over {what}, {len(weights)} draws",
            groups=np.asarray(table.params) if sizes >= _SIZES_TO_LEAVE_OUT else None,
            beyond=data._replace(
                log_params=data.log_params.max(keepdims=True) + np.log(10),
                log_tokens=data.log_tokens.max(keepdims=True) + np.log(10),
                log_loss=data.log_loss[:1],
            ),
        )
    warnings = [
        *fitted.warnings,
        *_design_warnings(table),
        *_rung_warnings(table.rungs, fitted.residuals, config.resample),
    ]
    floor = form.floor
    if floor and table.loss.min() * 1e-3 > fitted.record.coefficients[floor]:
        text = f"{floor} is not identified at this scale: the best fit has none, so losses far beyond the ladder are too low"
        warnings = [w for w in warnings if w.coefficient != floor]
        warnings.insert(0, FitWarning("unidentified", text, floor))
    return fitted.with_warnings(*warnings)


def _design_warnings(table: LossTable) -> list[FitWarning]:
    texts = []
    if np.ptp(np.log(table.tokens / table.params)) < np.log(1.5):
        texts.append(
            "every model has about the same tokens per parameter: a and b cannot be told apart"
        )
    if len(table.params) < _FEW_ROWS:
        texts.append(
            f"{len(table.params)} models are few for a loss law: use it between the sizes that were trained, not beyond them"
        )
    return [FitWarning("design", text) for text in texts]


def _rung_warnings(rungs: np.ndarray, residuals: np.ndarray, resample: str) -> list[FitWarning]:
    count = len(np.unique(rungs))
    if resample == "rungs":
        if count >= _FEW_RUNGS:
            return []
        text = f"{count} rungs are few to resample: intervals over fewer than {_FEW_RUNGS} are too short"
    else:
        correlation, chance = shared_noise(residuals, rungs)
        if chance > _FALSE_ALARM:
            return []
        text = f"residuals within a rung are correlated ({correlation:.2f}), so intervals over rows are too short: resample rungs"
    return [FitWarning("bootstrap", text)]


def shared_noise(
    residuals: Float[np.ndarray, " n"], rungs: np.ndarray, shuffles: int = 999
) -> tuple[float, float]:
    """Correlation of the residuals within a rung, by analysis of variance, and its p-value.

    The p-value is that of a permutation test on the ranks of the residuals, so that outliers do not
    decide.

    Args:
      residuals: Residuals of the fit.
      rungs: Label of each row.
      shuffles: Number of permutations.
    """
    _, of, sizes = np.unique(rungs, return_inverse=True, return_counts=True)
    n, k = len(residuals), len(sizes)
    if k < 3 or n - k < 3:
        return 0.0, 1.0
    ranks = residuals.argsort().argsort() - (n - 1) / 2

    def within(values: np.ndarray) -> float:
        means = np.bincount(of, values) / sizes
        return float(np.square(values - means[of]).sum() / (n - k))

    total = float(np.square(ranks).sum())
    found = within(ranks)
    random = np.random.default_rng(0)
    chance = (1 + sum(within(random.permutation(ranks)) <= found for _ in range(shuffles))) / (
        shuffles + 1
    )
    between = (total - found * (n - k)) / (k - 1)
    typical = (n - np.square(sizes).sum() / n) / (k - 1)
    return float((between - found) / (between + (typical - 1) * found)), chance
