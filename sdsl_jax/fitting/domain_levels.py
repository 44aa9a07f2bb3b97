"""Acceptance by domain: a level for each domain (and target, and draft), partially pooled.

What a draft is asked to write moves its acceptance more than which draft or target it is. So the
logit of acceptance gets random levels beside its fixed part:

    logit α = x·β + Σ_f u_f[level of f] + e,     u_f ~ N(0, spread_f²),     e ~ N(0, residual²).

x holds kinds of drafter, or the terms of the logit plane. The spreads are estimated by restricted
maximum likelihood (REML; Patterson & Thompson, 1971), by EM on Henderson's mixed-model equations.
A level with few rows shrinks towards 0; a level that no row has is 0 with a wide interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sdsl_jax.errors import require
from sdsl_jax.statistics import student_quantile

_STEPS, _TOLERANCE = 3000, 1e-5
# A spread below this share of the residual counts as none; and the residual is at least this share
# of the variance, for the equations to have one solution where there is no noise.
_NEGLIGIBLE = 1e-8
_LEAST_RESIDUAL = 1e-6
# Logits that differ by less than this are equal: an α inverted from τ is not exact.
_EQUAL = 1e-6


class LevelTable(NamedTuple):
    """Logits of acceptance, with what they depend on.

    Attributes:
      logit: logit α of each row.
      fixed: Columns of the fixed part, the first of them ones.
      fixed_names: Their names.
      factors: Name of each factor with random levels -> the level of each row.
    """

    logit: Float[np.ndarray, " n"]
    fixed: Float[np.ndarray, "n p"]
    fixed_names: tuple[str, ...]
    factors: Mapping[str, Sequence[Hashable]]


class LevelFit(NamedTuple):
    """Fixed coefficients, levels, and how sure they are.

    Attributes:
      fixed: β.
      levels: Level u of every value of every factor, shrunk towards 0.
      spreads: Standard deviation of the levels of each factor.
      residual: Standard deviation of a row about its levels.
      covariance: Of (β, all levels) − (estimates), in the order of `fixed` and `levels`.
      degrees: Rows that are left beyond fixed coefficients and levels, at least 1.
    """

    fixed: Float[np.ndarray, " p"]
    levels: dict[str, dict[Hashable, float]]
    spreads: dict[str, float]
    residual: float
    covariance: Float[np.ndarray, "size size"]
    degrees: int


class LevelPrediction(NamedTuple):
    """logit α of new rows, and its standard error for a new measurement."""

    logit: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    degrees: Float[np.ndarray, " n"]

    def interval(self, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval of logit α, by Student's t."""
        t = np.asarray([student_quantile(0.5 + confidence / 2, int(d)) for d in self.degrees])
        return self.logit - t * self.error, self.logit + t * self.error


def _indicators(labels: Sequence[Hashable], names: Sequence[Hashable]) -> np.ndarray:
    """One column for each name; a label that is no name has zeros."""
    index = {name: i for i, name in enumerate(names)}
    made = np.zeros((len(labels), len(names)))
    for row, label in enumerate(labels):
        if label in index:
            made[row, index[label]] = 1.0
    return made


def _dependent(x: np.ndarray) -> Bool[np.ndarray, " p"]:
    """Columns that lie in the span of those before them."""
    lengths = np.abs(np.diag(np.linalg.qr(x, mode="r")))
    return lengths <= 1e-9 * np.maximum(np.linalg.norm(x, axis=0), 1e-300)


def fit_levels(
    table: LevelTable,
    kept: Bool[np.ndarray, " n"] | None = None,
    variances: LevelFit | None = None,
) -> LevelFit:
    """Fixed coefficients and shrunken levels, with REML estimates of the spreads.

    Args:
      table: The rows.
      kept: Rows that are fitted; all if left out.
      variances: A fit whose spreads and residual are taken as they are.

    Raises:
      SdslError: There are no more rows than fixed coefficients.
    """
    rows = np.ones(len(table.logit), bool) if kept is None else kept
    y, x = table.logit[rows], table.fixed[rows]
    require(
        len(y) > x.shape[1],
        f"there are {len(y)} rows for {x.shape[1]} fixed coefficients; levels need more rows than that.",
    )
    labels = {
        f: [v for v, keep in zip(values, rows) if keep] for f, values in table.factors.items()
    }
    names = {f: list(dict.fromkeys(values)) for f, values in labels.items()}
    blocks = [_indicators(labels[f], names[f]) for f in labels]
    design = np.concatenate([x, *blocks], axis=1)
    normal, right = design.T @ design, design.T @ y
    p, counts = x.shape[1], [block.shape[1] for block in blocks]
    ends = np.cumsum([p, *counts])
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    # A fixed column that says nothing beside those before it (a kind that is left out) has the
    # coefficient 0.
    dead = np.concatenate([_dependent(x), np.zeros(sum(counts), bool)])
    normal[dead], normal[:, dead], right[dead] = 0.0, 0.0, 0.0
    normal[dead, dead] = 1.0
    rank = p - int(dead.sum())

    least = _LEAST_RESIDUAL * float(np.var(y)) + 1e-12
    if variances is None:
        start = float(np.var(y)) / (len(parts) + 1) + 1e-12
        spread, noise = np.full(len(parts), start), start
    else:
        spread = np.asarray([variances.spreads[f] ** 2 for f in labels])
        noise = max(variances.residual**2, least)
    for _ in range(_STEPS):
        system = normal.copy()
        for part, value in zip(parts, spread):
            system[part, part] += (
                np.eye(part.stop - part.start) * noise / max(value, _NEGLIGIBLE * noise)
            )
        inverse = np.linalg.inv(system)
        values = inverse @ right
        if variances is not None:
            break
        # EM for the spreads; the residual follows from the equations in closed form.
        moved = 0.0
        for k, part in enumerate(parts):
            own = values[part]
            new = float(own @ own + noise * np.trace(inverse[part, part])) / len(own)
            moved = max(moved, abs(new - spread[k]) / (noise + spread[k]))
            spread[k] = new
        new = max(float(y @ (y - design @ values)) / (len(y) - rank), least)
        moved, noise = max(moved, abs(new / noise - 1)), new
        if moved < _TOLERANCE:
            break
    levels = {f: dict(zip(names[f], values[part].tolist())) for f, part in zip(labels, parts)}
    return LevelFit(
        values[:p],
        levels,
        {f: float(np.sqrt(value)) for f, value in zip(labels, spread)},
        float(np.sqrt(noise)),
        np.where(dead[:, None] | dead[None], 0.0, inverse * noise),
        max(len(y) - rank - sum(counts), 1),
    )


