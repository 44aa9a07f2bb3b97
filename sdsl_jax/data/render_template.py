"""Renders chat templates in a process of its own, within limits of time and memory; `chat_template`
starts it.

It runs as a script and imports nothing of the package, so that it starts at once. Each line it
reads is JSON, and so is each answer: {"text": ...} or {"error": ...}. A rendering that takes too
long ends the process.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY_BYTES = 2, 256 << 20
# Characters that a template may add to its messages.
LONGEST = 1 << 20
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any
) -> str:
    # jinja's own escapes what matters in HTML alone.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _limit_memory() -> None:
    """Limits memory beyond what the interpreter holds already. Only Linux reports that amount and
    enforces the limit.
    """
    try:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = held + MEMORY_BYTES
        resource.setrlimit(
            resource.RLIMIT_AS,
            (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard),
        )
    except (OSError, ValueError):
        pass


def _render(template: Any, request: dict[str, Any]) -> dict[str, str]:
    # Of processor time, so that a busy machine changes nothing; the signal ends the process,
    # whatever it is in.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        length, parts = 0, []
        for part in template.generate(request):
            length += len(part)
            if length > LONGEST + sum(len(message["content"]) for message in request["messages"]):
                return {"error": f"it gives more than {LONGEST:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MB"}
    except Exception as error:  # a template is a program, and may fail in any way
        return {"error": str(error) or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Reads a template and then requests, one a line, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: time.strftime(form),
    }
    environment.filters["tojson"] = _to_json
    _limit_memory()
    template, failure = None, {}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        # It marks what an assistant wrote, for training; it prints nothing.
        source = _GENERATION.sub("", json.loads(sys.stdin.readline()))
        template = environment.from_string(source)
    except MemoryError:
        failure = {"error": f"it needs more than {MEMORY_BYTES >> 20} MB"}
    except Exception as error:
        failure = {"error": str(error) or type(error).__name__}
    signal.setitimer(signal.ITIMER_PROF, 0)
    for line in sys.stdin:
        answer = _render(template, json.loads(line)) if template is not None else failure
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
