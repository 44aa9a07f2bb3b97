"""Loss laws and acceptance laws: frozen coefficients that know where they are valid.

`fitting` estimates the coefficients, `codesign` differentiates through them. A law is a pytree whose
leaves are its coefficients: a gradient with respect to a law is a law of sensitivities, and a law
of arrays is a set of draws. Its field `about` is static.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from sdsl_jax.theory.arrays import Values, namespace, of_jax


@dataclass(frozen=True)
class About:
    """Where a law comes from and where it holds.

    Attributes:
      source: Publication or file.
      params_count: Parameters that N and M count: "total" or "non-embedding".
      text: Text of its losses or perplexities; with the tokenizer it fixes their unit.
      unit: Unit of its values.
      valid: Name, smallest and largest value of each variable that it was fitted on; None where not
        published.
      standard_error: Marginal standard errors of coefficients, where published.
      no_interval: Why no interval can be derived from the publication.
      r_squared: Share of the variance that it explains in the fit, where known.
      mean_squared_error: Mean squared error of the fit, where known.
      count: Rows of the fit, where known.
    """

    source: str = "fitted by the user"
    params_count: str = "non-embedding"
    text: str = "the user's own"
    unit: str = "nats per token"
    valid: tuple[tuple[str, float, float], ...] | None = None
    standard_error: tuple[tuple[str, float], ...] = ()
    no_interval: str = "the law comes without bootstrap draws or a covariance matrix"
    r_squared: float | None = None
    mean_squared_error: float | None = None
    count: int | None = None

    def times_outside(self, **values: float) -> dict[str, float]:
        """The factor by which each named value lies outside the fitted range; values inside are left out."""
        factors = {}
        for name, low, high in self.valid or ():
            value = float(values.get(name, low))
            if value < low:
                factors[name] = low / value if value > 0 else float("inf")
            elif value > high:
                factors[name] = value / high
        return factors

    def outside(self, **values: Values) -> Bool[Array, "*shape"]:
        """Whether any of the named values lies outside the fitted range; False where the range is unknown."""
        xp = jnp if of_jax(values) else np
        outside = xp.zeros((), bool)
        for name, low, high in self.valid or ():
            if name in values:
                value = xp.asarray(values[name])
                outside = outside | (value < low) | (value > high)
        return outside


_law = jax.tree_util.register_dataclass
_USERS, _STATIC = About(), {"static": True}


def coefficients(law: Any) -> dict[str, Any]:
    """The coefficients of a law by name, in the order in which its constructor takes them."""
    return {f.name: getattr(law, f.name) for f in fields(law) if not f.metadata.get("static")}


@_law
@dataclass(frozen=True)
class ChinchillaLaw:
    """L(N, D) = E + A/N^a + B/D^b, in nats per token (Hoffmann et al., 2203.15556).

    Attributes:
      E: Irreducible loss, in nats per token.
      A: Scale of the size term.
      B: Scale of the data term.
      a: Exponent of the size term.
      b: Exponent of the data term.
      about: Source and validity.
    """

    E: Values
    A: Values
    B: Values
    a: Values
    b: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, params: Values, tokens: Values) -> Array:
        """Loss of a model of `params` parameters after `tokens` training tokens, in the law's counts."""
        # Powers as exponentials of logs: their derivatives with respect to size and exponent share
        # one exponential.
        xp = namespace(self, params, tokens)
        size = xp.exp(-self.a * xp.log(xp.asarray(params)))
        data = xp.exp(-self.b * xp.log(xp.asarray(tokens)))
        return xp.asarray(self.E) + self.A * size + self.B * data


@_law
@dataclass(frozen=True)
class KaplanLaw:
    """L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D, in nats per token, N non-embedding (Kaplan et al.,
    2001.08361, eq. 1.5).

    Attributes:
      N_c: Scale of sizes, in parameters.
      D_c: Scale of data, in tokens.
      alpha_N: Exponent in size.
      alpha_D: Exponent in data.
      about: Source and validity.
    """

    N_c: Values
    D_c: Values
    alpha_N: Values
    alpha_D: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, params: Values, tokens: Values) -> Array:
        """Loss of a model of `params` non-embedding parameters after `tokens` tokens."""
        xp = namespace(self, params, tokens)
        ratio = xp.asarray(self.alpha_N) / self.alpha_D
        size = xp.exp(ratio * (xp.log(self.N_c) - xp.log(xp.asarray(params))))
        return xp.exp(self.alpha_D * xp.log(size + self.D_c / xp.asarray(tokens)))


