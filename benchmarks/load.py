"""`python -m benchmarks.load [--gigabytes 1] [--turns 3] [--json FILE]`: reading a published
checkpoint, beside transformers.

A Llama-shaped checkpoint of random weights is written once, in float32 and in bfloat16. Each
reading happens in a process of its own, in turn, and ends when the sum of every array has been
taken, so that weights which were only mapped into memory count as read. Memory is what the process
holds beyond what it held after its imports: at its peak all of it, and the part that is not backed
by the file. Needs torch and transformers: the extra "bench".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Type in the file, type in memory.
READINGS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"))
SIDES = ("sdsl_jax", "transformers")
_SHARDS = 4


def memory() -> tuple[float, float]:
    """Resident bytes of this process: in all, and those that are not backed by a file."""
    kinds = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return tuple(float(kinds[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


class Peak:
    """The largest memory while it is open, beyond that at its beginning; looked at every two milliseconds."""

    def __enter__(self) -> Peak:
        self._begin = self.most = memory()
        self._going = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._going:
            self.most = tuple(map(max, self.most, memory()))  # type: ignore[assignment]
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()

    def beyond(self) -> list[float]:
        """Bytes beyond the beginning: in all, and not backed by a file."""
        return [most - begin for most, begin in zip(self.most, self._begin)]


def write(folder: Path, gigabytes: float, dtype: str) -> None:
    """A checkpoint of about so many gigabytes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sdsl_jax.checkpoints.interop import export_llama
    from sdsl_jax.decoding import Model
    from sdsl_jax.models import ModelConfig, abstract_params, count

    size = 4 if dtype == "float32" else 2

    def config(layers: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=32_000, width=1024, layers=layers, heads=16, kv_heads=4, head_dim=64, hidden=2816, qk_norm=False,
            tie_embeddings=False, scale_embedding=False,
        )  # fmt: skip

    per_layer = count(config(2), 0).total - count(config(1), 0).total
    made = config(
        max(1, round((gigabytes * 1e9 / size - count(config(1), 0).total) / per_layer) + 1)
    )
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        return jnp.asarray(random.standard_normal(leaf.shape, np.float32) * 0.02).astype(dtype)

    params = jax.tree.map(draw, abstract_params(made))
    export_llama(Model(made, params), folder, shard_bytes=int(gigabytes * 1e9 / _SHARDS))


def read(side: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Seconds and memory of one reading; called in a process of its own."""
    if side == "sdsl_jax":
        import jax
        import jax.numpy as jnp

        from sdsl_jax.checkpoints.interop import open_checkpoint

        jax.block_until_ready(jnp.zeros(1))
        with Peak() as peak:
            began = time.perf_counter()
            params = open_checkpoint(folder).load(dtype)
            loaded = time.perf_counter() - began
            total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(params))
            read_in = time.perf_counter() - began
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    else:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        with Peak() as peak:
            began = time.perf_counter()
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            )
            loaded = time.perf_counter() - began
            with torch.no_grad():
                total = sum(float(p.sum()) for p in model.parameters())
            read_in = time.perf_counter() - began
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    everything, anonymous = peak.beyond()
    return {
        "seconds": read_in,
        "load_seconds": loaded,
        "peak": everything / weights,
        "peak_not_of_file": anonymous / weights,
        "weights": weights,
        "sum": total,
    }


def measure(gigabytes: float, turns: int, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Every reading on both sides, turn by turn."""
    folders = {dtype: folder / dtype for dtype in dict.fromkeys(stored for stored, _ in READINGS)}
    for dtype, path in folders.items():
        subprocess.run(
            [sys.executable, "-m", "benchmarks.load", "--write", str(path), dtype, str(gigabytes)],
            check=True,
        )
        console.print(f"{path.name}: {sum(f.stat().st_size for f in path.iterdir()) / 1e9:.2f} GB")
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for turn in range(turns + 1):  # the first one brings the files into the page cache
        for stored, dtype in READINGS:
            for side in SIDES:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.load",
                    "--read",
                    side,
                    str(folders[stored]),
                    dtype,
                ]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                if turn:
                    found.setdefault((stored, dtype, side), []).append(
                        json.loads(done.stdout.splitlines()[-1])
                    )
    return [
        {"stored": stored, "dtype": dtype, "side": side, "turns": turns}
        | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for (stored, dtype, side), runs in found.items()
    ]


def show(found: dict[str, Any], console: Console) -> None:
    """The table."""
    console.print(
        f"{found['device']}; {found['versions']}; load {found['load_before']:.1f} to {found['load_after']:.1f}"
    )
    table = Table(
        title="Reading a checkpoint; memory relative to the weights", title_justify="left"
    )
    for column in (
        "file → memory",
        "side",
        "seconds",
        "× transformers",
        "peak memory",
        "of it not the file's",
    ):
        table.add_column(column, justify="left" if column in ("file → memory", "side") else "right")
    peers = {
        (row["stored"], row["dtype"]): row for row in found["rows"] if row["side"] == "transformers"
    }
    for row in found["rows"]:
        ratio = row["seconds"] / peers[row["stored"], row["dtype"]]["seconds"]
        table.add_row(
            f"{row['stored']} → {row['dtype']}", row["side"], f"{row['seconds']:.2f}", f"{ratio:.2f}",
            f"{row['peak']:.2f}", f"{row['peak_not_of_file']:.2f}",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Prints the table; writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(Path(arguments.write[0]), float(arguments.write[2]), arguments.write[1])
        return
    if arguments.read:
        side, folder, dtype = arguments.read
        print(json.dumps(read(side, Path(folder), dtype)))
        return
    from importlib.metadata import version

    names = ("jax", "safetensors", "torch", "transformers")
    found: dict[str, Any] = {
        "device": f"{os.cpu_count()} CPU cores",
        "versions": f"python {platform.python_version()}, "
        + ", ".join(f"{n} {version(n)}" for n in names),
        "gigabytes": arguments.gigabytes,
        "load_before": os.getloadavg()[0],
    }
    console = Console(width=None if os.isatty(1) else 130)
    with tempfile.TemporaryDirectory() as folder:
        found["rows"] = measure(arguments.gigabytes, arguments.turns, Path(folder), console)
    found["load_after"] = os.getloadavg()[0]
    found["finished"] = time.strftime("%Y-%m-%d")
    show(found, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
