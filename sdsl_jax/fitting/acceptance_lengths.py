"""Acceptance by position, fitted to tokens per round at several lookaheads, or to survival.

The law is `theory.PositionAcceptance` (first, decay, floor). Tokens per round at two lookaheads
identify two numbers of a series (one drafter on one domain), not three. So the decay is common to
all series of one kind of drafter, and the drop from first to floor is partially pooled:

    ln τ_i(γ) = ln τ(γ; first_i, decay, floor_i) + e,       e ~ N(0, noise²/weight),
    logit floor_i = logit first_i − drop_i,                 drop_i ~ N(drop, spread²),  first_i free.

The drop is taken in logits, since series of high and of low acceptance then differ least in it. A
negative drop is a rise. `noise` holds errors of measurement and of the law. Decay, drop and both
variances maximise the likelihood, with the two numbers of each series integrated out (Laplace). A
new series needs two lookaheads; one gives a rough answer, with the pooled drop.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from statistics import NormalDist
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
_NEWTON_STEPS, _TOLERANCE = 40, 3e-3
# Tables are filled up to multiples of so many series and slots, and laws to so many drafts.
_SERIES, _SLOTS, _DRAFTS = 8, 4, 8
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

    def only(self, chosen: Bool[np.ndarray, " series"]) -> LengthTable:
        """A table of the chosen series."""
        labels = tuple(label for label, keep in zip(self.labels, chosen) if keep)
        return LengthTable(labels, *(np.asarray(column)[chosen] for column in self[1:]))

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
      status: How the fit ended, a `SolverStatus`.
      covariance: Of (logit decay, drop), from the curvature of the likelihood.
    """

    decay: float
    drop: float
    spread: float
    noise: float
    series: int
    status: int
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))

    def decay_interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Ends of the interval of the decay, normal in its logit.

        Series that say nothing of the decay leave it its prior's interval, 0.03 to 0.81 at 90%.
        """
        reach = NormalDist().inv_cdf(0.5 + confidence / 2) * np.sqrt(self.covariance[0][0])
        logit = np.log(self.decay / (1 - self.decay))
        low, high = (1 / (1 + np.exp(-(logit + sign * reach))) for sign in (-1, 1))
        return float(low), float(high)

    def drop_interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Ends of the interval of the common drop; drops of single series vary by `spread` beside it."""
        reach = NormalDist().inv_cdf(0.5 + confidence / 2) * np.sqrt(self.covariance[1][1])
        return float(self.drop - reach), float(self.drop + reach)

    def shifted(self) -> list[PositionPool]:
        """Pools one standard error away along both axes of what is uncertain of decay and drop."""
        sizes, axes = np.linalg.eigh(np.asarray(self.covariance))
        moves = (np.sqrt(np.maximum(sizes, 0)) * axes).T
        logit = np.log(self.decay / (1 - self.decay))
        return [
            self._replace(
                decay=float(1 / (1 + np.exp(-(logit + move[0])))), drop=self.drop + float(move[1])
            )
            for move in moves
        ]


class SeriesLaws(NamedTuple):
    """The law of each series.

    Attributes:
      law: First, decay and floor, arrays [series].
      drop: logit first − logit floor of each.
      covariance: Of (logit first, drop) given the pool.
      shifted: The same laws under the pools of `PositionPool.shifted`.
    """

    law: PositionAcceptance
    drop: Float[np.ndarray, " series"]
    covariance: Float[np.ndarray, "series 2 2"]
    shifted: tuple[SeriesLaws, ...] = ()


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
def _minus_log_likelihood(
    pools: Array, starts: Array, data: _Data, largest: int
) -> tuple[Array, Array]:
    """−ln likelihood of many pools, and the two numbers of each series at its mode under each.

    The two numbers of a series are integrated out by Laplace's approximation, with the variances:
    Σ_i [½‖errors‖² + ½(drop_i − drop)²/spread² + ½ ln det H_i] + n·ln noise + m·ln spread. Without
    the determinant, which grows with the decay, noise would bias the decay upwards (to 0.51 where
    it is 0.40, with errors of 0.4%, whatever the number of series).

    Args:
      pools: Logit decay, middle drop, ln noise and ln spread of each pool, [pools, 4].
      starts: Where the descent of each series begins, [series, 2].
      data: Measurements; noise and spread are those of the pools.
      largest: Largest lookahead of any.
    """
    there = (data.weight.sum(axis=1) > 0).astype(starts.dtype)
    measured, series = (data.weight > 0).sum(), there.sum()
    ones = jnp.ones(data.weight.shape[1] + 1, starts.dtype)

    def of_pool(pool: Array) -> tuple[Array, Array]:
        decay, drop, noise, spread = jax.nn.sigmoid(pool[0]), pool[1], *jnp.exp(pool[2:])
        known = data._replace(noise=noise, spread=spread)

        def of_series(start: Array, one: _Data) -> tuple[Array, Array]:
            def residuals(own: Array, one: _Data) -> Array:
                pull = (own[1:] - drop) / spread
                return jnp.concatenate([_errors(own, decay, one, largest), pull])

            own = minimise(residuals, start, one, ones, _SQUARE).parameters
            rest, jacobian = residuals(own, one), jax.jacfwd(residuals)(own, one)
            information = jacobian.T @ jacobian + 1e-9 * jnp.eye(2)
            return 0.5 * (rest @ rest + jnp.linalg.slogdet(information)[1]), own

        values, own = jax.vmap(of_series, in_axes=(0, _PER_SERIES))(starts, known)
        pull = (pool[:2] - jnp.asarray(_PRIOR_MIDDLE, pool.dtype)) / _PRIOR_REACH
        priors = jnp.asarray([_PRIOR_NOISE, _PRIOR_SPREAD], pool.dtype) / jnp.exp(pool[2:])
        counts = jnp.stack([measured, series]) + _PRIOR_WORTH
        total = (there * values).sum() + (counts * pool[2:]).sum()
        return total + 0.5 * ((pull**2).sum() + _PRIOR_WORTH * (priors**2).sum()), own

    return jax.vmap(of_pool)(pools)


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
    return lookahead + -lookahead % _DRAFTS


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