@_law
@dataclass(frozen=True)
class NestedLaw:
    """L(N, D) = E + [(A/N^a)^(1/κ) + (B/D^b)^(1/κ)]^κ, in nats per token: Chinchilla's law at κ = 1,
    Kaplan's at E = 0 and b = κ.

    With κ < 1 the larger of the two terms counts for more than in a sum: data helps large models
    more than small ones.

    Attributes:
      E: Irreducible loss, in nats per token.
      A: Scale of the size term.
      B: Scale of the data term.
      a: Exponent of the size term.
      b: Exponent of the data term.
      kappa: κ, how the terms join.
      about: Source and validity.
    """

    E: Values
    A: Values
    B: Values
    a: Values
    b: Values
    kappa: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, params: Values, tokens: Values) -> Array:
        """Loss of a model of `params` parameters after `tokens` training tokens, in the law's counts."""
        xp = namespace(self, params, tokens)
        size = xp.log(xp.asarray(self.A)) - self.a * xp.log(xp.asarray(params))
        data = xp.log(xp.asarray(self.B)) - self.b * xp.log(xp.asarray(tokens))
        both = self.kappa * xp.logaddexp(size / self.kappa, data / self.kappa)
        return xp.asarray(self.E) + xp.exp(both)


LossLaw = ChinchillaLaw | KaplanLaw | NestedLaw


def _below_one(alpha: Array) -> Array:
    """α, or the largest number below 1 where it rounds to 1: a bounded law stays below 1 in any precision."""
    return namespace(alpha).minimum(alpha, 1 - jnp.finfo(alpha.dtype).epsneg)


def _inside(logit: Values) -> Array:
    xp = namespace(logit)
    alpha = _below_one(1 / (1 + xp.exp(-logit)) if xp is np else jax.nn.sigmoid(jnp.asarray(logit)))
    return xp.maximum(alpha, jnp.finfo(alpha.dtype).tiny)


class ModelPoint(NamedTuple):
    """The properties of a model that an acceptance law may use.

    Attributes:
      params: Parameters, in the count of the law.
      loss: Loss, in nats per token.
      tokens: Training tokens. Only `LogLinearLength` uses them, and only those of the draft.
    """

    params: Values
    loss: Values
    tokens: Values = jnp.nan


@_law
@dataclass(frozen=True)
class AffinePlane:
    """α = A·x + B·y + C with x and y the perplexities of draft and target (arXiv 2603.11053).
    Unbounded.

    Attributes:
      A: Slope in the draft's perplexity.
      B: Slope in the target's perplexity.
      C: Constant.
      about: Source and validity.
    """

    A: Values
    B: Values
    C: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, draft: ModelPoint, target: ModelPoint) -> Array:
        """Acceptance probability; may leave [0, 1]."""
        xp = namespace(self, draft, target)
        return xp.asarray(self.A) * xp.exp(draft.loss) + self.B * xp.exp(target.loss) + self.C


@_law
@dataclass(frozen=True)
class LogitPlane:
    """logit α = level − draft_slope·L_draft + target_slope·L_target, losses in nats per token. In
    (0, 1).

    Attributes:
      level: Constant.
      draft_slope: Slope per nat of the draft's loss; positive where a better draft is accepted more
        often.
      target_slope: Slope per nat of the target's loss; a `LogitGap` if it equals `draft_slope`.
      about: Source and validity.
    """

    level: Values
    draft_slope: Values
    target_slope: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, draft: ModelPoint, target: ModelPoint) -> Array:
        """Acceptance probability, in (0, 1)."""
        xp = namespace(self, draft, target)
        return _inside(
            self.level
            - self.draft_slope * xp.asarray(draft.loss)
            + self.target_slope * xp.asarray(target.loss)
        )


@_law
@dataclass(frozen=True)
class LogitGap:
    """logit α = level − slope·(L_draft − L_target). In (0, 1), also for drafts better than their
    target.

    At equal loss α is sigmoid(level) < 1: two models of equal loss are not the same distribution.

    Attributes:
      level: Logit of α at equal loss.
      slope: Slope per nat of loss gap; positive where a better draft is accepted more often.
      about: Source and validity.
    """

    level: Values
    slope: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, draft: ModelPoint, target: ModelPoint) -> Array:
        """Acceptance probability, in (0, 1)."""
        gap = namespace(self, draft, target).asarray(draft.loss) - target.loss
        return _inside(self.level - self.slope * gap)


