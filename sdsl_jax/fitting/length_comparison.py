"""Laws of acceptance length, compared at lookaheads they did not see of series they did not see.

The question of a user: I measured tokens per round at two small lookaheads; what will they be at a
larger one? Every law gets the smallest lookaheads of a series. What the law by position pools comes
from other series of the same kind of drafter alone, with whole groups (drafts, targets) left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.errors import require
from sdsl_jax.fitting.acceptance_lengths import (
    LengthTable,
    fit_position_pool,
    fit_series,
    predict_lengths,
)
from sdsl_jax.fitting.solver import minimise
from sdsl_jax.theory import BetaAcceptance, PersistentAcceptance, tokens_per_round

_SQUARE = 1e9
_STARTS = np.asarray([[0.5, -2.0]])


def _geometric(x: Array, lookahead: int) -> Array:
    return tokens_per_round(jax.nn.sigmoid(x[0]), lookahead)


def _beta(x: Array) -> BetaAcceptance:
    """Mean and correlation of two drafts, 1/(a + b + 1), from unbounded numbers."""
    correlation = 1e-4 + 0.99 * jax.nn.sigmoid(x[1])
    size = 1 / correlation - 1
    return BetaAcceptance(size * jax.nn.sigmoid(x[0]), size * jax.nn.sigmoid(-x[0]))


def _persistent(x: Array, lookahead: int) -> Array:
    """The chain from the acceptance after an acceptance and after a rejection, which are free."""
    again, after_rejection = 0.999 * jax.nn.sigmoid(x[0]), 0.999 * jax.nn.sigmoid(x[1] + x[0])
    rho = again - after_rejection
    return PersistentAcceptance(after_rejection / (1 - rho), rho).tokens_per_round(lookahead)


class _Law(NamedTuple):
    tokens_per_round: Callable[[Array, int], Array]  # of unbounded numbers and γ
    smallest: int | None  # how many of the smallest lookaheads it is fitted to; None: all given


# Laws of two numbers or fewer, which each series identifies by itself.
SINGLE_SERIES_LAWS: dict[str, _Law] = {
    "geometric_at_smallest": _Law(_geometric, 1),
    "geometric_fitted": _Law(_geometric, None),
    "beta_over_rounds": _Law(lambda x, g: _beta(x).tokens_per_round_over_rounds(g), None),
    "persistent": _Law(_persistent, None),
}
POOLED_LAWS = ("position_one_drop", "position")


@functools.partial(quick_jit, static_argnames=("name", "lookaheads"))
def _solve(
    name: str, log_tau: Array, used: Array, index: Array, lookaheads: tuple[int, ...]
) -> Array:
    law = SINGLE_SERIES_LAWS[name]

    def predict(x: Array) -> Array:
        return jnp.stack([law.tokens_per_round(x, g) for g in lookaheads])

    def one(log_tau: Array, used: Array, index: Array) -> Array:
        def residuals(x: Array, _: object) -> Array:
            return jnp.log(predict(x))[index] - log_tau

        starts = jnp.asarray(_STARTS, log_tau.dtype)
        ends = jax.vmap(lambda x: minimise(residuals, x, None, used, _SQUARE))(starts)
        best = jnp.argmin(jnp.where(jnp.isfinite(ends.objective), ends.objective, jnp.inf))
        return predict(ends.parameters[best])

    return jax.vmap(one)(log_tau, used, index)


def predict_by_single_series(
    name: str, table: LengthTable, lookaheads: tuple[int, ...]
) -> Float[np.ndarray, "series lookaheads"]:
    """τ at some lookaheads by a law that each series identifies by itself.

    Args:
      name: One of `SINGLE_SERIES_LAWS`.
      table: Tokens per round; those without weight are not used.
      lookaheads: Must hold all of the table's.

    Raises:
      SdslError: The table holds survival.
    """
    require(
        not table.survival.any(),
        "these laws are fitted to tokens per round here; sum survival to 1 + S_1 + … + S_γ first.",
    )
    few = SINGLE_SERIES_LAWS[name].smallest
    used = (table if few is None else table.smallest(few)).weight
    index = np.searchsorted(lookaheads, table.lookahead)
    with jax.enable_x64(True):
        return np.asarray(
            _solve(
                name,
                jnp.asarray(np.log(table.value)),
                jnp.asarray(used),
                jnp.asarray(index),
                lookaheads,
            )
        )


class LengthErrors(NamedTuple):
    """Predicted against measured τ at lookaheads that were not given, a row each.

    Attributes:
      law: Name of the law.
      series: Name of the series.
      lookahead: γ of the prediction.
      measured: τ.
      predicted: τ by the law.
      log_error: Standard error that the law by position gives ln τ; NaN for the others.
    """

    law: str
    series: Hashable
    lookahead: int
    measured: float
    predicted: float
    log_error: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted / self.measured - 1


def held_out_lengths(
    table: LengthTable,
    kinds: Sequence[Hashable],
    groups: Sequence[Hashable],
    given: int = 2,
    laws: Sequence[str] = (*SINGLE_SERIES_LAWS, *POOLED_LAWS),
) -> list[LengthErrors]:
    """τ of every law at the lookaheads of a series beyond its smallest ones.

    Args:
      table: Tokens per round of all series.
      kinds: Kind of drafter of each series; decay and drops are pooled within one.
      groups: What is left out whole, such as the draft of each series: the pool that predicts a
        series comes from other groups of its kind. A kind of one group alone cannot be pooled, and
        its rows have no law by position.
      given: How many of the smallest lookaheads of each series a law may see.
      laws: Names of the laws.

    Returns:
      A row for every law, series and further lookahead.
    """
    small, measured = table.smallest(given), table.weight > 0
    asked = measured & (small.weight == 0)
    lookaheads = tuple(int(g) for g in np.unique(table.lookahead[measured]))
    column = {g: i for i, g in enumerate(lookaheads)}
    predictions = {
        name: (predict_by_single_series(name, small, lookaheads), np.full(asked.shape, np.nan))
        for name in SINGLE_SERIES_LAWS
        if name in laws
    }
    for name in (name for name in POOLED_LAWS if name in laws):
        predictions[name] = _pooled(name, table, small, kinds, groups, lookaheads)
    rows = []
    for i, j in zip(*np.nonzero(asked)):
        gamma = int(table.lookahead[i, j])
        for name, (tau, error) in predictions.items():
            value = float(tau[i, column[gamma]])
            wide = float(error[i, column[gamma]]) if name in POOLED_LAWS else np.nan
            if np.isfinite(value):
                true = float(table.value[i, j])
                rows.append(LengthErrors(name, table.labels[i], gamma, true, value, wide))
    return rows


def _pooled(
    name: str,
    table: LengthTable,
    small: LengthTable,
    kinds: Sequence[Hashable],
    groups: Sequence[Hashable],
    lookaheads: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """τ and its standard error in ln τ by the law by position, [series, lookaheads]; NaN without a pool."""
    of_kind, of_group = (np.asarray([str(x) for x in labels]) for labels in (kinds, groups))
    shape = len(table.labels), len(lookaheads)
    tau, error = np.full(shape, np.nan), np.full(shape, np.nan)
    several = (table.weight > 0).sum(axis=1) >= 2
    one_drop = name == "position_one_drop"
    for kind in np.unique(of_kind):
        for group in np.unique(of_group[of_kind == kind]):
            left_out = (of_kind == kind) & (of_group == group)
            others = (of_kind == kind) & ~left_out
            if not (others & several).any():
                continue
            pool = fit_position_pool(table.of_series(others), one_drop)
            laws = fit_series(small.only(left_out), pool)
            for column, gamma in enumerate(lookaheads):
                found = predict_lengths(laws, pool, gamma)
                tau[left_out, column] = found.tokens_per_round
                error[left_out, column] = found.log_error
    return tau, error


class ErrorSummary(NamedTuple):
    """Errors of τ by one law: the median with its sign, and quantiles of the size."""

    law: str
    rows: int
    median: float
    median_size: float
    ninety: float
    worst: float
    covered: float


def summarise(rows: Sequence[LengthErrors]) -> list[ErrorSummary]:
    """The errors of each law, in the order of the laws; `covered` is the share of measurements inside the law's 90% intervals."""
    found = []
    for law in dict.fromkeys(row.law for row in rows):
        mine = [row for row in rows if row.law == law]
        errors = np.asarray([row.error for row in mine])
        scale = np.asarray([row.log_error for row in mine])
        inside = np.abs(np.log1p(errors)) <= 1.645 * scale
        covered = float(inside.mean()) if np.isfinite(scale).all() else float("nan")
        size = np.abs(errors)
        quantiles = float(np.median(size)), float(np.quantile(size, 0.9)), float(size.max())
        found.append(ErrorSummary(law, len(mine), float(np.median(errors)), *quantiles, covered))
    return found
