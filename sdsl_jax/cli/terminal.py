"""How the command shows what it is doing."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from sdsl_jax.cli import streams


class _Page(Console):
    """A console that lays tables out in the letters that its stream can show."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Styled text, of which rich makes every cell."""
        return super().render_str(
            text if self.encoding.startswith("utf") else streams.plain(text), **options
        )

    def on_broken_pipe(self) -> None:
        """Lets the command decide how it ends; rich would exit here and close standard output."""
        raise


def standard_console() -> Console:
    """The terminal; elsewhere a page wide enough for the tables."""
    return _Page(width=None if sys.stdout.isatty() else 124)


def error_console() -> Console:
    """Standard error, for progress beside an answer that goes to standard output."""
    return _Page(file=cast(TextIO, _StandardError()))


def say(console: Console, text: str) -> None:
    """Prints text as it is, however long its lines are."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints an answer as one JSON value."""
    from sdsl_jax.records.documents import to_json

    print(json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False))


def table(
    title: str | None, columns: Sequence[str | Column], rows: Iterable[Sequence[str]]
) -> Table:
    """A table of numbers, with words in its first column and in those that a `Column` describes."""
    first, *others = columns
    headers = [
        Column(first, no_wrap=True) if isinstance(first, str) else first,
        *(Column(one, justify="right") if isinstance(one, str) else one for one in others),
    ]
    made = Table(*headers, title=title, title_justify="left")
    for row in rows:
        made.add_row(*row)
    return made


class _StandardError:
    """Standard error, where it can be written; progress that nobody can read stops no work."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        # Under this name rich looks for the stream behind sys.stderr, which it replaces while it
        # draws.
        self.rich_proxied_file = self

    def write(self, text: str) -> int:
        """Writes, or passes over the text."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            streams.discard(2)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Terminal:
    """Draws a progress bar on a terminal; elsewhere prints a line per stage and half minute."""

    def __init__(self, console: Console):
        self._console, self._live = console, console.is_terminal
        self._bar: Progress | None = None
        self._task, self._done, self._total, self._began, self._spoke = "", 0.0, 1.0, 0.0, 0.0

    def note(self, text: str) -> None:
        """Prints a line; on a terminal above the bar."""
        self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    def start(self, task: str, total: float) -> None:
        """Announces a task."""
        self._task, self._done, self._total = task, 0.0, max(total, 1e-9)
        self._began = self._spoke = time.perf_counter()
        if not self._live:
            self._console.print(f"{task} ...", highlight=False)
            return
        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.add_task(task, total=total, detail="")
        self._bar.start()

    def advance(self, amount: float, detail: str = "") -> None:
        """Moves the bar."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, advance=amount, detail=detail)
        elif time.perf_counter() - self._spoke > 30:
            self._spoke = time.perf_counter()
            elapsed = self._spoke - self._began
            left = elapsed * (self._total / max(self._done, 1e-9) - 1)
            self._console.print(
                f"  {self._done / self._total:4.0%}, {left:.0f} s left: {detail}",
                highlight=False,
                soft_wrap=True,
            )

    def finish(self) -> None:
        """Takes the bar away and says how long the task took."""
        self.close()
        self._console.print(
            f"{self._task}: done in {time.perf_counter() - self._began:.0f} s", highlight=False
        )

    def close(self) -> None:
        """Takes the bar away, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def shown_progress(json: bool) -> Iterator[Terminal | None]:
    """Progress on standard error; None beside JSON, unless a terminal shows it."""
    progress = None if json and not sys.stderr.isatty() else Terminal(error_console())
    try:
        yield progress
    finally:
        if progress is not None:
            progress.close()
