"""How the solver sees each law: residuals, bounds, and coordinates in which a fit is well conditioned.

The laws themselves live in `theory`. A form maps a law to the vector x that the solver moves, and
back. Sigmoids and logarithms keep the bounds. Sizes and tokens enter as logarithms centred on the
data: a scale such as A, which is the size term of a model of one parameter, becomes the size term of
a model in the middle of the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.theory import (
    ACCEPTANCE_LAWS,
    ChinchillaLaw,
    KaplanLaw,
    LogitLogGap,
    ModelPoint,
    NestedLaw,
    coefficients,
)


class LossData(NamedTuple):
    """A table of losses, logarithms centred: add `centres` to have them back."""

    log_params: Float[Array, " n"]
    log_tokens: Float[Array, " n"]
    log_loss: Float[Array, " n"]
    centres: Float[Array, " 2"]


class PairData(NamedTuple):
    """A table of pairs: draft and target of each row, α, and the mean logarithms of N, D and M."""

    draft: ModelPoint
    target: ModelPoint
    alpha: Float[Array, " n"]
    centres: Float[Array, " 3"]


class Form(NamedTuple):
    """A law as the solver sees it.

    Attributes:
      name: Name of the law in files.
      law_type: Class of the law in `theory`.
      residuals: (x, data) -> predicted − measured, [n].
      to_law: (x, data) -> the law.
      to_vector: (law, data) -> x, the inverse. Component k of x belongs to coefficient k.
      starts: (data, count, random) -> initial vectors, [count, P].
      positive: Coefficients that the form keeps positive, whose uncertainty is a factor.
      scales: Those of them whose component of x is the logarithm of a term in the middle of the
        table.
      floor: Positive coefficient that may vanish, if there is one: the first.
      exponents: Coefficients that the form keeps within `EXPONENT_BOUNDS`.
    """

    name: str
    law_type: type
    residuals: Callable[[Array, Any], Array]
    to_law: Callable[[Array, Any], Any]
    to_vector: Callable[[Any, Any], Array]
    starts: Callable[[Any, int, np.random.Generator], np.ndarray]
    positive: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    floor: str | None = None
    exponents: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Names of the coefficients, in their order."""
        return [f.name for f in dataclasses.fields(self.law_type) if not f.metadata.get("static")]

    def factors(self) -> tuple[str, ...]:
        """Coefficients that are uncertain by a factor: positive ones that cannot vanish."""
        return tuple(name for name in self.positive if name != self.floor)


# Exponents of published laws lie between 0.05 (Kaplan) and 0.6; wider bounds only keep a fit from
# running off to infinity where the data do not hold it.
EXPONENT_BOUNDS = (0.02, 2.0)
# Smallest E as a share of the smallest loss; an E that ends here is one that the data do not show.
SMALLEST_E = 1e-6


# Offsets of a loss gap, in nats: with a larger one the logarithm of the gap is a line.
OFFSET_BOUNDS = (0.02, 20.0)


def _exponent(x: Array, bounds: tuple[float, float] = EXPONENT_BOUNDS) -> Array:
    low, high = bounds
    return low * (high / low) ** jax.nn.sigmoid(x)


def _from_exponent(exponent: Any, bounds: tuple[float, float] = EXPONENT_BOUNDS) -> Array:
    low, high = bounds
    share = jnp.log(jnp.asarray(exponent) / low) / jnp.log(high / low)
    return jax.scipy.special.logit(jnp.clip(share, 1e-9, 1 - 1e-9))


def _largest_e(data: LossData) -> Array:
    """The largest loss: with E there every prediction is too high, so that this bound never rests
    on a best fit.

    The smallest loss would: where a table comes near its floor, noise takes some losses below E.
    """
    return jnp.exp(data.log_loss.max())


def _smallest_e(data: LossData) -> Array:
    return SMALLEST_E * jnp.exp(data.log_loss.min())


def _log_e(x: Array, data: LossData) -> Array:
    low, high = _smallest_e(data), _largest_e(data)
    return jnp.log(low + (high - low) * jax.nn.sigmoid(x[0]))


def _chinchilla_residuals(x: Array, data: LossData) -> Array:
    """ln L̂ − ln L with L̂ = Σ exp of (ln E, ln A′ − a·ln N, ln B′ − b·ln D); A′, B′ are the terms in the middle of the table."""
    flat = jnp.broadcast_to(_log_e(x, data), data.log_params.shape)
    size = x[1] - _exponent(x[3]) * data.log_params
    tokens = x[2] - _exponent(x[4]) * data.log_tokens
    return jax.nn.logsumexp(jnp.stack([flat, size, tokens]), axis=0) - data.log_loss


