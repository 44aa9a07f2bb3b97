"""What `--launch local` gains: a ladder of twelve small rungs in one process and in jobs of one processor each.

    python -m benchmarks.launch            # five minutes on two cores

The two take turns, after a first training that leaves both the same compiled programs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_STUDY = """\
name = "twelve"
[data]
source = "sotu"
test_from_year = 2009
tokenizer = "bytes"
sequence_length = 128
[family]
aspect_ratio = 32
head_dim = 32
[ladder]
draft_params = [6e3, 15e3, 38e3]
draft_tokens = [0.7e6]
target_params = [60e3]
target_tokens = [1.4e6]
seeds = [0, 1, 2]
[training]
batch_size = 8
learning_rate = 7e-3
learning_rate_exponent = 0.4
warmup_tokens = 100e3
evaluation_windows = 96
"""


def train(folder: Path, out: str, *more: str) -> float:
    """Seconds that `sdsl train` takes on the twelve rungs, from its start to its end."""
    study = folder / "twelve.toml"
    study.write_text(_STUDY)
    command = [sys.executable, "-m", "sdsl_jax.cli", "train", str(study), "--out"]
    began = time.perf_counter()
    subprocess.run([*command, str(folder / out), *more], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Prints the seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=1)
    given = parser.parse_args()
    jobs = ("--launch", "local", "--jobs", str(given.jobs))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        quick = ("--ladder.draft_tokens=[1e5]", "--ladder.target_tokens=[1e5]")
        for how, name in (((), "one-warm"), (jobs, "jobs-warm")):
            train(folder, name, *quick, *how)
        for i in range(given.repetitions):
            one, several = train(folder, f"one-{i}"), train(folder, f"jobs-{i}", *jobs)
            print(
                f"one process {one:.1f} s, {given.jobs} jobs {several:.1f} s: {one / several:.2f}×"
            )


if __name__ == "__main__":
    main()
