"""How launched work stands: its parts, who has them, and what became of the tasks.

Everything is read from files in the shared folder, and from `squeue` of a Slurm cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdsl_jax.cache_folders import locked
from sdsl_jax.claims import Claim
from sdsl_jax.errors import SdslError, require
from sdsl_jax.launch.records import Launch, PartRecord, TaskReport, launches
from sdsl_jax.records import read_json

# Clocks that differ by more are worth a sentence.
_SKEW_SECONDS = 60.0
_SQUEUE_SECONDS = 20
# Without a report, after which a task of another machine may be dead.
_SILENT_SECONDS = 600.0


@dataclass(frozen=True)
class PartStatus:
    """How a part stands.

    Attributes:
      part: the part
      state: "done", "taken" or "waiting"
      by: who has it, as host:pid; empty unless it is taken
      share: how much of it is done, from 0 to 1
      detail: what its holder last reported of it, without its name
      seconds_left: until it is done, at the speed of its holder; None if that is not known
    """

    part: PartRecord
    state: Literal["done", "taken", "waiting"]
    by: str = ""
    share: float = 0.0
    detail: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True)
class TaskStatus:
    """How a task stands.

    Attributes:
      job: its job, as the scheduler names it
      state: "waiting", "starting", "running", "finished", "failed", "stopped", "gone" or "unknown"
      about: what it does, why it waits, or its last words
    """

    job: str
    state: str
    about: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs or will run."""
        return self.state in ("waiting", "starting", "running")


@dataclass(frozen=True)
class StageStatus:
    """How a stage stands.

    Attributes:
      name: "train", "measure" or "protocol"
      parts: how each of its parts stands
      share: how much of it is done, from 0 to 1, by cost
      seconds_left: until it is done, at the present speed; None if that is not known
    """

    name: str
    parts: list[PartStatus]
    share: float
    seconds_left: float | None

    @property
    def complete(self) -> bool:
        """Whether all parts are done."""
        return all(part.state == "done" for part in self.parts)


@dataclass(frozen=True)
class Status:
    """How the last launch of a folder stands, with earlier ones whose tasks still run.

    Attributes:
      launches: these launches
      stages: how the stages of the last launch stand
      tasks: how the tasks of these launches stand
      warnings: sentences on what looks wrong
    """

    launches: list[Launch]
    stages: list[StageStatus]
    tasks: list[TaskStatus]
    warnings: list[str]

    @property
    def alive(self) -> bool:
        """Whether any task runs or will run."""
        return any(task.alive for task in self.tasks)


def read_status(folder: Path) -> Status | None:
    """How launched work stands; None if nothing was launched in the folder."""
    every = launches(folder)
    if not every:
        return None
    queue = _queue(every)
    tasks = {launch.folder: _tasks(launch, queue) for launch in every}
    shown = [x for x in every if x is every[-1] or any(t.alive for t in tasks[x.folder])]
    at_work = [
        report
        for launch in shown
        for report, task in zip(launch.reports(), tasks[launch.folder])
        if report and report.state == "running" and task.alive
    ]
    return Status(
        shown,
        [_stage(every[-1], name, folder, at_work) for name in every[-1].stages],
        [task for launch in shown for task in tasks[launch.folder]],
        _warnings(shown),
    )


def _stage(launch: Launch, name: str, folder: Path, at_work: list[TaskReport]) -> StageStatus:
    parts = launch.stages[name]
    if launch.complete or _finished_since(launch.submitted, name, folder):
        return StageStatus(name, [PartStatus(part, "done", share=1.0) for part in parts], 1.0, None)
    found = [_part(part, folder, at_work) for part in parts]
    cost = sum(each.part.cost for each in found)
    left = sum((1 - each.share) * each.part.cost for each in found)
    names = {part.name for part in parts}
    speed = sum(report.rate for report in at_work if report.part in names)
    share = 1 - left / cost if cost else 1.0
    return StageStatus(name, found, share, left / speed if speed else None)


def stop_commands(status: Status) -> list[str]:
    """Shell commands that stop the tasks of launches that still run.

    Raises:
      SdslError: They are processes of another machine.
    """
    commands = []
    for launch in status.launches:
        require(
            launch.where == "slurm" or launch.host == socket.gethostname(),
            f"the jobs are processes of {launch.host}; stop them there.",
        )
        if launch.where == "slurm":
            commands.append(f"scancel {' '.join(_slurm_jobs([launch]))}")
        else:
            pids = [str(r.pid) for r in launch.reports() if r and _holds_lock(launch, r.task)]
            if pids:
                commands.append(f"kill {' '.join(pids)}")
    return commands


def _finished_since(submitted: str, stage: str, folder: Path) -> bool:
    """Whether a stage of a study was completed after its jobs were submitted."""
    try:
        stamp = read_json(folder / "stages.json").get(stage, {})
    except SdslError:
        return False
    return isinstance(stamp, dict) and str(stamp.get("finished", "")) >= submitted