@_law
@dataclass(frozen=True)
class LogitLogGap:
    """logit α = level − slope·ln(L_draft − L_target + offset) + target_slope·L_target. In (0, 1).

    α bends upwards as the draft comes near its target, and tends to 1 at a gap of −offset. Far
    above it the law is a power of the gap; with an offset far above all gaps it is a `LogitPlane`.

    Attributes:
      level: Constant.
      slope: Slope per e-fold of the gap above −offset; positive where a better draft is accepted
        more often.
      offset: Loss, in nats, by which a draft must be better than its target for α to reach 1;
        positive.
      target_slope: Slope per nat of the target's loss at a given gap.
      about: Source and validity.
    """

    level: Values
    slope: Values
    offset: Values
    target_slope: Values = 0.0
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, draft: ModelPoint, target: ModelPoint) -> Array:
        """Acceptance probability, in (0, 1)."""
        xp = namespace(self, draft, target)
        above = xp.asarray(draft.loss) - target.loss + self.offset
        log_above = xp.log(xp.maximum(above, 1e-6 * xp.asarray(self.offset)))
        return _inside(
            self.level - self.slope * log_above + self.target_slope * xp.asarray(target.loss)
        )


@_law
@dataclass(frozen=True)
class PowerLaw:
    """1 − α = scale · N^(−exponent) · M^target_exponent, N and M the sizes of draft and target.
    Below 1.

    Where a draft is so small that the right side exceeds 1, α ≤ 0: none of its tokens is accepted.

    Attributes:
      scale: Rejection probability of a draft of one parameter for a target of one, extrapolated.
      exponent: Exponent in the draft's size; positive where larger drafts are accepted more often.
      target_exponent: Exponent in the target's size; at 0 the target does not matter.
      about: Source and validity.
    """

    scale: Values
    exponent: Values
    target_exponent: Values = 0.0
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, draft: ModelPoint, target: ModelPoint) -> Array:
        """Acceptance probability, below 1."""
        xp = namespace(self, draft, target)
        log_sizes = self.target_exponent * xp.log(target.params) - self.exponent * xp.log(
            draft.params
        )
        return _below_one(1 - xp.asarray(self.scale) * xp.exp(log_sizes))


@_law
@dataclass(frozen=True)
class LogLinearLength:
    """1/(1 − α) = level + params_slope·ln N + tokens_slope·ln D + target_slope·ln M: log-linear
    acceptance length. Below 1.

    1/(1 − α) is the mean number of tokens per round of an unlimited lookahead under independent
    acceptance. Yan et al. (2505.07858) report that it grows with the logarithms of the draft's size
    and data. They use one target; its size is our addition. A length of 1 or less means that nothing
    is accepted: α ≤ 0.

    Attributes:
      level: Length at N = D = M = 1, extrapolated.
      params_slope: Tokens per e-fold of the draft's size.
      tokens_slope: Tokens per e-fold of the draft's training tokens.
      target_slope: Tokens per e-fold of the target's size.
      about: Source and validity.
    """

    level: Values
    params_slope: Values
    tokens_slope: Values
    target_slope: Values
    about: About = field(default=_USERS, metadata=_STATIC)

    def __call__(self, draft: ModelPoint, target: ModelPoint) -> Array:
        """Acceptance probability, below 1; −1 where the length is ½ or less, which keeps a search off the pole."""
        xp = namespace(self, draft, target)
        length = (
            xp.asarray(self.level)
            + self.params_slope * xp.log(draft.params)
            + self.tokens_slope * xp.log(draft.tokens)
            + self.target_slope * xp.log(target.params)
        )
        return _below_one(1 - 1 / xp.maximum(length, 0.5))


AcceptanceLaw = AffinePlane | LogitPlane | LogitGap | LogitLogGap | PowerLaw | LogLinearLength

# By the names that records and files carry.
LOSS_LAWS: dict[str, type] = {
    "chinchilla": ChinchillaLaw,
    "kaplan": KaplanLaw,
    "nested": NestedLaw,
}
ACCEPTANCE_LAWS: dict[str, type] = {
    "logit_gap": LogitGap,
    "logit_plane": LogitPlane,
    "logit_log_gap": LogitLogGap,
    "affine_plane": AffinePlane,
    "power_law": PowerLaw,
    "log_linear_length": LogLinearLength,
}
