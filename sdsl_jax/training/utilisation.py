"""How much of an accelerator's arithmetic training used."""

from __future__ import annotations

import math
from typing import NamedTuple

from sdsl_jax.records import ModelRecord

# Dense bfloat16 peak, FLOP/s, by what the device calls itself; the vendors' data sheets.
_PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Utilisation(NamedTuple):
    """Model FLOPs of training per second, and their share of the devices' peak.

    Attributes:
      flops_per_second: of forward and backward pass, three times the forward pass's; what remat
        computes twice counts once.
      share: of the bfloat16 peak of all devices together; NaN where the peak is not known, as on
        CPUs.
    """

    flops_per_second: float
    share: float


def utilisation(record: ModelRecord) -> Utilisation:
    """Model FLOPs utilisation (MFU) of the training that led to a model, compilation left out.

    Args:
      record: of the model; NaN where it holds no time.
    """
    flops_per_second = 3 * record.flops_per_token * record.tokens_per_second
    count, _, kind = record.device.partition(" x ")
    peak = next((peak for name, peak in _PEAKS.items() if name in kind), math.nan)
    share = flops_per_second / (int(count) * peak) if count.isdecimal() else math.nan
    return Utilisation(flops_per_second, share)
