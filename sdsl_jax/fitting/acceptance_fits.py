"""Acceptance by position and by domain from a published table in one call: what `sdsl fit lengths` and `sdsl fit domains` do."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.errors import require
from sdsl_jax.fitting.acceptance_lengths import (
    PositionPool,
    fit_position_pool,
    fit_series,
)
from sdsl_jax.fitting.acceptance_rows import (
    Lengths,
    Levels,
    read_acceptance_rows,
    rows_of_levels,
    series_of_lengths,
)
from sdsl_jax.fitting.domain_levels import (
    LevelFit,
    VarianceShares,
    fit_levels,
    held_out_levels,
    variance_shares,
)
from sdsl_jax.fitting.length_comparison import (
    POOLED_LAWS,
    SINGLE_SERIES_LAWS,
    ErrorSummary,
    LengthErrors,
    held_out_lengths,
    summarise,
)
from sdsl_jax.fitting.tables import TableSource
from sdsl_jax.theory import PositionAcceptance, tokens_per_round

_CONFIDENCE = 0.9
# Widths of 90% intervals beyond which series do not tell decay and drop. Without any series, their
# priors leave the decay 0.03 to 0.81 and the drop −2.5 to 2.5.
_WIDE_DECAY, _WIDE_DROP = 0.5, 3.5
_FEW_SERIES = 4


def _stated(row: NamedTuple) -> dict[str, Any]:
    """A row of a table for JSON, which has no NaN: what is not known is null."""
    return {name: None if value != value else value for name, value in row._asdict().items()}


class SeriesLaw(NamedTuple):
    """The law by position of one series, fitted to all of its lookaheads."""

    series: tuple[str, ...]
    kind: str
    law: PositionAcceptance


@dataclass(frozen=True)
class LengthFits:
    """Laws of acceptance by position.

    Attributes:
      pools: What the series of each kind of drafter have in common.
      laws: Law of each series.
      errors: τ at lookaheads that were not given, of series that the pool did not see.
      left_out: Column whose values are left out whole for these errors; "series" where each series
        is left out by itself.
      notes: What was left out in reading the table, and what its series do not tell.
    """

    pools: dict[str, PositionPool]
    laws: tuple[SeriesLaw, ...]
    errors: tuple[LengthErrors, ...]
    left_out: str
    notes: tuple[str, ...]

    @property
    def summary(self) -> list[ErrorSummary]:
        """Errors of each law."""
        return summarise(self.errors)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `sdsl fit lengths --json` prints."""
        return {
            "pools": {
                kind: pool._asdict()
                | {
                    "decay_interval": pool.decay_interval(_CONFIDENCE),
                    "drop_interval": pool.drop_interval(_CONFIDENCE),
                }
                for kind, pool in self.pools.items()
            },
            "series": [
                {"series": [*law.series], "kind": law.kind}
                | {name: float(value) for name, value in law.law._asdict().items()}
                for law in self.laws
            ],
            "left_out": self.left_out,
            "errors": [_stated(summary) for summary in self.summary],
            "notes": [*self.notes],
        }