def _chinchilla(x: Array, data: LossData) -> ChinchillaLaw:
    a, b = _exponent(x[3]), _exponent(x[4])
    scales = jnp.exp(x[1] + a * data.centres[0]), jnp.exp(x[2] + b * data.centres[1])
    return ChinchillaLaw(jnp.exp(_log_e(x, data)), *scales, a, b)


def _chinchilla_vector(law: ChinchillaLaw | NestedLaw, data: LossData) -> Array:
    share = (jnp.asarray(law.E) - _smallest_e(data)) / (_largest_e(data) - _smallest_e(data))
    size = jnp.log(jnp.asarray(law.A)) - law.a * data.centres[0]
    tokens = jnp.log(jnp.asarray(law.B)) - law.b * data.centres[1]
    level = jax.scipy.special.logit(jnp.clip(share, 1e-12, 1 - 1e-9))
    return jnp.stack([level, size, tokens, _from_exponent(law.a), _from_exponent(law.b)])


def _chinchilla_starts(data: LossData, count: int, random: np.random.Generator) -> np.ndarray:
    share = random.dirichlet(np.ones(3), count)  # of the three terms in the mean loss
    mean = float(data.log_loss.mean())
    of_largest = share[:, :1] * np.exp(mean - float(data.log_loss.max()))
    level = np.log(of_largest / (1 - of_largest))
    scales = np.log(share[:, 1:]) + mean
    return np.concatenate([level, scales, random.normal(0, 1, (count, 2))], axis=1)


def _nested_residuals(x: Array, data: LossData) -> Array:
    """ln L̂ − ln L as for Chinchilla's law, but ln of both terms together is κ·ln Σ exp(ln term/κ)."""
    kappa = _exponent(x[5])
    size = x[1] - _exponent(x[3]) * data.log_params
    tokens = x[2] - _exponent(x[4]) * data.log_tokens
    both = kappa * jax.nn.logsumexp(jnp.stack([size, tokens]) / kappa, axis=0)
    return jnp.logaddexp(_log_e(x, data), both) - data.log_loss


def _nested(x: Array, data: LossData) -> NestedLaw:
    return NestedLaw(**coefficients(_chinchilla(x[:5], data)), kappa=_exponent(x[5]))


def _nested_vector(law: NestedLaw, data: LossData) -> Array:
    return jnp.append(_chinchilla_vector(law, data), _from_exponent(law.kappa))


def _nested_starts(data: LossData, count: int, random: np.random.Generator) -> np.ndarray:
    others = _chinchilla_starts(data, count, random)
    return np.append(others, random.normal(1, 1, (count, 1)), axis=1)


def _kaplan_terms(x: Array, data: LossData) -> tuple[Array, Array, Array, Array]:
    """ln of the size term and of the data term in the middle of the table, and the two exponents."""
    return x[0], x[1], _exponent(x[2]), _exponent(x[3])


def _kaplan_residuals(x: Array, data: LossData) -> Array:
    """ln L̂ − ln L with ln L̂ = α_D · ln[(N_c/N)^(α_N/α_D) + D_c/D]."""
    size, tokens, alpha_n, alpha_d = _kaplan_terms(x, data)
    terms = jnp.stack([size - alpha_n / alpha_d * data.log_params, tokens - data.log_tokens])
    return alpha_d * jax.nn.logsumexp(terms, axis=0) - data.log_loss


def _kaplan(x: Array, data: LossData) -> KaplanLaw:
    size, tokens, alpha_n, alpha_d = _kaplan_terms(x, data)
    scales = jnp.exp(size * alpha_d / alpha_n + data.centres[0]), jnp.exp(tokens + data.centres[1])
    return KaplanLaw(*scales, alpha_n, alpha_d)


def _kaplan_vector(law: KaplanLaw, data: LossData) -> Array:
    size = (jnp.log(jnp.asarray(law.N_c)) - data.centres[0]) * law.alpha_N / law.alpha_D
    tokens = jnp.log(jnp.asarray(law.D_c)) - data.centres[1]
    return jnp.stack([size, tokens, _from_exponent(law.alpha_N), _from_exponent(law.alpha_D)])


def _kaplan_starts(data: LossData, count: int, random: np.random.Generator) -> np.ndarray:
    exponents = random.uniform(-2, 1, (count, 2))
    share = random.uniform(0.05, 0.95, (count, 1))
    total = float(data.log_loss.mean()) / np.asarray(_exponent(jnp.asarray(exponents[:, 1:])))
    return np.concatenate([total + np.log(share), total + np.log(1 - share), exponents], axis=1)


