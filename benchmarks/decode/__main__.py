"""`python -m benchmarks.decode [--json FILE] [--sizes 1m,33m] [--quick]`: our decoders beside
Hugging Face transformers.

The same float32 weights in both, on the same machine, in turn: sampling at temperature 1 without
filters, prompts of 32 tokens, no stop token, cache on; `generate` with and without an assistant at
a fixed number of assistant tokens, against `autoregress` and `speculate`. Beside them the floor
that memory and arithmetic set, and the cost model's prediction. Needs `pip install
'sdsl_jax[bench]'`; without torch and transformers, or where torch lacks the device, ours run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.decode import floor, report
from benchmarks.decode import peer as transformers
from benchmarks.decode.pairs import LADDER, SIZES
from benchmarks.decode.race import Machine, Options, measure
from sdsl_jax.errors import SdslError, require

# Far more than any cache holds.
_MEMORY_BYTES = 1 << 29


def run(sizes: list[str], options: Options, with_peer: bool, say: Any) -> dict[str, Any]:
    """The whole benchmark, as a tree for JSON."""
    peer, device, peer_versions = (
        transformers.start(say) if with_peer else (None, "", "without transformers")
    )
    try:
        say("measuring bandwidth and arithmetic")
        dtype = jnp.dtype(options.dtype)
        machine = Machine(floor.bandwidth(_MEMORY_BYTES, dtype), floor.matmul_flops(dtype))
        measured = [measure(size, options, machine, peer, device, say) for size in sizes]
    finally:
        if peer is not None:
            peer.close()
    return {
        "command": " ".join(["python -m benchmarks.decode", *sys.argv[1:]]),
        "device": floor.device(),
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "versions": f"python {platform.python_version()}, jax {jax.__version__}, {peer_versions}",
        "options": asdict(options),
        "machine": asdict(machine),
        "sizes": measured,
        "goals": [goal for size in measured for goal in report.goals(size)],
    }


def main() -> None:
    """Runs, prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--json", type=Path, help="file to write every number to")
    parser.add_argument(
        "--sizes", default="1m,33m", help=f"comma-separated, of {', '.join((*SIZES, LADDER))}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few tokens and turns: a trial, not a measurement"
    )
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--new-tokens", type=int, help="tokens that every row emits")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--qk-norm", action="store_true", help="Qwen3's layout instead of Llama's")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    given = parser.parse_args()
    defaults = Options(new_tokens=24, rounds=2, quick=True) if given.quick else Options()
    console = Console(width=None if sys.stdout.isatty() else 140)
    progress = Console(stderr=True)
    try:
        sizes = given.sizes.split(",")
        known = (*SIZES, LADDER)
        unknown = [size for size in sizes if size not in known]
        require(
            not unknown,
            f"the sizes hold {unknown[0] if unknown else ''!r}; there are {', '.join(known)}.",
        )
        folder = given.json.absolute().parent if given.json else Path()
        require(folder.is_dir(), f"there is no folder {folder} to write the JSON to.")
        options = Options(
            new_tokens=given.new_tokens or defaults.new_tokens,
            rounds=given.rounds or defaults.rounds,
            dtype=given.dtype,
            qk_norm=given.qk_norm,
            quick=given.quick,
        )
        require(
            options.new_tokens >= 8, f"--new-tokens is {options.new_tokens}; it must be at least 8."
        )
        require(options.rounds >= 1, f"--rounds is {options.rounds}; it must be at least 1.")
        began = time.perf_counter()

        def say(text: str) -> None:
            progress.print(
                f"{time.perf_counter() - began:5.0f} s  {text}", style="dim", highlight=False
            )

        result = run(sizes, options, not given.no_peer, say)
    except SdslError as error:
        progress.print(f"error: {error}")
        sys.exit(2)
    report.show(result, console)
    if given.json:
        partial = given.json.with_name(given.json.name + ".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.rename(given.json)


if __name__ == "__main__":
    main()
