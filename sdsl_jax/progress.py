"""How long-running stages report what they are doing, without printing anything themselves."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a stage reports. The command line draws it; notebooks may ignore it."""

    def note(self, text: str) -> None:
        """One line worth keeping."""
        ...

    def start(self, task: str, total: float) -> None:
        """A task of `total` units begins; it becomes the current one."""
        ...

    def advance(self, amount: float, detail: str = "") -> None:
        """The current task has done `amount` more units."""
        ...

    def finish(self) -> None:
        """The current task is done."""
        ...


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None:
        """Passes over the line."""

    def start(self, task: str, total: float) -> None:
        """Passes over the task."""

    def advance(self, amount: float, detail: str = "") -> None:
        """Passes over the advance."""

    def finish(self) -> None:
        """Passes over the end."""
