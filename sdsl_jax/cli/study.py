"""`sdsl study`: run a study and print what it found."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.table import Column
from tyro.conf import arg

from sdsl_jax.cli.arguments import Flag, JobOptions, Overrides, checked_jobs, require_no_jobs
from sdsl_jax.cli.terminal import Terminal, say, standard_console, table
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.evidence import OptimumRow, StudyRecords
    from sdsl_jax.evidence.clock import Clock
    from sdsl_jax.evidence.holdout import Holdout


def study(
    file: Annotated[Path, arg(metavar="FILE.toml")],
    /,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    only: Annotated[str | None, arg(metavar="STAGE")] = None,
    force: Flag = False,
    launch: Annotated[Literal["slurm", "local"] | None, arg(metavar="slurm|local")] = None,
    jobs: int | None = None,
    overrides: Overrides = (),
    slurm: JobOptions = (),
) -> None:
    """Run a study: train, measure, conditions, fit, codesign, calibrate, clock, race, evidence, figures,
    report.

    Any setting of the TOML can be overridden on the command line by its dotted name, for example
    --training.batch_size=16 or --ladder.seeds=[0,1].

    With --launch, jobs train and measure, and one more does the rest when they have ended, on a node
    or machine that it shares with nobody. Options of Slurm jobs are given as --slurm.partition=gpu
    --slurm.time=4:00:00, under the names of sbatch; a job that is preempted or reaches its time limit
    is requeued and continues.

    Args:
        file: The study's TOML.
        out: Folder for the results; runs/<name> if left out.
        only: Run this stage alone, on the inputs that exist: train, measure, conditions, fit,
            codesign, calibrate, clock, race, evidence, figures or report.
        force: Run stages even if nothing that they depend on has changed.
        launch: Run in jobs of a Slurm cluster, or in processes of this machine, which share its
            processors and GPUs.
        jobs: Number of jobs to launch, 1 by default. For small models, one for every core is best.
    """
    from sdsl_jax.config import load_study
    from sdsl_jax.evidence import StudyRecords
    from sdsl_jax.study import run_study

    config = load_study(file, overrides)
    folder, console = out or Path("runs") / config.name, standard_console()
    if launch is not None:
        from sdsl_jax.cli.launch import run_launched
        from sdsl_jax.launch.jobs import launch_study

        require(only is None and not force, "--only and --force do not go with --launch.")
        jobs = checked_jobs(jobs)
        run_launched(console, folder, launch_study(config, folder, launch, jobs, slurm))
        _print(console, folder, StudyRecords(folder, config=config, path=folder / "records"))
        return
    require_no_jobs(jobs, slurm)
    if threads := config.computing_threads:
        # Before anything uses jax: the threads of a CPU are set for good when its backend is
        # created.
        from sdsl_jax.measurement.threads import limit_threads

        limit_threads(threads)
    with closing(Terminal(console)) as progress:
        records = run_study(config, folder, only=only, force=force, progress=progress)
    if only is None:
        _print(console, folder, records)


def _print(console: Console, folder: Path, records: StudyRecords) -> None:
    from sdsl_jax.evidence import Evidence

    if records.has_fits:
        _print_optima(console, records.optima)
    say(console, f"report: {folder / 'report.html'}")
    evidence = records.document("evidence", Evidence)
    if evidence and evidence.holdout:
        _print_holdout(console, evidence.holdout)
    if evidence and evidence.clock:
        _print_clock(console, evidence.clock)
    if evidence and evidence.race:
        for result in evidence.race.results:
            say(console, f"race, {result}")
    for note in records.timing_notes:
        say(console, note)


def _print_optima(console: Console, rows: list[OptimumRow]) -> None:
    def column(row: OptimumRow) -> list[str]:
        e, reference, nearest = row.entry, row.entry.reference, row.entry.nearest_trained
        low, high = e.indifference_1pct
        fails = "no finite optimum" if e.speedup is None else "does not pay"
        return [
            short_count(e.draft_params),
            "–" if low is None else f"{short_count(low)} – {short_count(high)}",
            f"{e.lookahead:.2f}" if e.speculate else "0",
            f"{e.speedup:.2f}×" if e.speculate else fails,
            short_count(reference.draft_params),
            f"{reference.lookahead:.2f}" if e.speculate else "0",
            nearest.draft_id if nearest else "–",
            f"{nearest.speedup:.2f}× (γ = {nearest.lookahead})" if nearest else "–",
            f"{row.clock.speedup:.2f}× (γ = {row.clock.lookahead})" if row.clock else "–",
        ]

    labels = [
        "N*, by gradient",
        "within 1% of best S",
        "γ*, by gradient",
        "predicted speed-up S",
        "N*, reference",
        "γ*, reference",
        "nearest trained draft",
        "its measured speed-up",
        "its speed-up by clock",
    ]
    headings = [f"{row.entry.target_id}\n{row.entry.cost_model}" for row in rows]
    optima = table(
        f"Throughput-optimal drafts, acceptance law: {rows[0].entry.acceptance_law}",
        ["target\ncosts", *(Column(one, justify="right", overflow="fold") for one in headings)],
        zip(labels, *map(column, rows)),
    )
    console.print(optima)
    say(
        console,
        "N: non-embedding parameters. Costs: flops = ratio of FLOPs per token; measured = rounds on a device fitted to timings.\n"
        "Reference: the closed form of γ under flops, bracketed roots under measured.\n"
        "Measured speed-up: measured tokens per round in the costs of its column. By clock: tokens/s against plain decoding.",
    )


def _print_holdout(console: Console, holdout: Holdout) -> None:
    """What was predicted before it was measured."""
    names = {
        "largest_loss": "relative error of the largest size's losses",
        "alpha_mae": "mean absolute error of α, pairs not seen",
        "alpha_coverage": "share of these pairs inside their intervals",
        "regret": "share of the best measured speed-up lost",
    }
    rows = [
        (names[key], str(goal), f"{goal.reached:.4f}", "met" if goal.met else "missed")
        for key, goal in holdout.goals.items()
    ]
    columns = ("goal", "to be", "reached", "")
    console.print(table("Predicted before it was measured", columns, rows))
    for row in holdout.coverage:
        if row.group.startswith(("draft of", "target of")):
            continue  # single runs are in the report
        say(
            console,
            f"  {row.group}: {row.inside:.0%} of {row.n} inside; {row.expected_low:.0%} to "
            f"{row.expected_high:.0%} is what the forecast expects",
        )
    for sentence in holdout.why:
        say(console, f"  {sentence}")


def _print_clock(console: Console, clock: Clock) -> None:
    """What was measured on the clock beside what was predicted."""
    from sdsl_jax.report.style import NAMES

    columns = (
        "target",
        "predicted choice",
        "S predicted",
        "S measured",
        "best measured",
        "S",
        "lost",
    )
    rows = [
        (
            row.target_id,
            f"{short_count(row.chosen.draft_params)}, γ = {row.chosen.lookahead}",
            f"{row.chosen.predicted:.2f}",
            f"{row.chosen.speedup:.2f}",
            f"{short_count(row.best.draft_params)}, γ = {row.best.lookahead}",
            f"{row.best.speedup:.2f}",
            f"{row.regret['calibrated']:.1%}",
        )
        for row in clock.targets
    ]
    console.print(table("On the clock: speed-ups over plain decoding", columns, rows))
    rivals = ", ".join(
        f"{NAMES[k]} {v:.1%}" for k, v in clock.mean_regret.items() if k != "calibrated"
    )
    if clock.error:
        say(
            console,
            f"{clock.error.n} decoders: median error of predicted S {clock.error.median_absolute:.1%}, rank correlation "
            f"{clock.error.rank_correlation:.3f}.\nLost of the best measured S, mean over targets: "
            f"{clock.mean_regret['calibrated']:.1%}; by other choices: {rivals}.",
        )