def fit_lengths(
    table: TableSource,
    *,
    where: str = "",
    leave_out: str | None = None,
    given: int = 2,
    laws: Sequence[str] = (*SINGLE_SERIES_LAWS, *POOLED_LAWS),
) -> LengthFits:
    """Fits acceptance by position to tokens per round at several lookaheads, or to survival.

    Args:
      table: Path to a CSV, a pandas DataFrame, or rows as dictionaries, with gamma and
        acceptance_length (bonus token included) or survival, and method, draft, target, domain
        where it has them.
      where: Rows to read, such as "batch == 1".
      leave_out: Column whose values are left out whole when errors are measured; "series" for each
        series by itself. If left out, draft where the table states several, and series elsewhere.
      given: Smallest lookaheads of a left-out series that a law may see.
      laws: Laws whose errors are measured.

    Raises:
      SdslError: The table cannot be read, no series has two lookaheads, or the column that is to be
        left out does not exist, has one value, or differs between rows of one series.
    """
    require(given >= 1, f"--given is {given}; it must be at least 1.")
    rows = read_acceptance_rows(table, where)
    lengths = series_of_lengths(rows)
    series = lengths.table
    left_out, groups = _left_out(lengths, leave_out)
    notes, kinds = list(lengths.rows.notes), lengths.kinds
    pools, found = {}, list[SeriesLaw]()
    for kind in dict.fromkeys(kinds):
        mine = np.asarray([k == kind for k in kinds])
        own = series.of_series(mine)
        if not ((own.weight > 0).sum(axis=1) >= 2).any():
            notes.append(
                f"no series of {kind or 'the kind without a name'} has two lookaheads, so that it has no law"
            )
            continue
        pool = pools[kind] = fit_position_pool(own)
        fitted = fit_series(own, pool).law
        notes += _doubts(kind, pool)
        found += [
            SeriesLaw(
                tuple(map(str, series.labels[i])),  # type: ignore[call-overload]
                kind,
                PositionAcceptance(*(float(np.asarray(x)[i]) for x in fitted)),
            )
            for i in np.flatnonzero(mine)
        ]
    require(
        bool(pools),
        "no series was measured at two lookaheads or more; a law by position needs them.",
    )
    errors = held_out_lengths(series, kinds, groups, given, laws)
    if not errors:
        notes.append(
            f"no series has a lookahead beyond the {given} smallest, which laws may see, so that no errors are shown"
        )
    return LengthFits(pools, tuple(found), tuple(errors), left_out, tuple(notes))


def _left_out(lengths: Lengths, column: str | None) -> tuple[str, Sequence[Hashable]]:
    """What is left out whole, and its value for each series."""
    each = "series", lengths.table.labels
    if column == "series":
        return each
    if column is None:
        drafts = lengths.part("draft") if "draft" in lengths.rows.columns else []
        return ("draft", drafts) if len(set(drafts)) > 1 else each
    groups = lengths.part(column)
    require(
        len(set(groups)) > 1,
        f"all series have the same {column}, {groups[0]!r}, and leaving it out leaves none; "
        "series leaves out each by itself.",
    )
    return column, groups


def _doubts(kind: str, pool: PositionPool) -> list[str]:
    """What the series of a kind do not tell of what they have in common, a sentence each."""
    who = "series" if kind == "all" else f"series of {kind or 'the kind without a name'}"
    low, high = pool.decay_interval(_CONFIDENCE)
    least, most = pool.drop_interval(_CONFIDENCE)
    notes = []
    if high - low > _WIDE_DECAY or most - least > _WIDE_DROP:
        notes.append(
            f"the {who} do not tell decay and drop apart from the prior: 90% intervals are "
            f"{low:.2f} to {high:.2f} for the decay and {least:+.2f} to {most:+.2f} for the common drop"
        )
    if pool.series < _FEW_SERIES:
        notes.append(
            f"decay and drop come from {pool.series} {who}; with fewer than {_FEW_SERIES} the spread of the drops is a guess, "
            "and intervals may be short"
        )
    return notes


class DomainLevel(NamedTuple):
    """The level of one domain.

    Attributes:
      domain: Name.
      rows: Rows of the table.
      raw: Mean distance of its rows from the fixed part, in logits.
      level: The same, shrunk towards 0.
      acceptance: α of the middle row of the table in this domain.
    """

    domain: str
    rows: int
    raw: float
    level: float
    acceptance: float


class LevelErrors(NamedTuple):
    """Errors on rows whose group the fit did not see.

    Attributes:
      left_out: What was left out whole.
      rows: Number of rows.
      median: Median size of the error of α.
      ninety: 90th percentile of it.
      worst: Largest.
      without: Median error of α of a fit that ignores domains.
      length_median: Median relative error of τ where a lookahead is stated; NaN elsewhere.
      covered: Share of rows inside their 90% interval.
      width: Median width of that interval in α.
    """

    left_out: str
    rows: int
    median: float
    ninety: float
    worst: float
    without: float
    length_median: float
    covered: float
    width: float


