"""A peer in a process of its own, so that its threads and XLA's never share one; requests and
answers are JSON lines.

This module imports no jax: the child imports it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdsl_jax.errors import SdslError

# torch's idle threads spin for about a millisecond, and XLA's no longer: after this long neither
# takes time from the other.
SETTLE_SECONDS = 0.02


class ChildProcess:
    """The parent's side: starts `python -m module`, sends it requests and reads its answers.

    Attributes:
      runs: what the child runs, for messages.
    """

    def __init__(
        self,
        module: str,
        runs: str,
        prefix: tuple[str, ...] = (),
        python: str | os.PathLike = sys.executable,
    ) -> None:
        self.runs = runs
        self._process = subprocess.Popen(
            [*prefix, str(python), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[1],
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
          SdslError: the child failed or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        time.sleep(SETTLE_SECONDS)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise SdslError(f"the process that runs {self.runs} could not {do}: {answer['error']}.")
        return answer

    def close(self) -> None:
        """Ends the child."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(make: Callable[[], Any]) -> None:
    """The child's side: answers each request by the method that it names, until standard input
    ends.

    What libraries print goes to standard error, so that standard output carries answers alone.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    child = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            child = child or make()
            answer = getattr(child, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
