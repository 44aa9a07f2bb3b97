"""A chat template is a program that comes with a checkpoint. It is rendered in a process of its
own, within limits.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from sdsl_jax.errors import SdslError
from sdsl_jax.user_files import parse_json, reason

_SCRIPT = Path(__file__).with_name("render_template.py")


class ChatTemplate:
    """A template in the language of jinja. One process renders everything and ends with this
    object.

    A rendering may take 2 seconds of processor time, 256 MB of memory (on Linux), and a million
    characters beyond its messages.
    """

    def __init__(self, source: str, file: str | Path = ""):
        self._name = f"the chat template of {file}" if file else "the chat template"  # in messages
        self._source, self._process = source, None  # type: str, subprocess.Popen[str] | None

    def render(self, messages: list[dict[str, str]], named: dict[str, str]) -> str:
        """The text of some messages, followed by what invites an answer.

        Args:
          messages: Messages, each with a role and its content.
          named: Special tokens by name, such as eos_token.

        Raises:
          SdslError: The template is not valid, fails, or exceeds its limits.
        """
        request: dict[str, Any] = {
            "messages": messages,
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        try:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(named | request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError as error:
            line, why = "", reason(error)
        else:
            why = "it takes more than 2 seconds or 256 MB"
        if not line.endswith("\n"):
            self._stop()
            raise SdslError(f"{self._name} cannot be rendered: {why}.")
        answer = parse_json(line, f"what {self._name} gives")
        if "error" in answer:
            why = " ".join(answer["error"].split()).rstrip(".")
            raise SdslError(f"{self._name} cannot be rendered: {why}.")
        return answer["text"]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
            weakref.finalize(self, _end, self._process)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(self._source) + "\n")
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
