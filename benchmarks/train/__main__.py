"""Our training step against the same model in PyTorch, eager and compiled, side by side.

    python -m benchmarks.train [--sizes 25k,149k,786k,2.7M,6.3M] [--repetitions 7] [--out FILE.json]
    [--json]

Ours also runs as one rung per core, each in a process bound to it, which is how small rungs are
trained; the tokens of all count.
Both start from the same weights and take the same batches in float32, and their losses must agree.
Repetitions are interleaved, in processes of their own; both allocate through huge pages
(sdsl_jax.cli.memory) unless SDSL_NO_HUGE_PAGES=1. Needs the extra `bench`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from sdsl_jax.cli.memory import use_huge_pages

GOAL = 0.9
_SECONDS_PER_REPETITION = 1.5


def main(
    sizes: str = "25k,149k,786k,2.7M,6.3M",
    repetitions: int = 7,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Race training steps.

    Args:
        sizes: which of the five.
        repetitions: of each contender, interleaved.
        out: a file for the results.
        as_json: print them instead of the table.
    """
    from benchmarks.train.race import race

    names = sizes.split(",")
    stream = sys.stderr if as_json else sys.stdout
    console = Console(stderr=as_json, width=None if stream.isatty() else 150)
    found: dict[str, Any] = {
        "goal": GOAL,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    found["huge_pages"] = "GLIBC_TUNABLES" in os.environ
    found["sizes"] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            console.print(f"{name} ...", highlight=False)
            found["sizes"].append(
                race(name, repetitions, _SECONDS_PER_REPETITION, Path(folder), found)
            )
    found["finished"] = time.strftime("%Y-%m-%d")
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(
        title=f"Training step, T = 256, B = 16, V = 512, float32, {found['cores']} cores",
        title_justify="left",
    )
    for heading in (
        "parameters",
        "ours\ntok/s",
        "PyTorch\ntok/s",
        "compiled\ntok/s",
        "ratio to\neager",
        "goal",
        "rung per\ncore, tok/s",
        "ratio to\neager",
    ):
        table.add_column(heading, justify="right")
    for heading in ("share of\nmatmul peak", "compile\ns", "loss\ndifference"):
        table.add_column(heading, justify="right")
    for row in found["sizes"]:
        compiled = row["compiled_tokens_per_second"]
        table.add_row(
            row["size"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['eager_tokens_per_second']:,.0f}",
            f"{compiled:,.0f}" if compiled else "–",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
            "met" if row["ratio"] >= GOAL else "missed",
            f"{row['rungs_tokens_per_second']:,.0f}" if row["rungs_at_once"] else "–",
            f"{row['rungs_ratio']:.2f}" if row["rungs_at_once"] else "–",
            f"{row['share_of_peak']:.0%}",
            f"{row['compile_seconds']:.1f}",
            f"{row['loss_difference']:.0e}",
        )
    console.print(table)
    if reason := next(
        (row["compile_error"] for row in found["sizes"] if row["compile_error"]), None
    ):
        console.print(f"torch.compile did not work: {reason}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    use_huge_pages()
    tyro.cli(main, args=sys.argv[1:])
