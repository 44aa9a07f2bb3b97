"""`sdsl launch`: how the jobs of `--launch` stand, live, and how to stop them."""

from __future__ import annotations

import math
import shlex
import subprocess
import time
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional, arg

from sdsl_jax.cli.interruption import interruption
from sdsl_jax.cli.terminal import say, standard_console, table
from sdsl_jax.errors import SdslError, require
from sdsl_jax.launch.records import STOP, Launch
from sdsl_jax.launch.status import PartStatus, StageStatus, Status, read_status, stop_commands

_LIVE_SECONDS, _LINE_SECONDS = 2.0, 30.0
# Tasks save a checkpoint before they end.
_STOP_SECONDS = 120.0
# Parts that are listed; of more, those that are taken and counts of the others.
_LISTED = 40


def launch(
    action: Annotated[Literal["status", "stop"], Positional, arg(metavar="status|stop")],
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
) -> None:
    """Show how launched jobs stand, or stop them.

    status lists the parts of the work, who has them, how fast they go and what is left, and tasks
    that failed with their last words. On a terminal it stays and follows them; Ctrl-C ends the list,
    not the jobs. stop ends the jobs in good order: what they have done is kept, and the same
    --launch goes on from there.

    Args:
        action: status or stop.
        folder: Folder of the study or protocol that was launched.
    """
    status = read_status(folder)
    if status is None:
        raise SdslError(f"nothing was launched in {str(folder)!r}.")
    console = standard_console()
    if action == "stop":
        _stop(console, folder, status)
        return
    follow(console, folder, stay=console.is_terminal)


def _stop(console: Console, folder: Path, status: Status) -> None:
    """Ends the jobs, and waits until they have ended."""
    require(status.alive, f"no job of {str(folder)!r} is running.")
    stop_commands(status)  # may be impossible here
    for launch in status.launches:
        (Path(launch.folder) / STOP).touch()
    deadline, said = time.monotonic() + _STOP_SECONDS, set[str]()
    while status.alive and time.monotonic() < deadline:
        for command in stop_commands(status):
            if command not in said:
                say(console, command)
            said.add(command)
            subprocess.run(command.split(), check=False, capture_output=True)
        time.sleep(_LIVE_SECONDS)
        status = _read(folder)
    alive = sum(task.alive for task in status.tasks)
    require(not alive, f"{alive} tasks still run after {_STOP_SECONDS:.0f} s; try again.")
    say(console, "stopped; the same --launch continues from here.")


def follow(console: Console, folder: Path, stay: bool) -> Status:
    """Shows how launched jobs stand until they have ended, and returns how they stand then.

    Args:
      console: Where to; on a terminal the list changes in place, elsewhere a line comes every half
        minute and the list at the end.
      folder: Folder of what was launched.
      stay: Whether to stay until they have ended.
    """
    status = _read(folder)
    interruption.sentence = f"sdsl: the jobs go on without this command; sdsl launch stop {shlex.quote(str(folder))} stops them."
    if stay and status.alive and console.is_terminal:
        with Live(_page(status), console=console, auto_refresh=False, transient=True) as live:
            while status.alive:
                time.sleep(_LIVE_SECONDS)
                live.update(_page(status := _read(folder)), refresh=True)
    spoke = -math.inf
    while stay and status.alive:
        if time.monotonic() - spoke > _LINE_SECONDS:
            spoke = time.monotonic()
            present = [s for s in status.stages if not s.complete] or status.stages[-1:]
            for stage in present[:1]:
                say(console, f"  {_summary(stage)}")
        time.sleep(_LIVE_SECONDS)
        status = _read(folder)
    console.print(_page(status))
    return status


def run_launched(console: Console, folder: Path, launched: Launch) -> Status:
    """Announces what was launched and follows it to its end.

    Raises:
      SdslError: The last task did not finish, or all failed.
    """
    announce(console, launched, folder)
    status = follow(console, folder, stay=True)
    last = status.tasks[-1]
    require(
        last.state != "stopped",
        "the jobs were stopped; the same command continues where they stood.",
    )
    require(
        last.state == "finished",
        f"the last task ended as {last.state}: {last.about or 'no reason is known'}; the same command continues where it stood.",
    )
    return status


def announce(console: Console, launched: Launch, folder: Path) -> None:
    """Says what was submitted, and how to look at it and stop it."""
    job = launched.ids[0].partition("_")[0]
    what = f"Slurm job {job}" if launched.where == "slurm" else "processes of this machine"
    n, shown = len(launched.ids), shlex.quote(str(folder))
    say(
        console,
        f"launched {n} {'task' if n == 1 else 'tasks'} as {what}; their output is in {launched.folder}\n"
        f"They go on without this command. To look: sdsl launch status {shown}. To stop: sdsl launch stop {shown}.",
    )


def _read(folder: Path) -> Status:
    status = read_status(folder)
    assert status is not None
    return status


def _summary(stage: StageStatus) -> str:
    states = [each.state for each in stage.parts]
    left = "" if stage.seconds_left is None else f", about {_time(stage.seconds_left)} left"
    return (
        f"{stage.name}: {states.count('done')} of {len(states)} parts done, "
        f"{states.count('taken')} taken, {stage.share:.0%} of the work{left}"
    )


def _page(status: Status) -> Group:
    lines: list[Table | Text] = []
    for stage in status.stages:
        shown = [each for each in stage.parts if each.state != "done"]
        if len(shown) > _LISTED:
            shown = [each for each in shown if each.state == "taken"]
        if shown:
            columns = ("part", Column("state"), Column("by"), "done", Column("reached"), "left")
            lines.append(table(None, columns, [_row(each) for each in shown]))
        lines.append(Text(_summary(stage)))
    counts: dict[str, int] = {}
    for task in status.tasks:
        counts[task.state] = counts.get(task.state, 0) + 1
    lines.append(Text("tasks: " + ", ".join(f"{n} {state}" for state, n in counts.items())))
    parts = {f": {p.part.name}  {p.detail}" for stage in status.stages for p in stage.parts}
    for task in status.tasks:
        if task.about and task.state != "finished" and not task.about.endswith(tuple(parts)):
            lines.append(Text(f"  task {task.job} {task.state}: {task.about}"))
    lines += [Text(f"note: {warning}") for warning in status.warnings]
    return Group(*lines)


def _row(each: PartStatus) -> tuple[str, ...]:
    done = f"{each.share:.0%}" if each.share else ""
    left = "" if each.seconds_left is None else _time(each.seconds_left)
    return each.part.name, each.state, each.by, done, each.detail, left


def _time(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
