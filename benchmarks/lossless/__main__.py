"""`python -m benchmarks.lossless [--kinds all] [--samples N] [--json FILE]`: every combination of settings, a line for each."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats

from benchmarks.lossless import KINDS, KindCell, check, check_kind, kind_cells, product


def main() -> None:
    """Runs the full product and prints a line per cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000, help="sequences per cell and prompt")
    parser.add_argument(
        "--kinds",
        help=f"check kinds of draft instead, all or some of {', '.join(KINDS)}, separated by commas",
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    cells: list[Any] = product()
    if arguments.kinds:
        kinds = tuple(KINDS) if arguments.kinds == "all" else tuple(arguments.kinds.split(","))
        if strange := {*kinds} - {*KINDS}:
            parser.error(f"there is no kind {', '.join(strange)}; the kinds are {', '.join(KINDS)}")
        cells = kind_cells(kinds)
    began, found = time.perf_counter(), {}
    for number, cell in enumerate(cells, 1):
        run: Any = check_kind if isinstance(cell, KindCell) else check
        found[str(cell)] = list(run(cell, arguments.samples))
        print(
            f"{number:4d}/{len(cells)}  {cell!s:40s}  p = {', '.join(f'{p:.3g}' for p in found[str(cell)])}",
            flush=True,
        )
    values = np.asarray([p for ps in found.values() for p in ps])
    # At temperature 0 there is one sequence and nothing to test beyond its being the only one.
    tested = values[values < 1]
    smallest, allowed = float(values.min()), 1e-6 / len(values)
    uniform = scipy.stats.kstest(tested, "uniform").pvalue
    print(
        f"{len(values)} tests in {time.perf_counter() - began:.0f} s; smallest p {smallest:.2g} (fails below {allowed:.1g}, "
        f"a false alarm of 1e-6 in all); p-values against uniform: {uniform:.2g} by Kolmogorov and Smirnov over {len(tested)}"
    )
    if arguments.json:
        result = {
            "samples": arguments.samples,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }
        result |= {"smallest": smallest, "uniformity": float(uniform), "p": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if smallest >= allowed and not math.isnan(smallest) else 1)


if __name__ == "__main__":
    main()
