"""Submits tasks with submitit: to Slurm as one array, or to this machine as a process each."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdsl_jax.errors import SdslError, require
from sdsl_jax.launch.records import STOP, Launch, PartRecord, Where, new_launch_folder
from sdsl_jax.launch.task import Task

_Thing = TypeVar("_Thing")
# Of one run of a job; a task that reaches it is requeued and continues.
_SLURM_MINUTES = 240
_LOCAL_MINUTES = 365 * 24 * 60
# Requeues after time limits: a task ends when its work does, not when submitit has counted enough.
_MOST_TIME_LIMITS = 100_000
# Options of a job that are lists of shell commands or arguments.
_LISTS = ("setup", "teardown", "srun_args")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def submit(
    tasks: Sequence[Task],
    folder: Path,
    where: Where,
    work: str,
    parts: Sequence[PartRecord],
    options: Sequence[tuple[str, str]] = (),
    last: Task | None = None,
) -> Launch:
    """Submits tasks that share a piece of work, and returns at once.

    Args:
      tasks: The tasks; their launch folders, numbers and processors are set here.
      folder: The folder of the study or protocol, which all jobs share.
      where: "slurm" or "local".
      work: The command whose work they share.
      parts: Pieces of the work, for the record.
      options: Names and values of options of the jobs for Slurm.
      last: A task that begins when all others have ended, and shares its node with nobody. It is also
        given the launch folder, and the number of tasks that it must wait for itself.

    Raises:
      SdslError: submitit is not installed, there is no Slurm, Slurm refuses the jobs, or the folder
        cannot be written.
    """
    submitit = _submitit()
    require(
        where == "local" or shutil.which("sbatch") is not None,
        "sbatch was not found on this machine; start the command on a host of the Slurm cluster, or use --launch local.",
    )
    settings = slurm_settings(options)
    require(
        where == "slurm" or not options,
        f"--slurm.{options[0][0] if options else ''} goes with --launch slurm.",
    )
    launch = new_launch_folder(folder)
    tasks = [
        dataclasses.replace(task, launch=str(launch.absolute()), number=i)
        for i, task in enumerate(tasks)
    ]
    logging.getLogger("submitit").setLevel(logging.ERROR)
    jobs: list[Any] = []
    try:
        # submitit prints what sbatch complains of before it raises it.
        with contextlib.redirect_stderr(io.StringIO()):
            if where == "slurm":
                executor = submitit.SlurmExecutor(launch, max_num_timeout=_MOST_TIME_LIMITS)
                executor.update_parameters(**settings)
                with executor.batch():
                    array = [executor.submit(task) for task in tasks]
                jobs += array
                if last is not None:
                    after = f"afterany:{jobs[0].job_id.partition('_')[0]}"
                    executor.update_parameters(dependency=after, exclusive=True)
                    jobs.append(executor.submit(_last(last, launch, len(tasks), waits_for=0)))
            else:
                _submit_local(submitit, launch, tasks, jobs)
                if last is not None:
                    last = _last(last, launch, len(tasks), waits_for=len(tasks))
                    _submit_local(submitit, launch, [last], jobs)
    except BaseException as error:
        _take_back(where, jobs, launch)
        if isinstance(error, _refusals(submitit)):
            raise SdslError(f"Slurm refused the jobs: {_reason(str(error))}.") from None
        if isinstance(error, TypeError | ValueError):
            raise SdslError(f"the options of the jobs are wrong ({error}).") from None
        raise
    made = Launch(where, work, list(parts), [job.job_id for job in jobs], folder=str(launch))
    made.write()
    return made


def _last(task: Task, launch: Path, number: int, waits_for: int) -> Task:
    """The last task of a launch, which knows what it waits for."""
    place = str(launch.absolute())
    told = task.arguments | {"launch": place, "after": waits_for}
    return dataclasses.replace(task, arguments=told, launch=place, number=number)


def _refusals(submitit: Any) -> tuple[type[Exception], ...]:
    errors = submitit.core.utils
    return errors.FailedJobError, errors.FailedSubmissionError


def _take_back(where: Where, jobs: Sequence[Any], launch: Path) -> None:
    """Cancels jobs of a launch of which others could not be submitted."""
    (launch / STOP).touch()
    for job in jobs:
        with contextlib.suppress(OSError, ValueError):
            if where == "slurm":
                job.cancel(check=False)
            else:
                os.kill(int(job.job_id), signal.SIGTERM)
    if not jobs:
        shutil.rmtree(launch, ignore_errors=True)
        with contextlib.suppress(OSError):
            launch.parent.rmdir()


def _submit_local(submitit: Any, launch: Path, tasks: Sequence[Task], jobs: list[Any]) -> None:
    """Starts a process for each task, which gets its share of the processors and GPUs of this machine,
    and adds them to the jobs."""
    executor = submitit.LocalExecutor(launch, max_num_timeout=_MOST_TIME_LIMITS)
    processors, gpus = _processors(), visible_gpus()
    with _detached(launch / "processes.log"):
        for i, task in enumerate(tasks):
            # A GPU is fed by threads that want more than one processor.
            cores = () if gpus else share(processors, i, len(tasks))
            own = dataclasses.replace(task, processors=cores, gpus=share(gpus, i, len(tasks)))
            executor.update_parameters(timeout_min=_LOCAL_MINUTES)
            jobs.append(executor.submit(own))


def share(things: Sequence[_Thing], i: int, n: int) -> tuple[_Thing, ...]:
    """The share of one of n tasks; tasks that are more than the things share them one by one."""
    if n >= len(things):
        return tuple(things[i % len(things) : i % len(things) + 1]) if things else ()
    return tuple(things[i * len(things) // n : (i + 1) * len(things) // n])


def _processors() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def visible_gpus() -> list[str]:
    """Numbers or names of the NVIDIA GPUs that this process may use, without asking a driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each.strip() for each in named.split(",") if each.strip()]
    devices = (re.fullmatch(r"nvidia(\d+)", name) for name in os.listdir("/dev"))
    return sorted((found[1] for found in devices if found), key=int)