@dataclass(frozen=True)
class DomainFits:
    """Levels of acceptance by domain.

    Attributes:
      fit: Fixed coefficients, levels and spreads.
      fixed: Fixed coefficients by name.
      domains: The levels of the domains, the highest first.
      shares: Shares of the variance of logit α.
      errors: Errors on left-out domains, targets and drafts, and on cells: a draft on a domain.
      notes: What was left out in reading the table.
    """

    fit: LevelFit
    fixed: dict[str, float]
    domains: tuple[DomainLevel, ...]
    shares: VarianceShares
    errors: tuple[LevelErrors, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `sdsl fit domains --json` prints."""
        return {
            "fixed": self.fixed,
            "spreads": self.fit.spreads,
            "residual": self.fit.residual,
            "domains": [level._asdict() for level in self.domains],
            "levels": {
                f: {str(k): v for k, v in levels.items()} for f, levels in self.fit.levels.items()
            },
            "variance_shares": self.shares.shares,
            "balanced": self.shares.balanced,
            "errors": [_stated(error) for error in self.errors],
            "notes": [*self.notes],
        }


def fit_domains(table: TableSource, *, where: str = "") -> DomainFits:
    """Fits a partially pooled level of logit α to each domain of a table.

    Args:
      table: Path to a CSV, a pandas DataFrame, or rows as dictionaries, with domain, and alpha or
        acceptance_length and gamma, and method, draft, target where it has them.
      where: Rows to read.

    Raises:
      SdslError: The table cannot be read, has fewer than two domains, or no domain has two rows.
    """
    levels = rows_of_levels(read_acceptance_rows(table, where))
    fit = fit_levels(levels.table)
    kinds = levels.rows.columns.get("method", [])
    factors: dict[str, Sequence[Hashable]] = {"domain": levels.rows.columns["domain"]}
    for name, labels in (("method", kinds), ("target", levels.rows.columns.get("target", []))):
        if len(set(labels)) > 1:
            factors[name] = labels
    groups: dict[str, Sequence[Hashable]] = {
        f"a {name}": labels for name, labels in levels.table.factors.items()
    }
    groups["a cell"] = levels.rows.labels("domain", "method", "target", "draft")
    if len(set(groups["a cell"])) == len(set(levels.table.factors["domain"])):
        del groups["a cell"]
    notes, count = list(levels.rows.notes), len(levels.alpha)
    for name in [*groups]:
        most = max(list(groups[name]).count(label) for label in set(groups[name]))
        if count - most <= levels.table.fixed.shape[1]:
            notes.append(f"too few rows remain without {name} to fit; its errors are not shown")
            del groups[name]
    return DomainFits(
        fit,
        dict(zip(levels.table.fixed_names, fit.fixed.tolist())),
        _domain_levels(levels, fit),
        variance_shares(levels.table.logit, factors),
        tuple(_errors(levels, name, labels) for name, labels in groups.items()),
        tuple(notes),
    )


def _domain_levels(levels: Levels, fit: LevelFit) -> tuple[DomainLevel, ...]:
    base = levels.table.fixed @ fit.fixed
    middle = float(np.median(base))
    labels = np.asarray([str(name) for name in levels.table.factors["domain"]])
    rows = []
    for name, level in fit.levels["domain"].items():
        mine = labels == name
        raw = float((levels.table.logit - base)[mine].mean())
        alpha = float(1 / (1 + np.exp(-(middle + level))))
        rows.append(DomainLevel(str(name), int(mine.sum()), raw, level, alpha))
    return tuple(sorted(rows, key=lambda row: -row.level))


def _errors(levels: Levels, name: str, groups: Sequence[Hashable]) -> LevelErrors:
    held_out = held_out_levels(levels.table, groups)
    share = lambda logit: 1 / (1 + np.exp(-logit))  # noqa: E731
    predicted = share(held_out.prediction.logit)
    size = np.abs(predicted - levels.alpha)
    low, high = held_out.prediction.interval(_CONFIDENCE)
    inside = (low <= levels.table.logit) & (levels.table.logit <= high)
    gamma = levels.rows.lookahead.astype(float)
    stated = gamma > 0
    length = float("nan")
    if stated.any():
        ratio = tokens_per_round(predicted[stated], gamma[stated]) / tokens_per_round(
            levels.alpha[stated], gamma[stated]
        )
        length = float(np.median(np.abs(np.asarray(ratio) - 1)))
    return LevelErrors(
        name,
        len(size),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float(size.max()),
        float(np.median(np.abs(share(held_out.plain) - levels.alpha))),
        length,
        float(inside.mean()),
        float(np.median(share(high) - share(low))),
    )
