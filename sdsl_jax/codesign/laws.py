"""A loss law and an acceptance law used together: what their draws say, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.fitting.law_files import LoadedLaw
from sdsl_jax.statistics import quantile_interval
from sdsl_jax.theory import About

# Source of an acceptance "law" that is one measured α, of which nothing is fitted.
MEASURED = "measured"
# Further outside than this, a suffix was probably forgotten, or a unit mistaken.
_FAR = 1000.0

# What draws of coefficients leave out.
FORMS_HOLD = "the forms of both laws are taken to be right"


@dataclass(frozen=True)
class LawDraws:
    """Draws of both laws that belong together.

    Attributes:
      loss: The loss law with arrays of draws; None where one of the laws has none.
      acceptance: The acceptance law, likewise.
      count: Number of draws.
      basis: Where the draws come from, or why there are none.
    """

    loss: Any
    acceptance: Any
    count: int
    basis: str


def law_draws(loss: LoadedLaw, acceptance: LoadedLaw, most: int | None = None) -> LawDraws:
    """The draws of two laws, cut to one length and to `most`."""
    laws = {"loss": loss, "acceptance": acceptance}
    without = [f"{name} law {law.name}: {law.basis}" for name, law in laws.items() if not law.draws]
    if without:
        return LawDraws(None, None, 0, "; ".join(without))
    lengths = [len(jax.tree.leaves(law.draws)[0]) for law in laws.values()]
    count = min(lengths if most is None else [*lengths, most])
    drawn = [jax.tree.map(lambda x: np.asarray(x[:count]), law.draws) for law in laws.values()]
    basis = loss.basis
    if loss.joint is None or loss.joint != acceptance.joint:
        basis = f"loss law: {loss.basis}; acceptance law: {acceptance.basis}; taken as independent"
    return LawDraws(drawn[0], drawn[1], count, f"{basis}; {FORMS_HOLD}")


class DrawIntervals(NamedTuple):
    """What draws of the laws leave open.

    Attributes:
      ends: Lower and upper end of each quantity's central interval; None where too few draws
        speculate for an interval to mean anything.
      share_that_speculate: Draws, as a share of all, with an optimum that beats plain decoding.
      share_without_optimum: Draws, as a share of all, that have no optimum.
    """

    ends: dict[str, list[float]] | None
    share_that_speculate: float
    share_without_optimum: float


def intervals_over_draws(
    values: Mapping[str, Any],
    speedup: Any,
    has_optimum: Any,
    *,
    confidence: float = 0.9,
    of_speculating: Collection[str] = (),
    more_than: float = 0.0,
) -> DrawIntervals:
    """Central intervals over draws, leaving out those without an optimum.

    Args:
      values: Each quantity in every draw.
      speedup: Best speed-up of every draw.
      has_optimum: Whether a draw has an optimum: α stays below 1, and some design is feasible.
      confidence: Share of the draws that an interval covers.
      of_speculating: Quantities that exist only where a draw speculates, such as a draft size of
        which plain decoding has none.
      more_than: No interval is given unless more than this share of all draws speculates.
    """
    has_optimum = np.asarray(has_optimum, bool)
    pays = has_optimum & (np.asarray(speedup) > 1)
    count = max(len(pays), 1)
    share, left_out = float(pays.sum() / count), float(1 - has_optimum.sum() / count)
    if not has_optimum.any() or (more_than and share <= more_than):
        return DrawIntervals(None, share, left_out)
    ends = {
        name: list(
            quantile_interval(
                np.asarray(all_draws)[pays if name in of_speculating else has_optimum], confidence
            )
        )
        for name, all_draws in values.items()
    }
    return DrawIntervals(ends, share, left_out)


def valid_range(about: About) -> str:
    """What a law was fitted on, in words."""
    return ", ".join(
        f"{name.replace('_', ' ').replace('params', 'parameters')} {short_count(low)} to {short_count(high)}"
        for name, low, high in about.valid or ()
    )


def quality(law: LoadedLaw) -> str:
    """How well an acceptance law describes the pairs that it was fitted to, in words."""
    about, parts = law.law.about, []
    if about.r_squared is not None:
        parts.append(f"R² = {about.r_squared:.3g}")
    if about.mean_squared_error is not None:
        parts.append(f"a root mean square error of {about.mean_squared_error**0.5:.2g} in α")
    if not parts:
        return f"how well the acceptance law {law.name} describes its pairs is not known"
    pairs = "an unpublished number of pairs" if about.count is None else f"{about.count:,} pairs"
    return f"the acceptance law {law.name} has {' and '.join(parts)}, over {pairs}"


def far_outside(
    loss: LoadedLaw, acceptance: LoadedLaw, stated: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """One sentence on sizes and training tokens that lie more than a thousand times outside what
    the laws were fitted on; the arguments are those of `unit_caveats`."""
    far = []
    for role, values in stated.items():
        factors = loss.law.about.times_outside(**values)
        if "params" in values:
            of_size = acceptance.law.about.times_outside(**{f"{role}_params": values["params"]})
            factors["params"] = max([1.0, factors.get("params", 1.0), *of_size.values()])
        far += [
            f"{short_count(values[name])} {'parameters' if name == 'params' else 'training tokens'} of the {role} "
            f"({factor:,.0f} times)"
            for name, factor in factors.items()
            if factor > _FAR
        ]
    if not far:
        return []
    return [
        f"far outside what the laws were fitted on: {', '.join(far)}; is a suffix missing, as in 70 for 70B?"
    ]


def unit_caveats(
    loss: LoadedLaw, acceptance: LoadedLaw, stated: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Sizes and training tokens that were probably meant in another unit.

    Args:
      loss: The loss law.
      acceptance: The acceptance law.
      stated: For "draft" and "target", `params` in the count of the loss law, and `tokens`. A
        draft without a size has only its tokens.
    """
    few = [
        f"the {role} has fewer training tokens ({short_count(each['tokens'])}) than parameters "
        f"({short_count(each['params'])}): is a suffix missing?"
        for role, each in stated.items()
        if "params" in each and each["tokens"] < each["params"]
    ]
    return few + far_outside(loss, acceptance, stated)


