"""The command: runs the parts one after the other within the time, and prints the table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.accelerator.parts import CUT_OFF, PARTS, Part, json_file, run_part, slug, write
from sdsl_jax.compilation import compile_quickly, keep_compiled_programs

_RESULTS = Path(__file__).parents[1] / "results"
# What remains for the table when a part is ended because the time is over.
_TABLE_SECONDS = 3.0


def device_slug() -> str:
    """The device in a file name, without taking it: nvidia-h200, or cpu-2-cores."""
    name = f"cpu {os.cpu_count()} cores"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        name = (done.stdout.splitlines() or [name])[0] if done.returncode == 0 else name
    return slug(name)


def environment(part: Part, small: bool) -> dict[str, str]:
    """Variables of a part's process; those that are set already stay."""
    variables = dict(part.environment) | os.environ
    keep_compiled_programs(variables)
    if small:
        compile_quickly(variables)
    return variables


def run(part: Part, folder: Path, small: bool, seconds: float, left: float) -> dict[str, Any]:
    """Runs a part in a process of its own, and returns what its JSON holds.

    Args:
      part: The part.
      folder: Folder for the results.
      small: Whether to run the small form.
      seconds: What the part should take; it does less if that is short.
      left: Seconds after which it is ended.
    """
    path = json_file(folder, part.name)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.accelerator", "--out", str(folder.absolute())]
    command += ["--part", part.name, "--seconds", str(seconds), *(["--small"] if small else [])]
    process = subprocess.Popen(
        command, env=environment(part, small), cwd=Path(__file__).parents[2], stdout=sys.stderr
    )
    try:
        status = f"its process ended with status {process.wait(timeout=left)}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = "the time was over"
    values: dict[str, Any] = {"part": part.name, "question": part.question, "error": CUT_OFF}
    if path.exists():
        values = json.loads(path.read_text("utf-8"))
    if values["error"] == CUT_OFF:
        values["error"] = f"{CUT_OFF}: {status}"
        write(path, values)
    return values


def run_all(
    parts: list[Part], folder: Path, small: bool, minutes: float, console: Console
) -> list[dict[str, Any]]:
    """Runs the parts that fit, in order; those that do not are named in the result."""
    deadline = time.monotonic() + 60 * minutes - _TABLE_SECONDS
    expected = [part.small_seconds if small else part.seconds for part in parts]
    outcomes: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        left = deadline - time.monotonic()
        outcome: dict[str, Any] = {"part": part.name, "question": part.question, "error": None}
        began = time.monotonic()
        if left < expected[number]:
            outcome["skipped"] = f"{max(left, 0):.0f} s left of about {expected[number]:.0f} needed"
        else:
            # What later parts are not expected to need, an earlier one may use.
            seconds = max(expected[number], left - sum(expected[number + 1 :]))
            console.print(f"{part.name}: {part.question}", highlight=False)
            outcome = run(part, folder, small, seconds, left)
        outcomes.append(outcome | {"wall_seconds": time.monotonic() - began})
    return outcomes


def show(outcomes: list[dict[str, Any]], console: Console) -> None:
    """Prints the table of the parts: headline, goal, and whether it was reached."""
    devices = [outcome["device"] for outcome in outcomes if outcome.get("device")]
    table = Table("part", "question", "measured", "goal", "", "s", title=(devices or [""])[0])
    for outcome in outcomes:
        goal = outcome.get("goal")
        sign = "≤" if outcome.get("at_most") else "≥"
        no_number = "a trial" if outcome.get("small") else "no number"
        reached = {True: "reached", False: "missed", None: no_number}[outcome.get("reached")]
        measured = outcome.get("headline") or "–"
        if "skipped" in outcome:
            measured, reached = outcome["skipped"], "skipped"
        elif outcome["error"] is not None:
            measured, reached = outcome["error"].splitlines()[0], "failed"
        table.add_row(
            outcome["part"],
            outcome["question"],
            measured,
            "–" if goal is None else f"{sign} {goal:.3g}",
            reached,
            f"{outcome['wall_seconds']:.0f}",
        )
    console.print(table)


def main() -> None:
    """Runs the parts and prints the table; exits with 1 if one of them failed."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description="What does an accelerator reach? Every part writes its own JSON.",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--parts", default=",".join(names), help="which, comma-separated")
    parser.add_argument("--small", action="store_true", help="tiny models, on a CPU too: a trial")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part = next(part for part in PARTS if part.name == given.part)
        sys.exit(0 if run_part(part, given.out, given.small, given.seconds) else 1)
    if unknown := set(given.parts.split(",")) - set(names):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    small = "-small" if given.small else ""
    folder = given.out or _RESULTS / f"accelerator-{device_slug()}{small}"
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    parts = [part for part in PARTS if part.name in given.parts.split(",")]
    outcomes = run_all(parts, folder, given.small, given.minutes, console)
    show(outcomes, console)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    sys.exit(1 if any(outcome["error"] for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
