"""`sdsl train`: train a study's ladder, or some of its rungs."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from tyro.conf import arg

from sdsl_jax.cli.arguments import Flag, JobOptions, Overrides, checked_jobs, require_no_jobs
from sdsl_jax.cli.terminal import Terminal, say, standard_console, table
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.config import StudyConfig
    from sdsl_jax.study.shared_training import Trained


def train(
    file: Annotated[Path, arg(metavar="FILE.toml")],
    /,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    rungs: Annotated[str | None, arg(metavar="NAMES")] = None,
    part: Annotated[str | None, arg(metavar="I/N")] = None,
    distributed: Flag = False,
    launch: Annotated[Literal["slurm", "local"] | None, arg(metavar="slurm|local")] = None,
    jobs: int | None = None,
    overrides: Overrides = (),
    slurm: JobOptions = (),
) -> None:
    """Train a study's ladder, or some of its models. Any number of processes may share its folder.

    If the command is killed, run it again and it continues. `sdsl study` then trains what is
    missing and runs the remaining stages.

    With --launch, jobs train the rungs, those that cost most first. Options of Slurm jobs are given
    as --slurm.partition=gpu --slurm.gpus_per_node=1 --slurm.time=4:00:00, under the names of sbatch;
    a job that is preempted or reaches its time limit is requeued and continues.

    Args:
        file: The study's TOML. Its settings can be overridden by their dotted names, as in sdsl study.
        out: Folder for the results; runs/<name> if omitted.
        rungs: Names of rungs, with or without their seed, separated by commas; * and ? are wildcards:
            draft-14k,target-*. A rung is one size and seed, trained for all its token budgets.
        part: Part I, counted from 1, of N parts with about equal FLOPs, for job arrays.
        distributed: Join the processes of several hosts, which train every rung together on the
            study's [parallel] mesh. JAX finds them, or SDSL_COORDINATOR=host:port, SDSL_PROCESSES and
            SDSL_PROCESS name them.
        launch: Train in jobs of a Slurm cluster, or in processes of this machine, which share its
            processors and GPUs.
        jobs: Number of jobs to launch, 1 by default. For small models, one for every core is best.
    """
    from sdsl_jax.config import load_study
    from sdsl_jax.data.corpus import EMBEDDED
    from sdsl_jax.processes import initialise_distributed, is_primary
    from sdsl_jax.progress import Silent
    from sdsl_jax.study.shared_training import train_part

    config = load_study(file, overrides)
    folder = out or Path("runs") / config.name
    patterns = (
        [name.strip() for name in rungs.split(",") if name.strip()] if rungs is not None else []
    )
    require(rungs is None or patterns, f"--rungs is {rungs!r}; it must hold at least one name.")
    chosen = None if part is None else _parse_part(part)
    console = standard_console()
    if launch is not None:
        require(
            chosen is None,
            "--part and --launch were both given; jobs share the work by themselves.",
        )
        jobs = checked_jobs(jobs)
        _launch(console, config, folder, patterns, launch, jobs, distributed, slurm)
        return
    require_no_jobs(jobs, slurm)
    if distributed:
        initialise_distributed()
    with closing(Terminal(console)) as terminal:
        trained = train_part(
            config, folder, patterns, chosen, terminal if is_primary() else Silent()
        )
    if is_primary():
        _print(console, trained, folder, by_years=config.data.source == EMBEDDED)


def _launch(
    console: Console,
    config: StudyConfig,
    folder: Path,
    patterns: list[str],
    where: Literal["slurm", "local"],
    jobs: int,
    distributed: bool,
    options: JobOptions,
) -> None:
    """Trains in jobs, and shows how they stand until they have ended."""
    from sdsl_jax.cli.launch import announce, follow
    from sdsl_jax.data.corpus import EMBEDDED
    from sdsl_jax.launch.jobs import launch_training
    from sdsl_jax.study.shared_training import trained_so_far

    launched = launch_training(config, folder, where, jobs, patterns, distributed, options)
    announce(console, launched, folder)
    status = follow(console, folder, stay=True)
    trained = trained_so_far(config, folder, patterns)
    _print(console, trained, folder, by_years=config.data.source == EMBEDDED)
    if trained.missing:
        failed = [task.about for task in status.tasks if task.state == "failed"]
        lost = sum(task.state in ("gone", "stopped") for task in status.tasks)
        require(
            not failed,
            f"{len(failed)} tasks failed, the first one because of this: {(failed or [''])[0]}",
        )
        require(not lost, f"{lost} tasks were ended; the same command trains what is missing.")


def _parse_part(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    good = bool(slash) and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)
    require(good, f"--part is {text!r}; it must be I/N with whole numbers 1 <= I <= N.")
    return int(i), int(n)


def _print(console: Console, trained: Trained, folder: Path, by_years: bool) -> None:
    columns = (
        "model",
        "tokens",
        "epochs",
        "test\nnats",
        "bits per\nbyte",
        "valid.\nnats",
        "bits per\nbyte",
        "tokens/s",
        "compile",
        "wait for\ndata",
        "spikes,\nskipped",
    )
    rows = [
        (
            r.model_id,
            f"{r.train_tokens:,}",
            f"{r.epochs:.2f}",
            f"{r.loss_nats:.3f}",
            f"{r.bits_per_byte:.3f}",
            f"{r.validation_loss_nats:.3f}",
            f"{r.validation_bits_per_byte:.3f}",
            f"{r.tokens_per_second:,.0f}" if math.isfinite(r.tokens_per_second) else "–",
            f"{r.compile_seconds:.1f} s",
            f"{r.data_wait_share:.1%}",
            f"{r.spikes}, {r.skipped_steps}",
        )
        for r in trained.records
    ]
    console.print(table("Trained models", columns, rows))
    _print_utilisation(console, trained)
    for name, owner in trained.owned_by_others.items():
        say(console, f"{name}: being trained by {owner}")
    splits = (
        "Test: text of later years than was trained on; valid.: of the same years."
        if by_years
        else "Test: the last part of the text; valid.: the part before it."
    )
    say(
        console,
        f"{splits} Models of one rung share its trunk.\n"
        + (
            f"{trained.missing} models of the study are not finished yet; "
            if trained.missing
            else "the ladder is complete; "
        )
        + f"records: {folder / 'records' / 'models.csv'}",
    )


def _print_utilisation(console: Console, trained: Trained) -> None:
    """Model FLOPs utilisation, where the peak of the device is known."""
    from sdsl_jax.training.metrics import utilisation

    used = {r.model_id: utilisation(r) for r in trained.records}
    measured = {name: u for name, u in used.items() if math.isfinite(u.share)}
    if not measured:
        return
    rows = [
        (name, f"{u.flops_per_second / 1e12:.3g}", f"{u.share:.1%}") for name, u in measured.items()
    ]
    title = "Model FLOPs utilisation (3 times the forward pass's)"
    console.print(table(title, ("model", "TFLOP/s", "of bfloat16 peak"), rows))
