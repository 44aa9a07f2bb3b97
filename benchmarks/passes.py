"""`python -m benchmarks.passes [--turns 3] [--sizes 5m,33m,135m] [--json FILE]`: passes of a few
tokens on a CPU, by the package's own product of few rows and by XLA's, and with weights stored as
bfloat16 and int8.

A process of its own for each side and turn, since a compiled step keeps the product that it was
traced with; in it all widths of one size run in turn. Figures are in steps of the same process and
the same weights, so that a machine whose speed drifts does not decide.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sdsl_jax.models.weights import WeightStorage, store

SIZES = {"500k": 500_000, "5m": 5_000_000, "33m": 33_000_000, "135m": 0}  # 0: SmolLM2-135M's shape
PASSES = {"1": (1, 1), "2": (2, 1), "3": (3, 1), "5": (5, 1), "9": (9, 1), "batch 8": (1, 8)}
CONTEXT = 64
SIDES = {"own": "0", "xla": "1"}  # what SDSL_NO_SMALL_MATMUL is set to
# Weights, by how they are stored. XLA's product is timed with float32 alone.
WEIGHTS: dict[str, WeightStorage] = {
    "float32": "as-loaded",
    "bfloat16": "bfloat16",
    "int8": "int8",
}


def measure(sizes: list[str], repetitions: int) -> dict[str, Any]:
    """Seconds of every pass of every size, and bytes of the weights, in this process."""
    import jax

    from benchmarks.decode.floor import device
    from sdsl_jax.config import FamilyConfig
    from sdsl_jax.decoding import Model
    from sdsl_jax.measurement.latency import Step, time_steps
    from sdsl_jax.models import ModelConfig, init_params, member
    from sdsl_jax.models.small_matmul import unavailable

    smollm2 = ModelConfig(
        49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, hidden=1536
    )
    result: dict[str, Any] = {"device": device(), "unavailable": unavailable()}
    for size in sizes:
        config = member(FamilyConfig(), SIZES[size], 256) if SIZES[size] else smollm2
        model = Model(config, init_params(config, jax.random.key(0)))
        stored = {
            weights: Model(config, store(model.params, storage))
            for weights, storage in WEIGHTS.items()
            if weights == "float32" or not unavailable(weights)
        }
        steps = {
            f"{weights}/{name}": Step(each, width, CONTEXT, batch)
            for weights, each in stored.items()
            for name, (width, batch) in PASSES.items()
        }
        seconds = time_steps(steps, repetitions=repetitions, confidence=0.9)
        result[size] = {
            weights: {
                "bytes": sum(x.nbytes for x in jax.tree.leaves(each.params)),
                "seconds": {name: seconds[f"{weights}/{name}"].estimate for name in PASSES},
            }
            for weights, each in stored.items()
        }
    return result


def main() -> None:
    """Runs both sides in turn, prints the ratios and writes the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.passes", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--turns", type=int, default=3, help="processes of each side")
    parser.add_argument("--repetitions", type=int, default=15, help="timed runs in each")
    parser.add_argument("--sizes", default="5m,33m,135m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--json", type=Path, help="file to write every number to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = given.sizes.split(",")
    if unknown := set(sizes) - set(SIZES):
        parser.error(f"unknown sizes: {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")
    if given.child:
        print(json.dumps(measure(sizes, given.repetitions)))
        return
    command = [sys.executable, "-m", "benchmarks.passes", "--child", "--sizes", given.sizes]
    command += ["--repetitions", str(given.repetitions)]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(given.turns):
        for side, off in SIDES.items():
            done = subprocess.run(
                command,
                env=os.environ | {"SDSL_NO_SMALL_MATMUL": off},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            runs[side].append(json.loads(done.stdout))
    if reason := runs["own"][0]["unavailable"]:
        sys.exit(f"The product of few rows is not available: {reason}")
    title = "Passes, in steps of the same weights: median (range)"
    head = ("size", "product", "weights", "step, ms", "of float32")
    table = Table(*head, *PASSES, title=title)
    for size in sizes:
        for side, weights in [(s, w) for s in SIDES for w in runs[s][0][size]]:
            times = [run[size][weights]["seconds"] for run in runs[side]]
            of_float32 = statistics.median(
                t["1"] / run[size]["float32"]["seconds"]["1"] for t, run in zip(times, runs[side])
            )
            cells = []
            for name in PASSES:
                ratios = sorted(t[name] / t["1"] for t in times)
                middle = statistics.median(ratios)
                cells.append(f"{middle:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})")
            step = statistics.median(t["1"] for t in times)
            table.add_row(size, side, weights, f"{1e3 * step:.3f}", f"{of_float32:.2f}", *cells)
    Console(width=None if sys.stdout.isatty() else 170).print(table)
    if given.json:
        result = {
            "device": runs["own"][0]["device"],
            "command": " ".join(["python -m benchmarks.passes", *sys.argv[1:]]),
            "runs": runs,
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