def _part(part: PartRecord, folder: Path, reports: list[TaskReport]) -> PartStatus:
    if all((folder / path).exists() for path in part.makes):
        return PartStatus(part, "done", share=1.0)
    done = max((r.done.get(part.name, 0.0) for r in reports), default=0.0)
    share = min(1.0, done / part.cost) if part.cost else 0.0
    claim = Claim(folder / part.folder)
    if not claim.path.exists():
        return PartStatus(part, "waiting")
    by = str(claim)
    mine = next((r for r in reports if f"{r.host}:{r.pid}" == by and r.part == part.name), None)
    if mine is None:
        return PartStatus(part, "taken", by, share)
    left = (1 - share) * part.cost / mine.rate if mine.rate else None
    return PartStatus(part, "taken", by, share, mine.detail.partition("  ")[2], left)


def _tasks(launch: Launch, queue: dict[str, tuple[str, str]] | None) -> list[TaskStatus]:
    return [
        _of_slurm(launch, job, report, queue)
        if launch.where == "slurm"
        else _of_this_machine(launch, i, job, report)
        for i, (job, report) in enumerate(zip(launch.ids, launch.reports()))
    ]


def _of_slurm(
    launch: Launch, job: str, report: TaskReport | None, queue: dict[str, tuple[str, str]] | None
) -> TaskStatus:
    if queue is None:
        return TaskStatus(job, report.state if report else "waiting", report.last if report else "")
    if job not in queue:
        return _ended(launch, job, report)
    state, about = queue[job]
    if state in ("RUNNING", "COMPLETING", "STAGE_OUT"):
        # One that was requeued has a report of its life before.
        return TaskStatus(job, "running", f"on {about}{_doing(report)}")
    return TaskStatus(job, "waiting", f"{state.lower()}: {about}")


def _of_this_machine(
    launch: Launch, number: int, job: str, report: TaskReport | None
) -> TaskStatus:
    if launch.host != socket.gethostname():
        state = report.state if report else "starting"
        file = Path(launch.folder) / f"task-{number}.json"
        silent = time.time() - file.stat().st_mtime if report else 0.0
        if state in ("starting", "running") and silent > _SILENT_SECONDS:
            about = f"on {launch.host}, which alone can tell; its last report is {silent / 60:.0f} minutes old"
            return TaskStatus(job, "unknown", about)
        return TaskStatus(job, state, f"on {launch.host}{_doing(report)}")
    if _holds_lock(launch, number):
        state = report.state if report else "starting"
        return TaskStatus(job, state, f"on {launch.host}{_doing(report)}")
    if report is None and _is_alive(int(job)):
        return TaskStatus(job, "starting", f"on {launch.host}")
    return _ended(launch, job, report)


def _doing(report: TaskReport | None) -> str:
    return f": {report.detail}" if report and report.state == "running" and report.detail else ""


def _ended(launch: Launch, job: str, report: TaskReport | None) -> TaskStatus:
    """Of a task that is not there any more."""
    if report is not None and report.state in ("finished", "failed", "stopped"):
        return TaskStatus(job, report.state, report.last)
    if report is None:
        nodes = f": can its node write {launch.folder}?" if launch.where == "slurm" else ""
        return TaskStatus(job, "gone", _last_line(launch, job) or f"it left no record{nodes}")
    return TaskStatus(job, "gone", _last_line(launch, job) or "killed")


def _last_line(launch: Launch, job: str) -> str:
    """The last error in a job's error output; without one its last line."""
    try:
        text = (Path(launch.folder) / f"{job}_0_log.err").read_text(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]


def _holds_lock(launch: Launch, number: int) -> bool:
    path = Path(launch.folder) / f"task-{number}.lock"
    if not path.exists():
        return False
    with locked(path, wait=False) as free:
        return free is False


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # of a child that has ended, the number stays until it is asked
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _slurm_jobs(every: list[Launch]) -> list[str]:
    """Numbers of the jobs of some launches; tasks of an array share one."""
    ids = [job for launch in every if launch.where == "slurm" for job in launch.ids]
    return [*dict.fromkeys(job.partition("_")[0] for job in ids)]


def _queue(every: list[Launch]) -> dict[str, tuple[str, str]] | None:
    """State and node, or reason, of every job that Slurm still has; None where it does not answer."""
    jobs = _slurm_jobs(every)
    if not jobs or shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", "--format=%i|%T|%R"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    rows = (line.strip().split("|") for line in answer.stdout.splitlines() if line.count("|") == 2)
    return {job: (state, about.strip("()")) for job, state, about in rows}


def _warnings(shown: list[Launch]) -> list[str]:
    """Clocks that disagree with that of the folder, by which the files of its hosts are dated."""
    skews: dict[str, float] = {}
    for launch in shown:
        for report in launch.reports():
            if report is not None:
                file = Path(launch.folder) / f"task-{report.task}.json"
                skews[report.host] = report.clock - file.stat().st_mtime
    return [
        f"the clock of {host} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of the shared folder; claims do "
        "not depend on clocks, but Slurm and dates do."
        for host, skew in skews.items()
        if abs(skew) > _SKEW_SECONDS
    ]
