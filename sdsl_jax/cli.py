"""The command `sdsl`: thin subcommands, and the only place that prints."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sdsl_jax.errors import SdslError

if TYPE_CHECKING:
    from sdsl_jax.study import SummaryRow


class Terminal:
    """Draws a live bar on a terminal; elsewhere prints a line per stage, per note and per half minute."""

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
                f"  {self._done / self._total:4.0%}, {left:.0f} s left: {detail}", highlight=False, soft_wrap=True
            )

    def finish(self) -> None:
        """Takes the bar away and says how long the task took."""
        self.close()
        self._console.print(f"{self._task}: done in {time.perf_counter() - self._began:.0f} s", highlight=False)

    def close(self) -> None:
        """Takes the bar away, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


_STAGE = tyro.conf.arg(metavar="STAGE")


def study(
    file: Annotated[Path, tyro.conf.arg(metavar="FILE.toml")],
    /,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    only: Annotated[Literal["train", "measure", "fit", "codesign", "figures", "report"] | None, _STAGE] = None,
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Run a study: train, measure, fit, codesign, figures, report.

    Any setting of the TOML can be overridden on the command line by its dotted name, for example
    --training.batch_size=16 or --ladder.seeds=[0,1].

    Args:
        file: the study's TOML.
        out: folder for the results; runs/<name> if left out.
        only: run this stage alone, on the inputs that are there: train, measure, fit, codesign, figures or report.
        force: run stages even if nothing they depend on has changed.
    """
    from sdsl_jax.config import load_study
    from sdsl_jax.study import run_study, summary

    config = load_study(file, _overrides)
    folder = out or Path("runs") / config.name
    console = Console(width=None if sys.stdout.isatty() else 124)
    progress = Terminal(console)
    try:
        run_study(config, folder, only=only, force=force, progress=progress)
    finally:
        progress.close()
    if only is None:
        _print_summary(console, summary(folder), folder)


def _print_summary(console: Console, rows: list[SummaryRow], folder: Path) -> None:
    from sdsl_jax.training.ladder import compact

    def size(value: float | None) -> str:
        return "–" if value is None else compact(float(f"{value:.3g}"))

    def column(row: SummaryRow) -> list[str]:
        pays = row.speculate
        fails = "does not pay" if row.speedup is not None else "no finite optimum"
        return [
            size(row.draft_params),
            f"{size(row.indifference[0])} – {size(row.indifference[1])}" if row.indifference else "–",
            f"{row.lookahead:.2f}" if pays else "0",
            f"{row.speedup:.2f}×" if pays else fails,
            size(row.closed_form_params),
            f"{row.closed_form_lookahead:.2f}" if pays else "0",
            row.nearest_draft or "–",
            f"{row.nearest_speedup:.2f}× (γ = {row.nearest_lookahead})" if row.nearest_speedup else "–",
            f"{row.clock_speedup:.2f}× (γ = {row.clock_lookahead})" if row.clock_speedup else "–",
        ]

    labels = [
        "N*, by gradient",
        "within 1 % of best S",
        "γ*, by gradient",
        "predicted speed-up S",
        "N*, closed form",
        "γ*, closed form",
        "nearest trained draft",
        "its measured speed-up",
        "its speed-up by clock",
    ]
    table = Table(title=f"Throughput-optimal drafts, acceptance law: {rows[0].acceptance_law}", title_justify="left")
    table.add_column("target\ncosts", no_wrap=True)
    for row in rows:
        table.add_column(f"{row.target}\n{row.cost_model}", justify="right", overflow="fold")
    for cells in zip(labels, *map(column, rows)):
        table.add_row(*cells)
    console.print(table)
    console.print(
        "N: non-embedding parameters. Costs: flops = ratio of FLOPs per token; measured = step times of this machine.\n"
        "Measured speed-up: measured tokens per round in the costs of its column. By clock: tokens/s against plain decoding.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def version() -> None:
    """Print the versions that a bug report should name."""
    from sdsl_jax.study import versions

    for name, value in versions().items():
        print(f"{name} {value}")


_overrides: list[str] = []
_DOTTED = re.compile(r"--[A-Za-z][\w-]*(\.[\w-]+)+(=.*)?", re.DOTALL)
_ASSIGNED = re.compile(r"(name|seed|[A-Za-z]\w*(\.\w+)+)=.*", re.DOTALL)


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates dotted overrides (--a.b=v, --a.b v, a.b=v) from the other arguments."""
    rest, overrides = [], []
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
    return rest, overrides


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments, _overrides[:] = split_overrides(sys.argv[1:])
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"study": study, "version": version},
            prog="sdsl",
            description="Speculative-decoding scaling laws: which draft to train for a target, and how far ahead to guess.",
            args=arguments,
        )
    except SdslError as error:
        print(f"sdsl: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("sdsl: interrupted; the same command continues where it stood.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