LOSS_FORMS: dict[str, Form] = {
    "chinchilla": Form(
        "chinchilla",
        ChinchillaLaw,
        _chinchilla_residuals,
        _chinchilla,
        _chinchilla_vector,
        _chinchilla_starts,
        positive=("E", "A", "B", "a", "b"),
        scales=("A", "B"),
        floor="E",
        exponents=("a", "b"),
    ),
    "kaplan": Form(
        "kaplan",
        KaplanLaw,
        _kaplan_residuals,
        _kaplan,
        _kaplan_vector,
        _kaplan_starts,
        positive=("N_c", "D_c", "alpha_N", "alpha_D"),
        scales=("N_c", "D_c"),
        exponents=("alpha_N", "alpha_D"),
    ),
    "nested": Form(
        "nested",
        NestedLaw,
        _nested_residuals,
        _nested,
        _nested_vector,
        _nested_starts,
        positive=("E", "A", "B", "a", "b", "kappa"),
        scales=("A", "B"),
        floor="E",
        exponents=("a", "b", "kappa"),
    ),
}

# What a slope multiplies, by the name of the slope.
_Multiplied = dict[str, Callable[[PairData], Any]]


def _pair_form(
    name: str,
    start: dict[str, float],
    level: str,
    at: Callable[[PairData], dict[str, Any]],
    multiplied: _Multiplied,
    scale: bool = False,
) -> Form:
    """A law whose level stands for a point far from the table; the solver moves its value inside.

    Args:
      name: Name of the law.
      start: Coefficients about which fits start, in the order of the law.
      level: Name of the level.
      at: data -> what each slope is multiplied by in the level: level of the law = level in the
        table + Σ slope·at.
      multiplied: Columns that slopes multiply.
      scale: Whether the level is a positive factor, of which the solver moves the logarithm.
    """
    law_type, names = ACCEPTANCE_LAWS[name], list(start)
    k = names.index(level)

    def shifted(values: list[Any], data: PairData, sign: float) -> Any:
        total = values[k]
        for slope, point in at(data).items():
            total = total + sign * point * values[names.index(slope)]
        return total

    def to_law(x: Array, data: PairData) -> Any:
        moved = shifted([*x], data, 1.0)
        return law_type(*x[:k], jnp.exp(moved) if scale else moved, *x[k + 1 :])

    def to_vector(law: Any, data: PairData) -> Array:
        values = [jnp.asarray(value) for value in coefficients(law).values()]
        if scale:
            values[k] = jnp.log(values[k])
        values[k] = shifted(values, data, -1.0)
        return jnp.stack(values)

    def starts(data: PairData, count: int, random: np.random.Generator) -> np.ndarray:
        drawn = np.asarray([*start.values()]) * random.uniform(0.3, 2.0, (count, len(start)))
        for slope, column in multiplied.items():
            # A slope in something that is the same in every row moves no residual: it stays where
            # it starts.
            if np.ptp(column(data)) == 0:
                drawn[:, names.index(slope)] = 0.0
        return drawn

    scales = (level,) if scale else ()
    return Form(
        name, law_type, _residuals_of_pairs(to_law), to_law, to_vector, starts, scales, scales
    )


def _first_gap(data: PairData) -> tuple[Array, Array]:
    """Loss gap and loss of the target of the first pair."""
    draft, target = (jnp.asarray(each.loss)[0] for each in (data.draft, data.target))
    return draft - target, target


def _log_gap(x: Array, data: PairData) -> LogitLogGap:
    """The solver moves the value at the first pair, the slope per nat there, ln offset, and the
    target's slope: with a large offset the law is a plane, whose slope per nat is all that is
    known."""
    offset = _exponent(x[2], OFFSET_BOUNDS)
    gap, loss = _first_gap(data)
    above = jnp.maximum(gap + offset, 1e-6 * offset)
    slope = x[1] * above
    return LogitLogGap(x[0] + slope * jnp.log(above) - x[3] * loss, slope, offset, x[3])


def _log_gap_vector(law: LogitLogGap, data: PairData) -> Array:
    gap, loss = _first_gap(data)
    level, slope, offset, target_slope = map(jnp.asarray, coefficients(law).values())
    above = jnp.maximum(gap + offset, 1e-6 * offset)
    at_first = level - slope * jnp.log(above) + target_slope * loss
    return jnp.stack([at_first, slope / above, _from_exponent(offset, OFFSET_BOUNDS), target_slope])