def slurm_settings(options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Options of jobs as submitit takes them; those that it does not know go to sbatch as they are.

    Args:
      options: Names and values, such as ("partition", "gpu") and ("gpus_per_node", "1"). Shell
        commands for `setup` and `teardown`, and arguments for `srun_args`, may come several times.

    Raises:
      SdslError: A time limit is none, or an option that takes one value has several.
    """
    from submitit.slurm.slurm import _get_default_parameters  # the names that it takes

    made: dict[str, Any] = {"time": _SLURM_MINUTES, "job_name": "sdsl"}
    others: dict[str, Any] = {}
    names = [name.replace("-", "_") for name, _ in options]
    for name, (shown, value) in zip(names, options):
        if name in _LISTS:
            made.setdefault(name, []).append(value)
            continue
        if value.lower() == "false":
            continue
        times = names.count(name)
        require(times == 1, f"--slurm.{shown} was given {times} times; give it once.")
        if name in ("time", "timeout_min"):
            made["time"] = _minutes(value)
        elif name in _get_default_parameters():
            made[name] = _typed(value)
        else:
            others[name.replace("_", "-")] = _typed(value)
    return made | {"additional_parameters": others}


def _typed(value: str) -> str | int | bool:
    """Numbers, and options without a value, such as --exclusive."""
    if value.lower() in ("true", ""):
        return True
    return int(value) if value.isdecimal() else value


def _minutes(text: str) -> int:
    """A time limit in any form that sbatch takes, rounded up to minutes."""
    found = _TIME.fullmatch(text)
    require(
        found,
        f"--slurm.time is {text!r}; it must be minutes, hours:minutes:seconds or days-hours, as sbatch takes it.",
    )
    assert found is not None
    days, *rest = (int(found[name] or 0) for name in ("days", "first", "second", "third"))
    of_hours = found["days"] is not None or found["third"] is not None
    minutes = (60, 1, 1 / 60) if of_hours else (1, 1 / 60, 0)
    total = days * 24 * 60 + sum(value * each for value, each in zip(rest, minutes))
    require(total > 0, f"--slurm.time is {text!r}; it must be positive.")
    return max(1, -int(-total // 1))


def _reason(output: str) -> str:
    """What sbatch complained of."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line] or lines or ["no reason was given"]
    return errors[0].rpartition("error:")[2].strip().rstrip(".")


@contextlib.contextmanager
def _detached(output: Path) -> Iterator[None]:
    """Lets processes that are started within the block outlive this one and its terminal: they ignore
    Ctrl-C and the end of the terminal, and keep no stream of this process open."""
    own = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGHUP) if own else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as ends:
        for number, handler in before.items():
            ends.callback(signal.signal, number, handler)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        ends.callback(os.close, log)
        for stream in (1, 2):
            kept = os.dup(stream)
            ends.callback(os.close, kept)
            ends.callback(os.dup2, kept, stream)
            os.dup2(log, stream)
        yield


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise SdslError(
            "--launch needs submitit; install it with pip install 'sdsl_jax[cluster]'."
        ) from None
    return submitit
