"""Signs that a table does not mean what the fit takes it for: a sentence each, with the number behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from sdsl_jax.counts import SMALLEST, short_count
from sdsl_jax.csv_table import listed_lines
from sdsl_jax.fitting.acceptance import PairTable
from sdsl_jax.fitting.loss import LossTable
from sdsl_jax.theory import BESIROGLU

# ln of a vocabulary of 160,000: the loss of a uniform guess.
_LARGEST_LOSS = 12.0
# The loss of a model that only knows token frequencies: 7 to 8 nats with the usual vocabularies.
_UNTRAINED_LOSS = 7.5
# Times the loss that a published law gives; other texts and vocabularies move it by less.
_HIGH_LOSS = 1.6
# Tokens per parameter beyond those of any published model (15,000 for the longest trained).
_LARGEST_RATIO = 1e5
# Sizes that differ by less are one size, counted in two ways.
_SAME_SIZE = 1e-3
# Slopes of ln L over ln N and ln D that rise by so many standard errors are no accident: one table
# in 1,000.
_RISES = 3.3
# Typical residuals of clean ladders are below 0.01 in ln L, and below 0.02 in α.
_LARGE_RESIDUAL = {"log of the loss": 0.04, "acceptance probability": 0.05}
# A row is far off beyond so many typical residuals, if it is also off by so much.
_FAR, _OFF = 6.0, {"log of the loss": 0.03, "acceptance probability": 0.05}
# With fewer rows beyond the coefficients, the typical residual is unknown.
_SPARE_ROWS = 4


def loss_table_warnings(table: LossTable, lines: np.ndarray, runs_are_sizes: bool) -> list[str]:
    """Warnings about a table of losses, before a fit.

    Args:
      table: Trained models.
      lines: Line of the file of each row.
      runs_are_sizes: Whether rows of one size count as one training run.
    """
    points = zip(table.params.tolist(), table.tokens.tolist(), table.rungs.tolist())
    warnings = [
        *(
            _of_the_unit(table.loss, "losses")
            or _of_the_level(table.params, table.tokens, table.loss, "losses")
        ),
        *_of_the_sizes(table),
        *_of_repeated_rows(points, table.loss, lines, "parameters and tokens", "loss"),
        *_of_the_slopes(table),
    ]
    if runs_are_sizes:
        warnings += _of_near_sizes(table.params)
    return warnings


def pair_table_warnings(table: PairTable, lines: np.ndarray) -> list[str]:
    """Warnings about a table of pairs, before a fit.

    Args:
      table: Measured pairs.
      lines: Line of the file of each row.
    """
    draft, target = table.draft, table.target
    warnings = []
    for role, point in (("draft", draft), ("target", target)):
        params, loss, tokens = (np.asarray(column) for column in point)
        name = f"losses of the {role}s"
        warnings += _of_the_unit(loss, name) or _of_the_level(params, tokens, loss, name)
        warnings += _of_small_sizes(params, f"{role} size")
    larger = np.asarray(draft.params) > np.asarray(target.params)
    if larger.mean() > 0.5:
        warnings.append(
            f"drafts are larger than their targets in {larger.sum()} of {len(larger)} rows: are the columns swapped?"
        )
    better = np.asarray(draft.loss) < np.asarray(target.loss)
    if better.mean() > 0.5:
        warnings.append(
            f"drafts have a lower loss than their targets in {better.sum()} of {len(better)} rows: are the columns swapped?"
        )
    if not warnings and np.isfinite(draft.tokens).all():
        warnings += _of_the_ratios(np.asarray(draft.tokens) / np.asarray(draft.params))
    warnings += _of_the_gaps(table)
    keys = zip(
        *(np.nan_to_num(np.asarray(x)).tolist() for x in (*draft, *target[:2])),
        table.draft_model.tolist(),
    )
    return warnings + _of_repeated_rows(keys, table.alpha, lines, "both models", "α")


def residual_warnings(
    residuals: Float[np.ndarray, " n"], coefficients: int, unit: str, lines: np.ndarray
) -> list[str]:
    """Warnings about rows that the robust loss all but ignores, and about a large typical residual.

    The typical residual is 1.48 times the median of all but the smallest `coefficients`, which a
    robust fit may pass through exactly.

    Args:
      residuals: Predicted − measured.
      coefficients: Number of coefficients of the law.
      unit: Unit of the residuals, as `LawRecord.residual_unit`.
      lines: Line of the file of each row.
    """
    sizes = np.abs(residuals)
    if len(sizes) < coefficients + _SPARE_ROWS:
        return []
    typical = 1.4826 * float(np.median(np.sort(sizes)[coefficients:]))
    of_loss = unit == "log of the loss"
    warnings = []
    # Few rows know their typical residual badly (Rousseeuw and Leroy's factor).
    far = sizes > max(_FAR * typical * (1 + 5 / (len(sizes) - coefficients)), _OFF[unit])
    if far.any():
        worst = float(sizes[far].max())
        off = f"{np.expm1(worst):.0%}" if of_loss else f"{worst:.2f}"
        lie, them = ("lies", "it") if far.sum() == 1 else ("lie", "them")
        warnings.append(
            f"{far.sum()} of {len(far)} rows {lie} far from the law, by up to {off}, and the robust loss all but ignores {them}: "
            f"{listed_lines(lines[far].tolist())}"
        )
    if typical > _LARGE_RESIDUAL[unit]:
        why = (
            "perplexities, points of training curves, several texts or tokenizers, or swapped columns?"
            if of_loss
            else "several texts, temperatures or estimators, or swapped columns?"
        )
        shown = f"{typical:.1%} of the loss" if of_loss else f"{typical:.3f} of α"
        warnings.append(f"the typical residual is large, {shown}: {why}")
    return warnings


def _of_the_unit(losses: np.ndarray, name: str) -> list[str]:
    above = losses > _LARGEST_LOSS
    if above.any():
        return [
            f"{above.sum()} of {len(losses)} {name} exceed {_LARGEST_LOSS:g} nats per token, the logarithm of any vocabulary "
            f"(up to {losses.max():.3g}): perplexities? --loss-unit perplexity reads them"
        ]
    middle = float(np.median(losses))
    if middle > _UNTRAINED_LOSS:
        return [
            f"the {name} have a median of {middle:.3g} nats per token, that of untrained models: perplexities? "
            "--loss-unit perplexity reads them"
        ]
    return []


def _of_the_level(
    params: np.ndarray, tokens: np.ndarray, losses: np.ndarray, name: str
) -> list[str]:
    """Warns of losses far above those of published models of these sizes and tokens (20 per parameter where unknown)."""
    trained = np.where(np.isfinite(tokens), tokens, 20 * params)
    times = float(np.median(losses / np.asarray(BESIROGLU(params, trained))))
    if times < _HIGH_LOSS:
        return []
    return [
        f"the {name} are {times:.2g} times (in the median) what models of these sizes and tokens reach by a published law: "
        "perplexities or bits? --loss-unit reads them"
    ]


def _of_rows(some: int, rows: int) -> str:
    """The start of a sentence about some of the rows: "3 of 20 rows have"."""
    return f"{some} of {rows} rows {'has' if some == 1 else 'have'}"


def _of_small_sizes(sizes: np.ndarray, name: str) -> list[str]:
    small = (sizes < SMALLEST).sum()
    if not small:
        return []
    return [
        f"{_of_rows(small, len(sizes))} a {name} below {SMALLEST:,} parameters (the smallest is {sizes.min():g}): are sizes in "
        "millions or billions?"
    ]


def _of_the_sizes(table: LossTable) -> list[str]:
    small = _of_small_sizes(table.params, "size")
    if small:
        return small
    return _of_the_ratios(table.tokens / table.params)


def _of_the_ratios(ratios: np.ndarray) -> list[str]:
    middle = float(np.median(ratios))
    if middle < 1:
        return [
            f"tokens are fewer than parameters in {(ratios < 1).sum()} of {len(ratios)} rows (tokens per parameter: {middle:.2g} "
            "in the median): are tokens (or FLOPs) in another unit, or the columns swapped?"
        ]
    if middle > _LARGEST_RATIO:
        return [
            f"the median model has {short_count(middle)} tokens per parameter, beyond any published one: are sizes in millions?"
        ]
    return []


def _of_repeated_rows(
    points: Iterable[tuple[Any, ...]], values: np.ndarray, lines: np.ndarray, same: str, value: str
) -> list[str]:
    """Warns of rows that repeat another, and of rows that differ in the value for one model."""
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, point in enumerate(points):
        rows[point].append(i)
    repeated = [group for group in rows.values() if len(group) > 1]
    twice: list[int] = []
    differing: list[int] = []
    spread = 0.0
    for group in repeated:
        of_value: dict[float, list[int]] = defaultdict(list)
        for i in group:
            of_value[float(values[i])].append(i)
        twice += [i for equal in of_value.values() if len(equal) > 1 for i in equal]
        if len(of_value) > 1:
            differing += group
            spread = max(spread, float(np.ptp(values[group])))
    warnings = []
    if twice:
        warnings.append(
            f"{len(twice)} of {len(values)} rows are equal to another in {same} and {value}, and each counts: "
            f"{listed_lines(lines[twice].tolist())}"
        )
    if differing:
        warnings.append(
            f"{len(differing)} of {len(values)} rows are equal to another in {same} and differ in {value}, by up to {spread:.2g} "
            f"(several seeds, texts or steps?): {listed_lines(lines[differing].tolist())}"
        )
    return warnings


def _of_near_sizes(params: np.ndarray) -> list[str]:
    sizes = np.unique(params)
    near = np.flatnonzero(np.diff(np.log(sizes)) < _SAME_SIZE)
    if not len(near):
        return []
    first, second = (f"{sizes[near[0] + i]:,.10g}" for i in (0, 1))
    return [
        f"{len(near)} sizes differ by less than {_SAME_SIZE:.1%} from another and count as training runs of their own, as "
        f"{first} and {second}: name the runs by --rung-column"
    ]


def _of_the_gaps(table: PairTable) -> list[str]:
    """Warns if α rises with the loss gap, by least squares on the means of each draft."""
    draft_loss = np.asarray(table.draft.loss)
    points = np.stack([np.asarray(table.draft.params), draft_loss], 1)
    drafts = np.unique(points, axis=0, return_inverse=True)[1].ravel()
    counts = np.bincount(drafts)
    gap = draft_loss - np.asarray(table.target.loss)
    x, y = (np.bincount(drafts, values) / counts for values in (gap, table.alpha))
    spare, x, y = len(x) - 2, x - x.mean(), y - y.mean()
    if spare < _SPARE_ROWS or not x @ x > 1e-12:
        return []
    slope = x @ y / (x @ x)
    error = np.sqrt(np.square(y - slope * x).sum() / spare / (x @ x))
    if slope <= _RISES * error:
        return []
    return [
        "α is larger for drafts that are worse than their targets by more: does it count rejected drafts?"
    ]


def _of_the_slopes(table: LossTable) -> list[str]:
    """Warns if the loss rises with size or tokens, the other fixed, by least squares on logarithms."""
    x, y, z = (np.log(values) for values in (table.params, table.tokens, table.loss))
    design = np.stack([np.ones_like(x), x - x.mean(), y - y.mean()], 1)
    spare, lengths = len(z) - 3, np.linalg.norm(design, axis=0)
    if spare < _SPARE_ROWS or not lengths.min() > 1e-9 or np.linalg.cond(design / lengths) > 30:
        return []
    slopes, *_ = np.linalg.lstsq(design, z, rcond=None)
    noise = np.square(z - design @ slopes).sum() / spare
    errors = np.sqrt(noise * np.diag(np.linalg.inv(design.T @ design)))
    return [
        f"the loss rises with {name} (as their power {slope:.2g} ± {error:.1g}): are columns swapped?"
        for name, slope, error in zip(("parameters", "tokens"), slopes[1:], errors[1:])
        if slope > _RISES * error and slope > 0.005
    ]
