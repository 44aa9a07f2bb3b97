"""From one convention of "acceptance" to another, at a fixed lookahead."""

from __future__ import annotations

from sdsl_jax.errors import require
from sdsl_jax.theory import acceptance_from_tokens_per_round, tokens_per_round

# Conventions that are a linear function of the mean accepted drafts per round m at a fixed γ: (m +
# offset) / divisor.
_LINEAR = {
    "accepted_per_round": (0, lambda lookahead: 1),
    "vllm_acceptance_length": (1, lambda lookahead: 1),
    "vllm_acceptance_rate": (0, lambda lookahead: lookahead),
    "eagle_tau": (1, lambda lookahead: 1),
    "sglang_old_accept_rate": (1, lambda lookahead: lookahead + 1),
    "deepspec_accept_rate": (1, lambda lookahead: lookahead + 1),
    "specbench_tokens_per_round": (1, lambda lookahead: 1),
    "paper_tar": (0, lambda lookahead: lookahead),
}
CONVERTIBLE = (*_LINEAR, "paper_alpha", "per_test_acceptance")


def convert(
    value: float, source: str, target: str, lookahead: int, *, assume_geometric: bool = False
) -> float:
    """The value of one convention from that of another, for whole rounds of one fixed lookahead
    with a bonus token each.

    All but `per_test_acceptance` are functions of the mean accepted drafts per round and of γ
    alone, so they determine one another exactly; that holds for `paper_alpha` too, which is defined
    by inverting that mean. Acceptance per test does not follow from a mean over rounds unless every
    draft is accepted with the same probability, independently of the others: it then equals
    `paper_alpha`, and only `assume_geometric` allows it.

    Args:
      value: in the convention `source`.
      source: one of `CONVERTIBLE`.
      target: one of `CONVERTIBLE`.
      lookahead: γ ≥ 1 of every round.
      assume_geometric: take acceptance as independent and identically distributed.

    Raises:
      SdslError: a convention is unknown or cannot be converted, or the value lies outside the range
        of its convention.
    """
    require(
        int(lookahead) == lookahead and lookahead >= 1,
        f"the lookahead is {lookahead}; it must be a whole number of at least 1.",
    )
    for name in (source, target):
        require(
            name in CONVERTIBLE,
            f"the convention {name!r} does not determine the mean accepted drafts per round or is unknown; it must be one of "
            f"{', '.join(CONVERTIBLE)}.",
        )
        require(
            name != "per_test_acceptance" or assume_geometric or source == target,
            "per_test_acceptance does not follow from a mean over rounds, or the other way round; assume_geometric allows the "
            "conversion for acceptance that is independent and identically distributed.",
        )

    def from_mean(name: str, mean: float) -> float:
        if name in _LINEAR:
            offset, divisor = _LINEAR[name]
            return (mean + offset) / divisor(lookahead)
        return float(acceptance_from_tokens_per_round(1 + mean, lookahead))

    low, high = from_mean(source, 0.0), from_mean(source, float(lookahead))
    require(
        low - 1e-6 <= value <= high + 1e-6,
        f"{source} is {value}; at a lookahead of {lookahead} it must lie in [{low:g}, {high:g}].",
    )
    if source == target:
        return float(value)
    value = min(max(value, low), high)
    if source in _LINEAR:
        offset, divisor = _LINEAR[source]
        mean = value * divisor(lookahead) - offset
    else:
        mean = float(tokens_per_round(value, lookahead)) - 1
    return from_mean(target, mean)
