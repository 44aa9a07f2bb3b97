"""Is the decoder lossless on the device? The joint χ² test of `benchmarks.lossless`.

Its cells in bfloat16 cover both rules of verification, a filter, a ragged batch and a batch of one;
a float32 cell stands beside them and tells a wrong decoder from bfloat16's rounding.
"""

from __future__ import annotations

from typing import Any

from benchmarks import lossless  # first: it sets flags of XLA
from benchmarks.accelerator.parts import Measured, Task, progress
from sdsl_jax.errors import require

# The chance of a false alarm in all tests together.
FALSE_ALARM = 1e-6
# With the number of samples: a batch of one runs its samples one after another.
CELLS = (
    (lossless.Cell(4, "ragged", 1.0, "none", "bfloat16", "token"), 40_000),
    (lossless.Cell(4, "ragged", 0.7, "top-p", "bfloat16", "block"), 40_000),
    (lossless.Cell(4, "ragged", 1.0, "none", "float32", "token"), 40_000),
    (lossless.Cell(2, "1", 1.0, "none", "bfloat16", "token"), 4_096),
)
SMALL_CELLS = ((lossless.Cell(2, "ragged", 1.0, "none", "bfloat16", "token"), 8_192),)


def measure(task: Task) -> Measured:
    """Tests every cell.

    Raises:
      SdslError: A cell's run contradicts itself or its target, so that there is nothing to test.
    """
    result: dict[str, Any] = {"cells": {}}
    for cell, samples in SMALL_CELLS if task.small else CELLS:
        progress(str(cell))
        entry: dict[str, Any] = {"samples": samples}
        try:
            entry["p"] = list(lossless.check(cell, samples))
        except AssertionError as error:
            entry["failed"] = str(error)
        result["cells"][str(cell)] = entry
        task.keep(result)
    failed = {name: c["failed"] for name, c in result["cells"].items() if "failed" in c}
    require(not failed, "; ".join(f"{name}: {why}" for name, why in failed.items()))
    values = [p for c in result["cells"].values() for p in c["p"]]
    headline = f"smallest p of {len(values)} tests {min(values):.2g}"
    return Measured(headline, min(values), FALSE_ALARM / len(values), result)
