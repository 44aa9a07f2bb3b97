"""Arguments that several commands take."""

from __future__ import annotations

import re
from typing import Annotated

import tyro

from sdsl_jax.counts import read_count
from sdsl_jax.errors import SdslError, require


def _whole(words: list[str]) -> int:
    value = read_count(words[0])
    if value is None or not value.is_integer():
        raise ValueError(f"{words[0]!r} is no whole number such as 4096, 4k or 4,096")
    return int(value)


# An option without a value, which has no opposite.
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
# A whole number that may be written as any count: 4096, 4k, 4,096.
WholeCount = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT",
        instance_from_str=_whole,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


def whole_numbers(text: str, flag: str, also: str = "") -> tuple[int, ...]:
    """Whole numbers separated by commas.

    Args:
      text: The value of the option.
      flag: Name of the option, for the message.
      also: What else the option takes, for the message.

    Raises:
      SdslError: the text holds something else.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SdslError(
            f"{flag} is {text!r}; it must be whole numbers separated by commas{also}."
        ) from None


# Settings of a study by their dotted names. tyro has no free-form options, so `run` splits them off
# the command line and hands them to the command; a parser never sees them.
Overrides = Annotated[tuple[str, ...], tyro.conf.Fixed, tyro.conf.Suppress]
# Names and values of options of jobs for Slurm, split off in the same way.
JobOptions = Annotated[tuple[tuple[str, str], ...], tyro.conf.Fixed, tyro.conf.Suppress]
_JOB_OPTION = re.compile(r"--slurm\.([\w-]+)(?:=(.*))?", re.DOTALL)
_DOTTED = re.compile(r"--[A-Za-z][\w-]*(\.[\w-]+)+(=.*)?", re.DOTALL)
_ASSIGNED = re.compile(r"(name|seed|[A-Za-z]\w*(\.\w+)+)=.*", re.DOTALL)


def split_overrides(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Separates dotted overrides (--a.b=v, --a.b v, a.b=v) from the other arguments."""
    rest: list[str] = []
    overrides: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if _ASSIGNED.fullmatch(argument):
            overrides.append(argument)
        elif _DOTTED.fullmatch(argument):
            if "=" not in argument and queue:
                argument = f"{argument}={queue.pop(0)}"
            overrides.append(argument)
        else:
            rest.append(argument)
    return rest, tuple(overrides)


def split_job_options(arguments: list[str]) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Separates options of jobs (--slurm.partition=gpu, --slurm.time 4:00:00) from other arguments."""
    rest: list[str] = []
    options: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if (option := _JOB_OPTION.fullmatch(argument)) is None:
            rest.append(argument)
            continue
        name, value = option.groups()
        if value is None:
            value = queue.pop(0) if queue and not queue[0].startswith("--") else ""
        options.append((name, value))
    return rest, tuple(options)


def checked_jobs(jobs: int | None) -> int:
    """The number of jobs to launch.

    Raises:
      SdslError: It is less than one.
    """
    require(jobs is None or jobs >= 1, f"--jobs is {jobs}; it must be at least 1.")
    return 1 if jobs is None else jobs


def require_no_jobs(jobs: int | None, slurm: JobOptions) -> None:
    """Raises `SdslError` where options of jobs were given and none are launched."""
    require(not slurm, f"--slurm.{slurm[0][0] if slurm else ''} goes with --launch slurm.")
    require(jobs is None, "--jobs goes with --launch slurm or --launch local.")
