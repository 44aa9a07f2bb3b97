"""What a part is, what its JSON holds, and how it runs in its process.

This module imports no jax: the parent process must not take the device, and one part sets flags of
XLA before jax is imported.
"""

from __future__ import annotations

import importlib
import json
import math
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdsl_jax.errors import SdslError


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
      name: Name of the part, of its module and of its JSON.
      question: What it answers, in a few words.
      seconds: What it is expected to take on an H100, start and compilation included. These are
        guesses until an accelerator has run it: about 3 s for a program of the sizes used, several
        compiled side by side.
      small_seconds: The same for the small form on two cores.
      environment: Variables that its process gets.
    """

    name: str
    question: str
    seconds: float
    small_seconds: float
    environment: dict[str, str] = field(default_factory=dict)


# Torch needs memory of the same device for the race: JAX takes three quarters of it otherwise.
_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
PARTS = (
    # 48 programs of passes and rounds, in groups that are left out when time is short.
    Part("calibration", "times of passes, as a hardware file", 170, 40, {_MEMORY: "0.9"}),
    # A training step of 14 layers, and a second one of 20 if there is time.
    Part("training", "training, 100M parameters, T = 1024", 75, 20, {_MEMORY: "0.9"}),
    # 15 programs of two models of 29 and 5 layers, and the start of transformers.
    Part("decoding", "tokens/s over transformers, batch 1", 120, 30, {_MEMORY: "0.5"}),
    # Three programs at each of two shapes.
    Part("attention", "fused attention against float32", 45, 10),
    # Four tiny models' loops.
    Part("losslessness", "joint χ² of bfloat16 output", 50, 20),
)

# Keys of every JSON.
KEYS = (
    "part", "question", "small", "device", "backend", "versions", "finished", "seconds",
    "compile_seconds", "headline", "value", "goal", "at_most", "reached", "error", "traceback",
    "result",
)  # fmt: skip
CUT_OFF = "the part was cut off"


@dataclass(frozen=True)
class Measured:
    """What a part found.

    Attributes:
      headline: The number in words.
      value: The number that the goal is about; NaN where this device cannot give it.
      goal: What was wanted.
      result: Everything else, as a tree for JSON.
      at_most: Whether the value should be at most the goal, and not at least.
      extras: What else is worth knowing, as entries of the result. It is called once the number is
        written, since a profiler may end the process.
    """

    headline: str
    value: float
    goal: float
    result: dict[str, Any]
    at_most: bool = False
    extras: Callable[[], dict[str, Any]] | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None if there is no value."""
        if not math.isfinite(self.value):
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass(frozen=True)
class Task:
    """What a part is given.

    Attributes:
      small: Whether to run the small form.
      folder: Folder for files beside the JSON.
      deadline: When it should be done, on the clock of `time.monotonic`.
      keep: Writes an unfinished result, so that a part which is cut off keeps it.
    """

    small: bool
    folder: Path
    deadline: float
    keep: Callable[[dict[str, Any]], None]

    @property
    def seconds_left(self) -> float:
        """Seconds until it should be done."""
        return self.deadline - time.monotonic()


def slug(name: str) -> str:
    """A name as a part of a file name: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def json_file(folder: Path, name: str) -> Path:
    """The JSON of a part."""
    return folder / f"{name}.json"


def write(path: Path, values: dict[str, Any]) -> None:
    """Writes a tree as JSON, at once; numbers that are not finite become null."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {str(key): plain(value) for key, value in x.items()}
        if isinstance(x, list | tuple):
            return [plain(value) for value in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(plain(values), indent=1, allow_nan=False) + "\n", "utf-8")
    partial.replace(path)


def progress(text: str) -> None:
    """Prints a line about the work at once."""
    print(f"  {text}", file=sys.stderr, flush=True)


def run_part(part: Part, folder: Path, small: bool, seconds: float) -> bool:
    """Runs a part in this process and writes its JSON; returns whether it succeeded."""
    began = time.monotonic()
    values: dict[str, Any] = dict.fromkeys(KEYS)
    values |= {"part": part.name, "question": part.question, "small": small, "error": CUT_OFF}
    path = json_file(folder, part.name)

    def keep(result: dict[str, Any]) -> None:
        values.update(result=result, seconds=time.monotonic() - began)
        write(path, values)

    keep({})
    try:
        # Before jax: a part may set flags of XLA.
        module = importlib.import_module(f"benchmarks.accelerator.{part.name}")
        import jax

        from sdsl_jax.device import device_name
        from sdsl_jax.training.metrics import compile_seconds

        values |= {
            "device": device_name(),
            "backend": jax.default_backend(),
            "versions": f"python {platform.python_version()}, jax {jax.__version__}",
        }
        if jax.default_backend() == "cpu" and not small:
            raise SdslError("JAX sees no accelerator; --small tries the parts on a CPU.")
        found = module.measure(Task(small, folder, began + seconds, keep))
        values |= {
            "finished": time.strftime("%Y-%m-%d"),
            "compile_seconds": compile_seconds(),
            "headline": found.headline,
            "value": found.value,
            "goal": found.goal,
            "at_most": found.at_most,
            # The goals are not about the small form.
            "reached": None if small else found.reached,
            "error": None,
        }
        keep(found.result)
        if found.extras is not None:
            keep(found.result | _extras(found.extras))
    except Exception as error:
        values |= {
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
        keep(values["result"])
    return values["error"] is None


def _extras(extras: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What follows a part's number, which it cannot make a failure any more."""
    try:
        return extras()
    except Exception as error:
        return {"extras_error": f"{type(error).__name__}: {error}"}