def predict_levels(
    fit: LevelFit,
    fixed: Float[np.ndarray, "n p"],
    factors: Mapping[str, Sequence[Hashable]],
) -> LevelPrediction:
    """logit α of rows, some of whose levels the fit may not know.

    An unknown level is 0 with the spread of its factor as standard error. Its interval takes
    Student's t with one degree of freedom less than the factor has levels, since that is what
    the spread was estimated from.

    Args:
      fit: The fit.
      fixed: Columns of the fixed part.
      factors: As in `LevelTable`.
    """
    rows = len(fixed)
    blocks, unknown = [], np.zeros(rows)
    degrees = np.full(rows, float(fit.degrees))
    for factor, levels in fit.levels.items():
        block = _indicators(factors[factor], list(levels))
        blocks.append(block)
        new = block.sum(axis=1) == 0
        unknown += new * fit.spreads[factor] ** 2
        # A spread that adds nothing does not limit how sure the sum is.
        counts = fit.spreads[factor] > 0.3 * fit.residual
        degrees = np.where(new & counts, np.minimum(degrees, max(len(levels) - 1, 1)), degrees)
    design = np.concatenate([fixed, *blocks], axis=1)
    values = np.concatenate([fit.fixed, *(list(levels.values()) for levels in fit.levels.values())])
    known = np.einsum("ij,jk,ik->i", design, fit.covariance, design)
    error = np.sqrt(np.maximum(known, 0) + unknown + fit.residual**2)
    return LevelPrediction(design @ values, error, degrees)


class VarianceShares(NamedTuple):
    """Shares of the variance of logit α.

    Attributes:
      shares: Share of the sum of squares of each factor's main effect, and "rest" if balanced;
        empty where all rows state the same α, so that there is no variance to share.
      balanced: Whether every combination of levels has as many rows. If not, main effects overlap
        and the shares say nothing of a rest.
    """

    shares: dict[str, float]
    balanced: bool


def variance_shares(
    logit: Float[np.ndarray, " n"], factors: Mapping[str, Sequence[Hashable]]
) -> VarianceShares:
    """Sums of squares of main effects over the total, Σ_l n_l(ȳ_l − ȳ)²/Σ(y − ȳ)²."""
    total = float(((logit - logit.mean()) ** 2).sum())
    varies = float(np.ptp(logit)) > _EQUAL
    shares = {}
    for factor, labels in factors.items():
        if not varies:
            break
        block = _indicators(labels, list(dict.fromkeys(labels)))
        means = (block.T @ logit) / block.sum(axis=0)
        shares[factor] = float((block.sum(axis=0) * (means - logit.mean()) ** 2).sum()) / total
    cells = list(zip(*factors.values()))
    sizes = {cell: cells.count(cell) for cell in cells}
    full = int(np.prod([len(set(labels)) for labels in factors.values()]))
    balanced = len(sizes) == full and len(set(sizes.values())) == 1
    if balanced and varies:
        shares["rest"] = 1 - sum(shares.values())
    return VarianceShares(shares, balanced)


class HeldOutLevels(NamedTuple):
    """Predictions of rows by fits that did not see their group.

    Attributes:
      prediction: Of every row.
      plain: logit α by a fit without the factor's levels: what one says who ignores it.
    """

    prediction: LevelPrediction
    plain: Float[np.ndarray, " n"]


def held_out_levels(
    table: LevelTable, groups: Sequence[Hashable], plain_without: str = "domain"
) -> HeldOutLevels:
    """Predicts every row from a fit to the rows of all other groups.

    Where every row is a group of its own, the spreads are those of the whole table: one row in many
    hardly moves them.

    Args:
      table: The rows.
      groups: Group of each row, left out whole.
      plain_without: Factor that the comparison ignores.
    """
    of_group = np.asarray([str(g) for g in groups])
    names = np.unique(of_group)
    whole = fit_levels(table) if len(names) == len(of_group) else None
    others = {f: v for f, v in table.factors.items() if f != plain_without}
    bare = table._replace(factors=others)
    bare_whole = fit_levels(bare) if whole is not None else None
    n = len(of_group)
    logit, error, degrees, plain = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    for name in names:
        out = of_group == name
        for target, of in ((table, whole), (bare, bare_whole)):
            fitted = fit_levels(target, ~out, of)
            chosen = {
                f: [v for v, o in zip(values, out) if o] for f, values in target.factors.items()
            }
            found = predict_levels(fitted, table.fixed[out], chosen)
            if target is bare:
                plain[out] = found.logit
            else:
                logit[out], error[out], degrees[out] = found
    return HeldOutLevels(LevelPrediction(logit, error, degrees), plain)
