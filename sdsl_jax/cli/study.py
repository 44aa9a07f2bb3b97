"""`sdsl study`: run a study and print what it found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from sdsl_jax.cli.arguments import Overrides
from sdsl_jax.cli.terminal import Terminal, standard_console
from sdsl_jax.counts import short_count

if TYPE_CHECKING:
    from sdsl_jax.study import SummaryRow

_Stage = Literal[
    "train",
    "measure",
    "conditions",
    "fit",
    "codesign",
    "calibrate",
    "clock",
    "evidence",
    "figures",
    "report",
]
_STAGE = tyro.conf.arg(metavar="STAGE")


def study(
    file: Annotated[Path, tyro.conf.arg(metavar="FILE.toml")],
    /,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    only: Annotated[_Stage | None, _STAGE] = None,
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    overrides: Overrides = (),
) -> None:
    """Run a study: train, measure, conditions, fit, codesign, calibrate, clock, evidence, figures,
    report.

    Any setting of the TOML can be overridden on the command line by its dotted name, for example
    --training.batch_size=16 or --ladder.seeds=[0,1].

    Args:
        file: the study's TOML.
        out: folder for the results; runs/<name> if left out.
        only: run this stage alone, on the inputs that are there: train, measure, conditions, fit,
            codesign, calibrate, clock, evidence, figures or report.
        force: run stages even if nothing they depend on has changed.
    """
    from sdsl_jax.config import load_study
    from sdsl_jax.study import run_study, summary

    config = load_study(file, overrides)
    if config.clock.lookaheads:
        # Before anything uses jax: the threads of a CPU are set for good when its backend is
        # created.
        from sdsl_jax.measurement.threads import limit_threads

        limit_threads(config.clock.threads)
    folder = out or Path("runs") / config.name
    console = standard_console()
    progress = Terminal(console)
    try:
        run_study(config, folder, only=only, force=force, progress=progress)
    finally:
        progress.close()
    if only is None:
        _print_summary(console, summary(folder), folder)
        _print_holdout(console, folder)
        _print_clock(console, folder)


def _print_summary(console: Console, rows: list[SummaryRow], folder: Path) -> None:
    def column(row: SummaryRow) -> list[str]:
        pays = row.speculate
        fails = "does not pay" if row.speedup is not None else "no finite optimum"
        return [
            short_count(row.draft_params),
            f"{short_count(row.indifference[0])} – {short_count(row.indifference[1])}"
            if row.indifference
            else "–",
            f"{row.lookahead:.2f}" if pays else "0",
            f"{row.speedup:.2f}×" if pays else fails,
            short_count(row.reference_params),
            f"{row.reference_lookahead:.2f}" if pays else "0",
            row.nearest_draft or "–",
            f"{row.nearest_speedup:.2f}× (γ = {row.nearest_lookahead})"
            if row.nearest_speedup
            else "–",
            f"{row.clock_speedup:.2f}× (γ = {row.clock_lookahead})" if row.clock_speedup else "–",
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
    table = Table(
        title=f"Throughput-optimal drafts, acceptance law: {rows[0].acceptance_law}",
        title_justify="left",
    )
    table.add_column("target\ncosts", no_wrap=True)
    for row in rows:
        table.add_column(f"{row.target}\n{row.cost_model}", justify="right", overflow="fold")
    for cells in zip(labels, *map(column, rows)):
        table.add_row(*cells)
    console.print(table)
    console.print(
        "N: non-embedding parameters. Costs: flops = ratio of FLOPs per token; measured = rounds on a device fitted to timings.\n"
        "Reference: the closed form of γ under flops, bracketed roots under measured.\n"
        "Measured speed-up: measured tokens per round in the costs of its column. By clock: tokens/s against plain decoding.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _print_holdout(console: Console, folder: Path) -> None:
    """What was predicted before it was measured, if anything was."""
    from sdsl_jax.records import read_json

    held = read_json(folder / "records" / "evidence.json").get("holdout")
    if not held:
        return
    table = Table(title="Predicted before it was measured", title_justify="left")
    for heading in ("goal", "at most", "reached", ""):
        table.add_column(heading, justify="left" if heading == "goal" else "right")
    names = {
        "largest_loss": "relative error of the largest size's losses",
        "alpha_mae": "mean absolute error of α, pairs not seen",
        "regret": "share of the best measured speed-up forgone",
    }
    for key, goal in held["goals"].items():
        table.add_row(
            names[key],
            f"{goal['goal']:g}",
            f"{goal['reached']:.4f}",
            "met" if goal["met"] else "missed",
        )
    console.print(table)
    for sentence in held["why"]:
        console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)


def _print_clock(console: Console, folder: Path) -> None:
    """What was measured on the clock beside what was predicted, if anything was."""
    from sdsl_jax.records import read_json
    from sdsl_jax.report.style import NAMES

    timed = read_json(folder / "records" / "evidence.json").get("clock")
    if not timed:
        return
    table = Table(title="On the clock: speed-ups over plain decoding", title_justify="left")
    for heading in (
        "target",
        "predicted choice",
        "S predicted",
        "S measured",
        "best measured",
        "S",
        "forgone",
    ):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for row in timed["targets"]:
        chosen, best = row["chosen"], row["best"]
        table.add_row(
            row["target_id"],
            f"{short_count(chosen['draft_params'])}, γ = {chosen['lookahead']}",
            f"{chosen['predicted']:.2f}",
            f"{chosen['speedup']:.2f}",
            f"{short_count(best['draft_params'])}, γ = {best['lookahead']}",
            f"{best['speedup']:.2f}",
            f"{row['regret']['calibrated']:.1%}",
        )
    console.print(table)
    error = timed["error"]
    rivals = ", ".join(
        f"{NAMES[k]} {v:.1%}"
        for k, v in timed["mean_regret"].items()
        if k != "calibrated" and v is not None
    )
    console.print(
        f"{error['n']} decoders: median error of predicted S {error['median_absolute']:.1%}, rank correlation "
        f"{error['rank_correlation']:.3f}.\nForgone of the best measured S, mean over targets: "
        f"{timed['mean_regret']['calibrated']:.1%}; by other choices: {rivals}.",
        highlight=False,
        soft_wrap=True,
    )
