"""What launched jobs leave on record: what was submitted, and what every task last did.

FOLDER/launch/1/jobs.json     what was submitted, and where
FOLDER/launch/1/task-0.json   what task 0 last reported
FOLDER/launch/1/task-0.lock   locked by task 0 as long as it lives
FOLDER/launch/1/complete      made when all parts have been put together
FOLDER/launch/1/stop          made by sdsl launch stop
FOLDER/launch/1/*             scripts, pickled tasks and output of the jobs
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from sdsl_jax.errors import SdslError
from sdsl_jax.records import read_json, write_json
from sdsl_jax.records.documents import from_json

_FOLDER, _JOBS, _COMPLETE = "launch", "jobs.json", "complete"
# Tasks that begin when it is there end at once.
STOP = "stop"
# Between two reports of a task: a shared folder need not see every step.
_REPORT_SECONDS = 2.0

Where = Literal["slurm", "local"]
State = Literal["starting", "running", "finished", "failed", "stopped"]
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class PartRecord:
    """A piece of the work, which one task does at a time.

    Attributes:
      name: such as draft-14k-s0, a rung
      cost: how much work it is, in FLOPs or another unit of the launch
      folder: folder of its claim, from that of the study
      makes: files that exist once it is done, from the folder of the study
    """

    name: str
    cost: float
    folder: str
    makes: list[str]


@dataclass(frozen=True)
class Launch:
    """Jobs that were submitted together.

    Attributes:
      where: "slurm" or "local"
      work: the command that they share: "train", "study" or "protocol"
      parts: pieces of the work, in the order in which tasks take them
      ids: of every task's job, as the scheduler names it; of a local task, the number of the process
        that looks after it
      host: host that they were submitted from
      submitted: when, by the clock of that host
      folder: their folder, FOLDER/launch/<number>
    """

    where: Where
    work: str
    parts: list[PartRecord]
    ids: list[str]
    host: str = field(default_factory=socket.gethostname)
    submitted: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    folder: str = ""

    def write(self) -> None:
        """Writes jobs.json."""
        write_json(Path(self.folder) / _JOBS, self)

    @property
    def stages(self) -> dict[str, list[PartRecord]]:
        """The parts of the launch by stage: those of its command, then what its tasks have added."""
        first = "protocol" if self.work == "protocol" else "train"
        found = {first: self.parts} if self.parts else {}
        for path in sorted(Path(self.folder).glob("parts-*.json"), key=lambda p: p.stat().st_mtime):
            with contextlib.suppress(SdslError):
                rows, where = read_json(path, list), f"the record file {path}"
                stage = path.stem.removeprefix("parts-")
                found[stage] = [from_json(PartRecord, row, where) for row in rows]
        return found

    @property
    def complete(self) -> bool:
        """Whether its last task has put together what the parts made."""
        return (Path(self.folder) / _COMPLETE).exists()

    def reports(self) -> list[TaskReport | None]:
        """What every task last reported; None of a task that has not begun."""
        files = [Path(self.folder) / f"task-{i}.json" for i in range(len(self.ids))]
        return [_read(file, TaskReport) for file in files]


@dataclass
class TaskReport:
    """What a task last did.

    Attributes:
      task: its number in its launch
      host: where it runs
      pid: its process
      clock: its clock when it wrote this, seconds since 1970
      state: "starting", "running", "finished", "failed", or "stopped" by SIGTERM or at its time
        limit; a requeued task starts again
      detail: what it last reported, such as "draft-14k-s0  loss 3.213  12,345 tokens/s"
      done: of every part that it took, how much of its cost
      rate: cost per second of the part that it works on; 0 if not known yet
      last: its last words: an error, or how it ended
    """

    task: int
    host: str
    pid: int
    clock: float
    state: State = "starting"
    detail: str = ""
    done: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    last: str = ""

    @property
    def part(self) -> str:
        """Name of the part that it works on."""
        return self.detail.partition("  ")[0]


class Reporter:
    """Progress of a task, kept in its file; notes go to the job's output."""

    def __init__(self, launch: Path, task: int):
        self._path = launch / f"task-{task}.json"
        self._report = TaskReport(task, socket.gethostname(), os.getpid(), time.time())
        self._written = self._since = self._sum = 0.0
        self.say("starting")

    def say(self, state: State, last: str = "") -> None:
        """Reports a state, and perhaps last words."""
        self._report.state, self._report.last = state, last
        self._write()

    def note(self, text: str) -> None:
        """Prints a line."""
        print(text, flush=True)

    def start(self, task: str, total: float) -> None:
        """A task begins."""
        self.note(f"{task} ...")
        self.say("running")

    def advance(self, amount: float, detail: str = "") -> None:
        """Adds to the part whose name the detail begins with."""
        report, before, now = self._report, self._report.part, time.monotonic()
        report.detail = detail
        report.done[report.part] = report.done.get(report.part, 0.0) + amount
        if report.part != before:
            # What a part begins with, such as compiling or skipping what was done, tells no speed.
            self._since, self._sum = now, 0.0
        else:
            self._sum += amount
            report.rate = self._sum / max(now - self._since, 1e-9)
        if now - self._written > _REPORT_SECONDS:
            self._write()

    def finish(self) -> None:
        """A task ends."""
        self._write()

    def add_parts(self, stage: str, parts: Sequence[PartRecord]) -> None:
        """Adds the parts of a stage to those of the launch; every task adds the same ones."""
        write_json(self._path.with_name(f"parts-{stage}.json"), list(parts))

    def complete(self) -> None:
        """Says that all parts are done: what they made has been put together and deleted."""
        (self._path.parent / _COMPLETE).touch()

    def _write(self) -> None:
        self._written, self._report.clock = time.monotonic(), time.time()
        with contextlib.suppress(SdslError):  # a report that cannot be written stops no work
            write_json(self._path, self._report)


def new_launch_folder(folder: Path) -> Path:
    """Makes the next FOLDER/launch/<number>, which only its owner may read: it will hold pickles.

    Raises:
      SdslError: It cannot be made.
    """
    try:
        (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        while True:
            made = folder / _FOLDER / str(1 + max(_numbers(folder), default=0))
            with contextlib.suppress(FileExistsError):  # made by another command at this moment
                made.mkdir(mode=0o700)
                return made
    except OSError as error:
        raise SdslError(f"cannot write {folder / _FOLDER} ({error.strerror}).") from None


def launches(folder: Path) -> list[Launch]:
    """The launches of a study or protocol, the earliest first."""
    folders = [folder / _FOLDER / str(number) for number in sorted(_numbers(folder))]
    found = [(each, _read(each / _JOBS, Launch)) for each in folders]
    return [dataclasses.replace(launch, folder=str(each)) for each, launch in found if launch]


def _numbers(folder: Path) -> list[int]:
    if not (folder / _FOLDER).is_dir():
        return []
    return [int(path.name) for path in (folder / _FOLDER).iterdir() if path.name.isdecimal()]


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    """A record; None of a file that is missing or is just being made."""
    try:
        return from_json(kind, read_json(path), f"the record file {path}")
    except SdslError:
        return None
