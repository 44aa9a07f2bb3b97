"""The penalty on the shape of a draft that follows from the literature; no jax, no arrays."""

from __future__ import annotations

import math


def kaplan_penalty(reference: float) -> float:
    """κ of Kaplan et al. (2001.08361, Fig. 5) for losses that are least at the aspect ratio
    `reference`.

    They find a model of 6 layers, 4288 wide, within 3% of the loss of one of 48 layers, 1600 wide:
    ratios of 714.7 and 33.3. So κ·[ln²(714.7/r₀) − ln²(33.3/r₀)] = 0.03: 0.0056 at r₀ = 64. Past
    the middle of the two the first would be the better one.
    """
    wide, deep = (math.log(ratio / reference) ** 2 for ratio in (4288 / 6, 1600 / 48))
    return 0.03 / (wide - deep)


# Nearer to 154, the middle of the two ratios, their losses say little about κ, and there it would
# be infinite.
LARGEST_REFERENCE = 128.0
