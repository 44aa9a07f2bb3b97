"""Acceptance by position, fitted to tokens per round at several lookaheads, or to survival.

The law is `theory.PositionAcceptance` (first, decay, floor). Tokens per round at two lookaheads
identify two numbers of a series (one drafter on one domain), not three. So the decay is common to
all series of one kind of drafter, and the drop from first to floor is partially pooled:

    ln τ_i(γ) = ln τ(γ; first_i, decay, floor_i) + e,       e ~ N(0, noise²/weight),
    logit floor_i = logit first_i − drop_i,                 drop_i ~ N(drop, spread²),  first_i free.

The drop is taken in logits, since series of high and of low acceptance then differ least in it. A
negative drop is a rise. `noise` holds errors of measurement and of the law. Both variances are
estimated (EM, each series by Laplace's approximation). A new series needs two lookaheads; one
gives a rough answer, with the pooled drop.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.errors import require
from sdsl_jax.fitting.solver import minimise
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.theory import PositionAcceptance

_SQUARE = 1e9  # least squares: no residual is an outlier
# Weak priors, worth so many series or rows. They decide only where there are hardly any: from one
# series nobody can tell how much drops differ.
_PRIOR_WORTH = 1.0
_PRIOR_SPREAD, _PRIOR_NOISE = 0.3, 0.005
_NO_SPREAD = 1e-3
# Where series do not show them, decay and drop stay within what published heads have: logit decay
# ~ N(−1, 1.5²), 0.03 to 0.8, and drop ~ N(0, 1.5²).
_PRIOR_MIDDLE, _PRIOR_REACH = (-1.0, 0.0), 1.5
_EM_STEPS, _EM_TOLERANCE = 90, 1e-3
# How many steps of EM one leap may stand for.
_LONGEST_LEAP = 12.0
# Tables are filled up to multiples of so many series and slots.
_SERIES, _SLOTS = 8, 4
# Tokens per round this near 1 or γ + 1 have no logit.
_EDGE = 1e-4


class LengthTable(NamedTuple):
    """What was measured of each series, in slots; a slot without a measurement has weight 0.

    Attributes:
      labels: Name of each series.
      lookahead: γ of a τ, or k of an S_k.
      value: τ(γ), or S_k.
      survival: Whether the value is an S_k.
      weight: 1 for a value good to about 0.5%; less for a worse one; 0 for none.
    """

    labels: tuple[Hashable, ...]
    lookahead: Int[np.ndarray, "series slots"]
    value: Float[np.ndarray, "series slots"]
    survival: Bool[np.ndarray, "series slots"]
    weight: Float[np.ndarray, "series slots"]

    def smallest(self, count: int) -> LengthTable:
        """Only the so many smallest lookaheads of each series."""
        order = np.argsort(np.where(self.weight > 0, self.lookahead, np.inf), axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        return self._replace(weight=np.where(rank < count, self.weight, 0.0))

    def of_series(self, chosen: Bool[np.ndarray, " series"]) -> LengthTable:
        """The same table with the measurements of the chosen series alone."""
        return self._replace(weight=np.where(chosen[:, None], self.weight, 0.0))


def length_table(
    labels: Sequence[Hashable],
    lookahead: Sequence[int],
    tokens_per_round: Sequence[float],
    weight: Sequence[float] | None = None,
) -> LengthTable:
    """A table of tokens per round, from rows; rows of one series and lookahead are averaged.

    Args:
      labels: Series of each row, such as (draft, domain).
      lookahead: γ ≥ 1.
      tokens_per_round: τ, the bonus token included: between 1 and γ + 1.
      weight: Weight of each row; 1 if left out.

    Raises:
      SdslError: A lookahead is no whole number of at least 1, or a τ is outside its range.
    """
    gamma, tau = np.asarray(lookahead, float), np.asarray(tokens_per_round, float)
    require(
        bool(np.all((gamma >= 1) & (gamma == np.floor(gamma)))),
        f"lookaheads run from {gamma.min(initial=np.inf):g} to {gamma.max(initial=0):g}; "
        "they must be whole numbers of at least 1.",
    )
    wrong = ~((tau >= 1) & (tau <= gamma + 1))
    if wrong.any():
        k = int(np.argmax(wrong))
        require(
            False,
            f"tokens per round of {tau[k]:g} at a lookahead of {gamma[k]:g} are impossible; "
            "with the bonus token they are 1 to γ + 1.",
        )
    weights = np.ones(len(tau)) if weight is None else np.asarray(weight, float)
    return _in_slots(labels, gamma.astype(int), tau, np.zeros(len(tau), bool), weights)


def survival_table(
    labels: Sequence[Hashable],
    survival: Sequence[Sequence[float]],
    rounds: Sequence[float] | None = None,
) -> LengthTable:
    """A table of survival: S_1, S_2, … of each series, as many as were measured.

    Args:
      labels: Name of each series.
      survival: S_k of each series, unconditional: the share of rounds whose first k drafts were
        accepted. Series may have different lengths.
      rounds: Rounds that each series was counted over. S_k then weighs 1/(1 + v/(0.5%)²), where
        v = (1 − S_k)/(rounds·S_k) is the variance of its logarithm. Without it all weigh 1.

    Raises:
      SdslError: An S_k is outside [0, 1], or rises with k.
    """
    rows: list[tuple[Hashable, int, float, float]] = []
    for i, (label, each) in enumerate(zip(labels, survival, strict=True)):
        values = np.asarray(each, float)
        require(
            bool(np.all((values >= 0) & (values <= 1)) and np.all(np.diff(values) <= 1e-9)),
            f"the survival of {label} is {values.tolist()}; it must lie in [0, 1] and not rise with k: "
            "it is the share of rounds whose first k drafts were all accepted.",
        )
        for k, s in enumerate(values, start=1):
            variance = 0.0 if rounds is None else (1 - s) / max(rounds[i] * s, 1e-12)
            if s > 0:
                rows.append((label, k, s, 1 / (1 + variance / _PRIOR_NOISE**2)))
    require(rows != [], "the table holds no survival above 0.")
    names, positions, measured, weights = (list(column) for column in zip(*rows))
    return _in_slots(
        names,
        np.asarray(positions),
        np.asarray(measured),
        np.ones(len(positions), bool),
        np.asarray(weights),
    )


def _in_slots(
    labels: Sequence[Hashable],
    lookahead: np.ndarray,
    value: np.ndarray,
    survival: np.ndarray,
    weight: np.ndarray,
) -> LengthTable:
    names = tuple(dict.fromkeys(labels))
    cells: list[dict[int, list[int]]] = [{} for _ in names]
    index = {name: i for i, name in enumerate(names)}
    for row, (label, gamma) in enumerate(zip(labels, lookahead)):
        cells[index[label]].setdefault(int(gamma), []).append(row)
    slots = max(map(len, cells), default=0)
    require(slots > 0, "the table holds no acceptance lengths.")
    shape = len(names), slots
    table = LengthTable(
        names, np.ones(shape, int), np.ones(shape), np.zeros(shape, bool), np.zeros(shape)
    )
    for i, cell in enumerate(cells):
        for j, k in enumerate(sorted(cell)):
            rows = cell[k]
            table.lookahead[i, j], table.survival[i, j] = k, survival[rows[0]]
            # One number repeated, as a table does for every load, is one measurement.
            table.weight[i, j] = weight[rows].mean()
            table.value[i, j] = value[rows[0]] + np.average(
                value[rows] - value[rows[0]], weights=np.maximum(weight[rows], 1e-300)
            )
    return table


class PositionPool(NamedTuple):
    """What the series of one kind of drafter have in common.

    Attributes:
      decay: Common decay from draft to draft.
      drop: logit first − logit floor in the middle of the series; negative where acceptance rises.
      spread: Standard deviation of the drop between series.
      noise: Standard deviation of ln τ about the law, for a weight of 1.
      series: Number of series that it was fitted to.
      status: How the last descent ended, a `SolverStatus`.
    """

    decay: float
    drop: float
    spread: float
    noise: float
    series: int
    status: int


class SeriesLaws(NamedTuple):
    """The law of each series.

    Attributes:
      law: First, decay and floor, arrays [series].
      drop: logit first − logit floor of each.
      covariance: Of (logit first, drop) given the pool.
    """

    law: PositionAcceptance
    drop: Float[np.ndarray, " series"]
    covariance: Float[np.ndarray, "series 2 2"]


class _Data(NamedTuple):
    """Measurements on JAX: logarithms, and what the variances are."""

    lookahead: Array
    log_value: Array
    survival: Array
    weight: Array
    noise: Array
    spread: Array


def _law(own: Array, decay: Array) -> PositionAcceptance:
    """The law of one series from its logit of the first acceptance and its drop."""
    return PositionAcceptance(jax.nn.sigmoid(own[0]), decay, jax.nn.sigmoid(own[0] - own[1]))


def _log_values(own: Array, decay: Array, data: _Data, largest: int) -> Array:
    """ln of what the law of one series says of its measurements."""
    s = _law(own, decay).survival(largest)
    values = jnp.where(data.survival, s[data.lookahead - 1], 1 + jnp.cumsum(s)[data.lookahead - 1])
    return jnp.log(values)


def _errors(own: Array, decay: Array, data: _Data, largest: int) -> Array:
    """Weighted errors of one series in units of the noise."""
    error = _log_values(own, decay, data, largest) - data.log_value
    return error * jnp.sqrt(data.weight) / data.noise


_PER_SERIES = _Data(0, 0, 0, 0, None, None)  # type: ignore[arg-type]


def _covariances(own: Array, decay: Array, data: _Data, largest: int) -> tuple[Array, Array]:
    """Laplace's covariance of each series' two numbers, and Σ of the variances that it gives its errors."""

    def one(own: Array, data: _Data) -> tuple[Array, Array]:
        jacobian = jax.jacfwd(_errors)(own, decay, data, largest)
        prior = jnp.diag(jnp.stack([jnp.asarray(1e-9, own.dtype), data.spread**-2]))
        covariance = jnp.linalg.inv(jacobian.T @ jacobian + prior)
        return covariance, jnp.trace(jacobian @ covariance @ jacobian.T)

    return jax.vmap(one, in_axes=(0, _PER_SERIES))(own, data)


@functools.partial(quick_jit, static_argnames="largest")
def _em_step(x: Array, data: _Data, largest: int) -> tuple[Array, Array, Array, Array]:
    """One descent of all numbers at once, and the variances that follow from it.

    x holds logit decay, the middle drop, and of each series logit first and the distance of its
    drop from the middle, in spreads.

    The expected square of an error is that at the mode and the variance J·C·Jᵀ that the uncertain
    numbers of the series give it. J depends on the decay, so that without the second part the
    decay would be biased (to 0.51 where it is 0.40, with errors of 0.4%, whatever the number of
    series). Its rows J·√C stand in the descent beside the errors.
    """
    count = data.weight.shape[0]
    there = (data.weight.sum(axis=1) > 0).astype(x.dtype)

    def numbers(x: Array) -> tuple[Array, Array]:
        drops = x[1] + data.spread * x[3::2]
        return jnp.stack([x[2::2], drops], axis=1), jax.nn.sigmoid(x[0])

    def residuals(x: Array, data: _Data) -> Array:
        own, decay = numbers(x)
        errors = jax.vmap(lambda o, d: _errors(o, decay, d, largest), in_axes=(0, _PER_SERIES))(
            own, data
        )
        rows = jax.vmap(
            lambda o, root, d: jax.jacfwd(_errors)(o, decay, d, largest) @ root,
            in_axes=(0, 0, _PER_SERIES),
        )(before, root, data)
        drops = there * x[3::2]
        pull = (x[:2] - jnp.asarray(_PRIOR_MIDDLE, x.dtype)) / _PRIOR_REACH
        return jnp.concatenate([errors.ravel(), rows.ravel(), drops, pull])

    before, decay = numbers(x)
    covariances, _ = _covariances(before, decay, data, largest)
    root = jnp.where(there[:, None, None] > 0, jnp.linalg.cholesky(covariances), 0.0)
    rows = 3 * data.weight.size + count + 2
    end = minimise(residuals, x, data, jnp.ones(rows, x.dtype), _SQUARE)
    x = end.parameters
    own, decay = numbers(x)
    covariances, variances = _covariances(own, decay, data, largest)
    errors = residuals(x, data)[: data.weight.size]
    measured, series = (data.weight > 0).sum(), there.sum()
    noise = data.noise**2 * ((errors**2).sum() + (there * variances).sum())
    noise = (noise + _PRIOR_WORTH * _PRIOR_NOISE**2) / (measured + _PRIOR_WORTH)
    drops = (there * ((own[:, 1] - x[1]) ** 2 + covariances[:, 1, 1])).sum()
    spread = (drops + _PRIOR_WORTH * _PRIOR_SPREAD**2) / (series + _PRIOR_WORTH)
    return x, jnp.sqrt(noise), jnp.sqrt(spread), end.status


@functools.partial(quick_jit, static_argnames="largest")
def _fit_series(
    starts: Array, drop: Array, decay: Array, data: _Data, largest: int
) -> tuple[Array, ...]:
    """Each series by itself, the pool held; the better of starts with the pooled drop and with none."""

    def one(start: Array, data: _Data) -> Array:
        def residuals(own: Array, data: _Data) -> Array:
            pull = (own[1:] - drop) / data.spread
            return jnp.concatenate([_errors(own, decay, data, largest), pull])

        weights = jnp.ones(data.weight.shape[0] + 1, start.dtype)
        begins = jnp.stack([jnp.stack([start, drop]), jnp.stack([start, jnp.zeros_like(drop)])])
        ends = jax.vmap(lambda begin: minimise(residuals, begin, data, weights, _SQUARE))(begins)
        return ends.parameters[jnp.argmin(ends.objective)]

    own = jax.vmap(one, in_axes=(0, _PER_SERIES))(starts, data)
    return own, _covariances(own, decay, data, largest)[0]


def _padded(values: np.ndarray) -> np.ndarray:
    """Zeros added to whole numbers of series and slots, so that one compilation serves many tables."""
    ends = [(0, -size % of) for size, of in zip(values.shape, (_SERIES, _SLOTS))]
    return np.pad(values, ends)


def _largest(lookahead: int) -> int:
    return lookahead + -lookahead % _SLOTS


def _data(table: LengthTable, noise: float, spread: float) -> _Data:
    largest = np.where(table.survival, 1 - _EDGE, table.lookahead + 1 - _EDGE)
    value = np.clip(table.value, np.where(table.survival, 0.0, 1.0) + _EDGE, largest)
    return _Data(
        jnp.asarray(np.maximum(_padded(table.lookahead), 1)),
        jnp.asarray(_padded(np.log(value))),
        jnp.asarray(_padded(table.survival)),
        jnp.asarray(_padded(table.weight)),
        jnp.asarray(noise),
        jnp.asarray(spread),
    )


def _first(table: LengthTable) -> Float[np.ndarray, " series"]:
    """A rough logit of the acceptance of the first drafts: of (τ − 1)/τ, or S_k^(1/k), at the smallest γ measured."""
    rows = np.arange(len(table.labels))
    at = np.where(table.weight > 0, table.lookahead, 10**6).argmin(axis=1)
    value, k = table.value[rows, at], table.lookahead[rows, at]
    alpha = np.where(table.survival[rows, at], value ** (1 / k), (value - 1) / value)
    alpha = np.clip(alpha, 0.02, 0.98)
    return np.log(alpha / (1 - alpha))


def _outer(x: Array, noise: float, spread: float) -> np.ndarray:
    """What EM moves: logit decay, the middle drop, ln noise and ln spread."""
    return np.asarray([float(x[0]), float(x[1]), np.log(noise), np.log(spread)])


def _extrapolated(path: list[np.ndarray]) -> np.ndarray:
    """Where three steps of EM lead, since it converges linearly and slowly (SQUAREM; Varadhan & Roland, 2008)."""
    first, second = path[1] - path[0], path[2] - path[1]
    bend = second - first
    length = np.linalg.norm(first) / max(float(np.linalg.norm(bend)), 1e-12)
    length = float(np.clip(length, 1.0, _LONGEST_LEAP))
    leap = 2 * length * first + length**2 * bend
    return path[0] + np.clip(leap, -1.0, 1.0)


def fit_position_pool(table: LengthTable, one_drop: bool = False) -> PositionPool:
    """What the series of one kind of drafter have in common, from those that have measurements.

    Args:
      table: The series; those without a weight do not count.
      one_drop: Give all series one drop, instead of pooling their drops partially.

    Raises:
      SdslError: No series was measured at two lookaheads or more.
    """
    measured = (table.weight > 0).sum(axis=1)
    require(
        bool((measured >= 2).any()),
        "no series was measured at two lookaheads or more, so that none shows how acceptance moves along a round.",
    )
    first = _padded(_first(table))
    with jax.enable_x64(True):
        noise, spread = _PRIOR_NOISE, _NO_SPREAD if one_drop else _PRIOR_SPREAD
        own = np.stack([first, np.zeros(len(first))], axis=1)
        x = jnp.asarray(np.r_[_PRIOR_MIDDLE, own.ravel()])
        spread_of_x = spread
        largest = _largest(int(table.lookahead.max()))
        status = SolverStatus.ITERATION_CAP
        path: list[np.ndarray] = []
        for _ in range(_EM_STEPS):
            # The descent starts at the drops where the last one ended, whatever the spread is now.
            x = x.at[3::2].multiply(spread_of_x / spread)
            data = _data(table, noise, spread)
            path = path or [_outer(x, noise, spread)]
            x, found_noise, found_spread, ended = _em_step(x, data, largest)
            spread_of_x, noise = spread, float(found_noise)
            spread = spread if one_drop else float(found_spread)
            path.append(_outer(x, noise, spread))
            if np.abs(path[-1] - path[-2]).max() < _EM_TOLERANCE:
                status = SolverStatus(int(ended))
                break
            if len(path) == 3:
                leap = _extrapolated(path)
                x = x.at[:2].set(leap[:2])
                noise, spread = float(np.exp(leap[2])), float(np.exp(leap[3]))
                path = []
    decay = float(1 / (1 + np.exp(-float(x[0]))))
    return PositionPool(decay, float(x[1]), spread, noise, int((measured > 0).sum()), int(status))


def fit_series(table: LengthTable, pool: PositionPool) -> SeriesLaws:
    """The law of each series, given what its kind has in common.

    Args:
      table: The series; a series without a measurement gets the pooled drop, and means nothing.
      pool: Of the same kind of drafter.
    """
    with jax.enable_x64(True):
        data = _data(table, pool.noise, pool.spread)
        solved = _fit_series(
            jnp.asarray(_padded(_first(table))),
            jnp.asarray(pool.drop),
            jnp.asarray(pool.decay),
            data,
            _largest(int(table.lookahead.max())),
        )
    count = len(table.labels)
    own, covariance = (np.asarray(x)[:count] for x in solved)
    logit, drop = own.T
    first, floor = (1 / (1 + np.exp(-value)) for value in (logit, logit - drop))
    law = PositionAcceptance(first, np.full(len(first), pool.decay), floor)
    return SeriesLaws(law, drop, covariance)


class LengthPrediction(NamedTuple):
    """τ at one lookahead of each series.

    Attributes:
      tokens_per_round: τ.
      log_error: Standard error of ln τ for a new measurement of weight 1, given the pool: of the
        two numbers of the series and of the noise.
    """

    tokens_per_round: Float[np.ndarray, " series"]
    log_error: Float[np.ndarray, " series"]


@functools.partial(quick_jit, static_argnames="largest")
def _predict(
    own: Array, decay: Array, covariance: Array, lookahead: Array, largest: int
) -> tuple[Array, Array]:
    def one(own: Array, covariance: Array) -> tuple[Array, Array]:
        def log_tau(own: Array) -> Array:
            survival = _law(own, decay).survival(largest)
            return jnp.log(1 + jnp.where(jnp.arange(largest) < lookahead, survival, 0.0).sum())

        slope = jax.jacfwd(log_tau)(own)
        return log_tau(own), slope @ covariance @ slope

    return jax.vmap(one)(own, covariance)


def predict_lengths(laws: SeriesLaws, pool: PositionPool, lookahead: int) -> LengthPrediction:
    """τ of each series at a lookahead, and how sure it is.

    Args:
      laws: Of the series.
      pool: That they were fitted with.
      lookahead: γ ≥ 1.
    """
    with jax.enable_x64(True):
        first = np.asarray(laws.law.first)
        own = _padded(np.stack([np.log(first / (1 - first)), laws.drop], axis=1))[:, :2]
        covariance = _padded(laws.covariance.reshape(-1, 4)).reshape(-1, 2, 2)
        predicted = _predict(
            jnp.asarray(own),
            jnp.asarray(pool.decay),
            jnp.asarray(covariance),
            jnp.asarray(lookahead),
            _largest(lookahead),
        )
    log_tau, variance = (np.asarray(x)[: len(first)] for x in predicted)
    return LengthPrediction(np.exp(log_tau), np.sqrt(variance + pool.noise**2))