def _log_gap_starts(data: PairData, count: int, random: np.random.Generator) -> np.ndarray:
    level, slope = random.uniform(0.5, 3.0, (2, count))
    target_slope = random.uniform(-1.0, 1.0, count) * bool(np.ptp(data.target.loss) > 0)
    return np.stack([level, slope, random.normal(0, 1, count), target_slope], axis=1)


def _residuals_of_pairs(to_law: Callable[[Array, Any], Any]) -> Callable[[Array, Any], Array]:
    return lambda x, data: to_law(x, data)(data.draft, data.target) - data.alpha


ACCEPTANCE_FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        _pair_form("logit_gap", {"level": 1.5, "slope": 2.0}, "level", lambda data: {}, {}),
        _pair_form(
            "logit_plane",
            {"level": 1.0, "draft_slope": 2.0, "target_slope": 2.0},
            "level",
            lambda data: {
                "draft_slope": jnp.asarray(data.draft.loss)[0],
                "target_slope": -jnp.asarray(data.target.loss)[0],
            },
            {"target_slope": lambda data: data.target.loss},
        ),
        Form(
            "logit_log_gap",
            LogitLogGap,
            _residuals_of_pairs(_log_gap),
            _log_gap,
            _log_gap_vector,
            _log_gap_starts,
            positive=("offset",),
        ),
        _pair_form(
            "affine_plane",
            {"A": -0.1, "B": 0.1, "C": 0.7},
            "C",
            lambda data: {
                "A": -jnp.exp(jnp.asarray(data.draft.loss)[0]),
                "B": -jnp.exp(jnp.asarray(data.target.loss)[0]),
            },
            {"B": lambda data: data.target.loss},
        ),
        _pair_form(
            "power_law",
            {"scale": -1.0, "exponent": 0.15, "target_exponent": 0.1},
            "scale",
            lambda data: {"exponent": data.centres[0], "target_exponent": -data.centres[2]},
            {"target_exponent": lambda data: data.target.params},
            scale=True,
        ),
        _pair_form(
            "log_linear_length",
            {"level": 3.5, "params_slope": 0.4, "tokens_slope": 0.2, "target_slope": -0.3},
            "level",
            lambda data: dict(zip(("params_slope", "tokens_slope", "target_slope"), -data.centres)),
            {
                "tokens_slope": lambda data: data.draft.tokens,
                "target_slope": lambda data: data.target.params,
            },
        ),
    )
}


def form_of(law: Any) -> Form:
    """The form of a law of `theory`."""
    forms = (*LOSS_FORMS.values(), *ACCEPTANCE_FORMS.values())
    return next(form for form in forms if isinstance(law, form.law_type))


# Tables are filled up to a multiple of so many rows, so that a compiled fit serves tables of like
# size.
_ROWS = 64


def _filled(values: Any) -> Array:
    """The values and, as padding, the first of them again."""
    values = np.asarray(values, float)
    return jnp.asarray(np.concatenate([values, np.full(-len(values) % _ROWS, values[0])]))


def loss_data(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> LossData:
    """Centred logarithms of a table of losses, padded at its end; call within `jax.enable_x64`."""
    logs = [np.log(np.asarray(values, float)) for values in (params, tokens)]
    centres = [values.mean() for values in logs]
    sizes, budgets = (_filled(values - centre) for values, centre in zip(logs, centres))
    return LossData(sizes, budgets, _filled(np.log(np.asarray(loss, float))), jnp.asarray(centres))


def pair_data(draft: ModelPoint, target: ModelPoint, alpha: np.ndarray) -> PairData:
    """A table of pairs, padded at its end; if any row has no tokens, all stand for one budget. Call within `jax.enable_x64`."""
    n = len(alpha)
    tokens = np.broadcast_to(np.asarray(draft.tokens, float), (n,))
    # Published checkpoints do not say what they were trained on: their records have 0.
    known = np.isfinite(tokens) & (tokens > 0)
    draft = draft._replace(tokens=tokens if known.all() else np.ones(n))
    centres = [
        np.log(np.asarray(v, float)).mean() for v in (draft.params, draft.tokens, target.params)
    ]
    points = [
        ModelPoint(*(_filled(np.broadcast_to(np.asarray(v, float), (n,))) for v in each))
        for each in (draft, target)
    ]
    return PairData(points[0], points[1], _filled(alpha), jnp.asarray(centres))
