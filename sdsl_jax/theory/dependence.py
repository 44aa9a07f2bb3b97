r"""Tokens per round when acceptance is not i.i.d., and the error of τ = (1 − α^(γ+1))/(1 − α) then.

Whatever the dependence, a round with lookahead γ emits τ = 1 + Σ_{k=1..γ} S_k tokens. S_k is the
probability that its first k drafts are all accepted, at the block starts *of that very γ*. The
models below give S_k in closed form, and each has the geometric formula as a limit.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.theory.arrays import Scalar, Values
from sdsl_jax.theory.lookahead import tokens_per_round

# Spreads of logit α that the quadrature covers on either side: it leaves out a tail of e^−20 or less.
_REACH = 20.0


def tokens_per_round_from_survival(
    survival: Float[Array, "*batch gamma"],
) -> Float[Array, "*batch"]:
    """τ = 1 + Σ_k S_k, with S_1 … S_γ measured or modelled at lookahead γ, in the last axis."""
    return 1 + jnp.asarray(survival).sum(-1)


def geometric_error(tau: Values, acceptance: Values, lookahead: Values) -> Array:
    """Relative error τ(α, γ)/τ − 1 of the geometric formula, with α the mean acceptance and τ the true tokens per round."""
    return tokens_per_round(acceptance, lookahead) / jnp.asarray(tau) - 1


def _known(*values: Values) -> bool:
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _check_lookahead(lookahead: int) -> None:
    if lookahead < 1:
        raise ValueError(f"the lookahead is {lookahead}; it must be a whole number of at least 1.")


class BetaAcceptance(NamedTuple):
    """An acceptance probability that varies as Beta(a, b), from round to round or from prompt to
    prompt.

    Its mean is a/(a + b). The geometric formula is the limit of a large a + b at a fixed mean.

    Attributes:
      a: First parameter of the Beta distribution, positive.
      b: Second parameter, positive.
    """

    a: Scalar
    b: Scalar

    def _check(self, lookahead: int) -> None:
        _check_lookahead(lookahead)
        if _known(self.a, self.b) and not (
            np.all(np.asarray(self.a) > 0) and np.all(np.asarray(self.b) > 0)
        ):
            raise ValueError(
                f"the parameters of the Beta distribution are {self.a} and {self.b}; they must be positive."
            )

    @property
    def mean(self) -> Array:
        """Mean acceptance."""
        return jnp.asarray(self.a) / (self.a + self.b)

    def survival(self, lookahead: int) -> Float[Array, " gamma"]:
        """S_k = E α^k = Π_{i<k} (a + i)/(a + b + i) where each round draws its own α."""
        self._check(lookahead)
        i = jnp.arange(lookahead)
        return jnp.cumprod((self.a + i) / (self.a + self.b + i))

    def tokens_per_round_over_rounds(self, lookahead: int) -> Float[Array, ""]:
        """τ where each round draws its own α: above the geometric formula, since E α^k ≥ (E α)^k."""
        return tokens_per_round_from_survival(self.survival(lookahead))

    def tokens_per_round_over_prompts(self, lookahead: int, nodes: int = 256) -> Float[Array, ""]:
        """τ = 1/E[1/τ(α)] where each prompt draws its own α and all generate the same number of
        tokens.

        A prompt that accepts little needs more rounds and weighs more in the mean over rounds: τ
        lies below the geometric formula wherever 1/τ(α) is convex.
        """
        self._check(lookahead)
        alpha, weight = self.quadrature(nodes)
        return 1 / (weight / tokens_per_round(alpha, lookahead)).sum()

    def quadrature(self, nodes: int) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
        """Nodes in (0, 1) and weights of expectations under Beta(a, b): the trapezoidal rule in t =
        logit α.

        In t the density is σ(t)^a·σ(−t)^b, which falls off exponentially on both sides. The error
        of equal steps falls off exponentially too, since density and 1/τ(σ(t)) are analytic for
        |Im t| < π/2 (Trefethen & Weideman, 2014). Unlike Gauss–Jacobi nodes these need no
        eigenvalues, which would take most of the time of a batched loop.

        Args:
          nodes: Number of nodes.
        """
        a, b = (
            jnp.asarray(self.a, jnp.result_type(float)),
            jnp.asarray(self.b, jnp.result_type(float)),
        )
        # Near the standard deviation of t where a and b are large, and of the slower tail where
        # they are small.
        spread = jnp.sqrt(1 / a + 1 / a**2 + 1 / b + 1 / b**2)
        t = jnp.log(a) - jnp.log(b) + spread * jnp.linspace(-_REACH, _REACH, nodes)
        return jax.nn.sigmoid(t), jax.nn.softmax(
            a * jax.nn.log_sigmoid(t) + b * jax.nn.log_sigmoid(-t)
        )


class PersistentAcceptance(NamedTuple):
    """A two-state chain along the positions of a text: easy stretches and hard ones.

    Attributes:
      acceptance: Share α of all positions at which the draft would be accepted.
      persistence: Correlation ρ < 1 of neighbouring positions; 0 gives the geometric formula. A
        position is accepted with probability α + ρ(1 − α) after an accepted one, and α(1 − ρ) after
        a rejected one. Both must be probabilities.
    """

    acceptance: Scalar
    persistence: Scalar

    def survival(self, lookahead: int) -> Float[Array, " gamma"]:
        """S_k at true block starts of this γ: after a rejection, or after the bonus token of a
        fully accepted block.

        Let p be the probability of acceptance after an acceptance, r after a rejection, and f two
        positions after an acceptance (the bonus token between them is not tested). From a start
        with first acceptance s, a block is accepted in full with probability s·p^(γ−1). So the
        share φ of starts that follow a full block obeys φ = (φ·f + (1 − φ)·r)·p^(γ−1), and
        S_k = (φ·f + (1 − φ)·r)·p^(k−1). See docs/theory.md, equation (11).

        Args:
          lookahead: Drafted tokens per round, γ ≥ 1.
        """
        _check_lookahead(lookahead)
        alpha, rho = jnp.asarray(self.acceptance), jnp.asarray(self.persistence)
        if _known(self.acceptance, self.persistence):
            values = np.asarray(self.acceptance, float), np.asarray(self.persistence, float)
            chances = values[0] + values[1] * (1 - values[0]), values[0] * (1 - values[1])
            if not (
                all(np.all((x >= 0) & (x <= 1)) for x in (values[0], *chances))
                and np.all(values[1] < 1)
            ):
                raise ValueError(
                    f"an acceptance of {self.acceptance} with persistence {self.persistence} makes no chain: α, α + ρ(1 − α) and "
                    "α(1 − ρ) must be probabilities, and ρ below 1."
                )
        again, after_rejection, after_bonus = (
            alpha + rho * (1 - alpha),
            alpha * (1 - rho),
            alpha + rho**2 * (1 - alpha),
        )
        rest = again ** (lookahead - 1)
        full = after_rejection * rest / (1 - (after_bonus - after_rejection) * rest)
        first = full * after_bonus + (1 - full) * after_rejection
        return first * again ** jnp.arange(lookahead)

    def tokens_per_round(self, lookahead: int) -> Float[Array, ""]:
        """τ at true block starts: below the geometric formula for the α that a teacher-forced pass measures."""
        return tokens_per_round_from_survival(self.survival(lookahead))


class Rounds(NamedTuple):
    """Expected rounds over a sample; add those of many samples, then divide.

    Attributes:
      started: Expected number of rounds that start where a whole block fits.
      survived: Expected number of these rounds whose first k = 1 … γ drafts are accepted.
    """

    started: Float[Array, "*batch"]
    survived: Float[Array, "*batch gamma"]

    @property
    def survival(self) -> Float[Array, "*batch gamma"]:
        """S_1 … S_γ."""
        return self.survived / self.started[..., None]

    @property
    def tokens_per_round(self) -> Float[Array, "*batch"]:
        """τ = 1 + Σ_k S_k."""
        return tokens_per_round_from_survival(self.survival)


def rounds_over_sample(
    acceptance: Float[Array, "length ..."],
    lookahead: int,
    starts: Int[Array, ""] | int | None = None,
) -> Rounds:
    """Exact expected rounds of token verification over one sample of the target, without decoding.

    Given that the token emitted at a tested position is y, it was accepted with probability
    min(1, q(y)/p(y)), independently of everything else. So one sample of the target, scored once by
    each model, gives the probability that a round starts at each position, for every lookahead. The
    recursion over positions is equation (12) of docs/theory.md: a position is tested as draft j + 1
    if the one before it was accepted as draft j. It starts a round if the one before it was rejected
    or was a bonus token.

    A head on the target's hidden states has another q at its first draft than at its second, for it
    has seen more. Then the acceptance of a position depends on which draft of its round it is.

    Args:
      acceptance: min(1, q(y)/p(y)) at each position of the sample, the first of which starts a
        round; or for each draft of a round, [length, γ or more].
      lookahead: Drafted tokens per round, γ ≥ 1, at most the length of the sample.
      starts: Number of leading positions at which rounds are counted; all that fit if left out.

    Raises:
      ValueError: A value is no probability, or the sample is shorter than the lookahead.
    """
    _check_lookahead(lookahead)
    if _known(acceptance):
        values = np.asarray(acceptance)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(
                f"acceptances run from {values.min():g} to {values.max():g}; they must be probabilities."
            )
    acceptance = jnp.asarray(acceptance, jnp.result_type(float))
    length = acceptance.shape[0]
    if acceptance.ndim == 1:
        acceptance = jnp.broadcast_to(acceptance[:, None], (length, lookahead))
    if acceptance.shape[1] < lookahead:
        raise ValueError(
            f"acceptances are given for {acceptance.shape[1]} drafts of a round; the lookahead is {lookahead}."
        )
    acceptance = acceptance[:, :lookahead]
    if lookahead > length:
        raise ValueError(f"the lookahead is {lookahead}; the sample holds only {length} tokens.")
    return _rounds_over_sample(acceptance, lookahead, length if starts is None else starts)


@partial(jax.jit, static_argnames="lookahead")
def _rounds_over_sample(
    acceptance: Float[Array, "length gamma"], lookahead: int, counted: Int[Array, ""] | int
) -> Rounds:
    length = acceptance.shape[0]

    def move(tested: Array, a: Array) -> tuple[Array, Array]:
        # tested[j]: probability that this position is tested as draft j; tested[γ]: that it is a
        # bonus token.
        rejected = (tested[:-1] * (1 - a)).sum()
        following = jnp.concatenate([(rejected + tested[-1])[None], tested[:-1] * a])
        return following, tested[0]

    begin = jnp.zeros(lookahead + 1, acceptance.dtype).at[0].set(1.0)
    _, starts = jax.lax.scan(move, begin, acceptance)
    fits = jnp.where(jnp.arange(length) < counted, starts, 0.0)[: length - lookahead + 1]
    windows = jnp.stack([acceptance[k : length - lookahead + 1 + k, k] for k in range(lookahead)])
    return Rounds(fits.sum(), jnp.cumprod(windows, axis=0) @ fits)