class AlphaRange(NamedTuple):
    """How far the acceptance law moves α between two sizes of draft, in the count of the loss law."""

    small: float
    alpha_of_small: float
    large: float
    alpha_of_large: float

    def sentence(self, law: str) -> str:
        """The range in words, with the name of the law."""
        sizes = f"from a draft of {short_count(self.small)} to one of {short_count(self.large)}"
        ends = f"from {self.alpha_of_small:.3f} to {self.alpha_of_large:.3f}"
        return f"{sizes} parameters the acceptance law {law} moves α {ends}"


def law_caveats(
    loss: LoadedLaw,
    acceptance: LoadedLaw,
    stated: Mapping[str, Mapping[str, float]],
    losses: Mapping[str, float],
    alpha_range: AlphaRange | None = None,
    *,
    with_values: bool = True,
) -> list[str]:
    """Where the laws are used beyond what they were fitted on, and how good they are.

    Args:
      loss: The loss law.
      acceptance: The acceptance law.
      stated: As in `unit_caveats`.
      losses: `draft_loss` and `target_loss` in nats per token, as far as they are known.
      alpha_range: Two drafts that show how steep the acceptance law is, if it is worth telling.
      with_values: Whether sentences hold the values themselves. Without them, answers about
        several targets share their sentences.
    """
    about, accept = loss.law.about, acceptance.law.about
    caveats = []
    for role, each in stated.items():
        if about.outside(**each):
            values = ", ".join(
                f"{short_count(value)} {'parameters' if name == 'params' else name}"
                for name, value in each.items()
            )
            shown = f" ({values})" if with_values else ""
            caveats.append(
                f"extrapolates the loss law for the {role}{shown}: fitted on {valid_range(about)}"
            )
    sizes = {role: each["params"] for role, each in stated.items() if "params" in each}
    if accept.outside(**{f"{role}_params": size for role, size in sizes.items()}, **losses):
        values = ", ".join(f"{role} {short_count(size)}" for role, size in sizes.items())
        shown = f" ({values})" if with_values else ""
        caveats.append(f"extrapolates the acceptance law{shown}: fitted on {valid_range(accept)}")
    if accept.source != MEASURED:
        caveats.append(quality(acceptance))
    if alpha_range is not None:
        caveats.append(alpha_range.sentence(acceptance.name))
    if about.text != accept.text:
        caveats.append(
            f"the laws are of different texts: losses on {about.text}; acceptance on {accept.text}"
        )
    if about.params_count != accept.params_count:
        caveats.append(
            f"the loss law counts {about.params_count} parameters and the acceptance law "
            f"{accept.params_count}; sizes are taken for both"
        )
    elif about.params_count != "total":
        caveats.append(f"sizes are {about.params_count} parameters, the count of the laws")
    return caveats + [
        f"{name} law: {text}"
        for name, law in (("loss", loss), ("acceptance", acceptance))
        for text in law.warnings
    ]