# Finite differences of the likelihood: a step along each of its four numbers, and along pairs.
_STEP = 0.03
_CROSSED = [(i, k) for i in range(4) for k in range(i)]
_PAIRS = [np.eye(4)[[i]] + np.eye(4)[[k]] for i, k in _CROSSED]


def _inverse_curvature(values: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Inverse of the second derivatives of the likelihood, from its values about a pool.

    Directions of negative curvature count as positive; numbers that are held have zeros.
    """
    here, up, down, pairs = values[0], values[1:5], values[5:9], values[9:]
    curvature = np.diag((up + down - 2 * here) / _STEP**2)
    for (i, k), value in zip(_CROSSED, pairs):
        curvature[i, k] = curvature[k, i] = (value - up[i] - up[k] + here) / _STEP**2
    within = np.ix_(free, free)
    bends, axes = np.linalg.eigh(curvature[within])
    bends = np.maximum(np.abs(bends), 1e-3 * np.abs(bends).max() + 1e-12)
    inverse = np.zeros((4, 4))
    inverse[within] = (axes / bends) @ axes.T
    return inverse


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
    free = np.asarray([True, True, True, not one_drop])
    pool = np.r_[_PRIOR_MIDDLE, np.log([_PRIOR_NOISE, _NO_SPREAD if one_drop else _PRIOR_SPREAD])]
    steps = np.concatenate([np.zeros((1, 4)), np.eye(4), -np.eye(4), *_PAIRS]) * _STEP
    status = SolverStatus.ITERATION_CAP
    with jax.enable_x64(True):
        data = _data(table, 1.0, 1.0)
        own = jnp.asarray(np.stack([first, np.zeros(len(first))], axis=1))
        largest = _largest(int(table.lookahead.max()))
        for _ in range(_NEWTON_STEPS):
            values, modes = _minus_log_likelihood(jnp.asarray(pool + steps), own, data, largest)
            own = modes[0]
            around = np.asarray(values)
            inverse = _inverse_curvature(around, free)
            newton = -inverse @ ((around[1:5] - around[5:9]) / (2 * _STEP))
            newton /= max(1.0, np.abs(newton).max())
            # Of shorter and shorter steps the best; the last stands for none.
            shares = np.asarray([1.0, 0.5, 0.2, 0.05, 0.0])
            tried = np.zeros((len(steps), 4))
            tried[: len(shares)] = shares[:, None] * newton
            values, _ = _minus_log_likelihood(jnp.asarray(pool + tried), own, data, largest)
            share = shares[int(np.nanargmin(np.asarray(values)[: len(shares)]))]
            pool = pool + share * newton
            if np.abs(share * newton).max() < _TOLERANCE:
                status = SolverStatus.CONVERGED
                break
    decay, (noise, spread) = 1 / (1 + np.exp(-pool[0])), np.exp(pool[2:])
    return PositionPool(
        float(decay),
        float(pool[1]),
        float(spread),
        float(noise),
        int((measured > 0).sum()),
        int(status),
        (
            (float(inverse[0, 0]), float(inverse[0, 1])),
            (float(inverse[1, 0]), float(inverse[1, 1])),
        ),
    )


def fit_series(table: LengthTable, pool: PositionPool) -> SeriesLaws:
    """The law of each series, given what its kind has in common.

    Args:
      table: The series; a series without a measurement gets the pooled drop, and means nothing.
      pool: Of the same kind of drafter.
    """
    laws = _series_laws(table, pool)
    return laws._replace(shifted=tuple(_series_laws(table, other) for other in pool.shifted()))


def _series_laws(table: LengthTable, pool: PositionPool) -> SeriesLaws:
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
      log_error: Standard error of ln τ for a new measurement of weight 1: of the two numbers of the
        series, of the pooled decay and drop, and of the noise.
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
    log_tau, variance = _log_lengths(laws, lookahead)
    for other in laws.shifted:
        variance = variance + (_log_lengths(other, lookahead)[0] - log_tau) ** 2
    return LengthPrediction(np.exp(log_tau), np.sqrt(variance + pool.noise**2))


def _log_lengths(laws: SeriesLaws, lookahead: int) -> tuple[np.ndarray, np.ndarray]:
    """ln τ of each series, and its variance given the pool."""
    with jax.enable_x64(True):
        first = np.asarray(laws.law.first)
        own = _padded(np.stack([np.log(first / (1 - first)), laws.drop], axis=1))[:, :2]
        covariance = _padded(laws.covariance.reshape(-1, 4)).reshape(-1, 2, 2)
        predicted = _predict(
            jnp.asarray(own),
            jnp.asarray(np.asarray(laws.law.decay)[0]),
            jnp.asarray(covariance),
            jnp.asarray(lookahead),
            _largest(lookahead),
        )
    log_tau, variance = (np.asarray(x)[: len(first)] for x in predicted)
    return log_tau, variance
