"""`sdsl tune`: sweep a setting of the recipe at the small end and fit its law of size."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.table import Column
from tyro.conf import arg

from sdsl_jax.cli.arguments import Flag, Overrides
from sdsl_jax.cli.terminal import Terminal, error_console, print_json, say, standard_console, table
from sdsl_jax.counts import parse_count, parse_counts, short_count
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.training.tune import Tuning


def tune(
    file: Annotated[Path, arg(metavar="FILE.toml")],
    /,
    sizes: Annotated[str, arg(metavar="N,N,…")] = "3k,14k,50k",
    tokens: Annotated[str, arg(metavar="D")] = "1M",
    factors: Annotated[str, arg(metavar="F,F,…")] = "0.25,0.5,1,2,4",
    setting: Literal["learning_rate", "batch_size", "warmup_tokens"] = "learning_rate",
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    write: Annotated[Path | None, arg(metavar="TUNED.toml")] = None,
    json: Flag = False,
    overrides: Overrides = (),
) -> None:
    """Sweep a setting of a study's recipe over a few small sizes, and fit its law of size.

    If the command is killed, run it again and it continues. The loss on validation text, from the
    training years, decides.

    Args:
        file: The study's TOML. Its settings can be overridden by their dotted names, as in sdsl study.
        sizes: Non-embedding parameters, two sizes or more.
        tokens: Token budget of every trial.
        factors: Factors of the value that the study's present law gives, three or more.
        setting: Setting to sweep; the others follow their present laws.
        out: Folder of the trials; runs/<name>-tune if omitted.
        write: File for the study with the fitted law, as TOML.
        json: Print one JSON object.
    """
    from sdsl_jax.config import load_study, to_toml
    from sdsl_jax.records import require_replaceable, require_study_folder, write_marked
    from sdsl_jax.training.tune import tune as run

    config = load_study(file, overrides)
    params, budget = parse_counts(sizes, "--sizes"), parse_count(tokens, "--tokens")
    multiples = parse_counts(factors, "--factors")
    folder = out or Path("runs") / f"{config.name}-tune"
    require_study_folder(folder)
    if write is not None:
        require_replaceable(write)
    console = error_console() if json else standard_console()
    with closing(Terminal(console)) as progress:
        tuning = run(
            config,
            folder,
            [round(size) for size in params],
            round(budget),
            multiples,
            setting,
            progress,
        )
    if write is not None and tuning.study is not None:
        write_marked(write, to_toml(tuning.study))
    if json:
        print_json(tuning)
    else:
        _print(console, tuning, write)
    require(
        write is None or tuning.study is not None, f"{write} was not written: {tuning.warnings[-1]}"
    )


def _print(console: Console, tuning: Tuning, write: Path | None) -> None:
    factors = [f"× {factor:g}" for factor in tuning.sizes[0].factors]
    found = ("present", "best", "within 1%", "halved\ngains", "doubled\ngains")
    rows = []
    for size in tuning.sizes:
        losses = [f"{loss:.4f}" if math.isfinite(loss) else "diverged" for loss in size.losses]
        low, high = size.within_1pct
        gains = [
            f"{gain:+.2%}" if math.isfinite(gain) else "–"
            for gain in (size.gain_halved, size.gain_doubled)
        ]
        rows.append(
            [
                short_count(size.params),
                *losses,
                f"{size.present:.4g}",
                f"{size.best:.4g}{' (border)' if size.at_border else ''}",
                f"{low:.3g} – {high:.3g}" if math.isfinite(low) else "–",
                *gains,
            ]
        )
    title = f"Validation loss in nats, by factor of the present {tuning.setting}"
    console.print(table(title, [Column("N", justify="right"), *factors, *found], rows))
    if (law := tuning.law) is not None:
        errors = f"; standard errors {law.log_at_reference_error:.0%} and {law.slope_error:.2f}"
        say(
            console,
            f"law: {tuning.setting} = {law.at_reference:.4g} · (N / {short_count(law.reference)})^{law.slope:.3f}"
            + (errors if math.isfinite(law.slope_error) else ""),
        )
    gained_at = [
        (gain, size.params)
        for size in tuning.sizes
        for gain in (size.gain_halved, size.gain_doubled)
        if math.isfinite(gain)
    ]
    most = max(gained_at, default=None)
    if most is not None:
        gained = (
            f"gains at most {most[0]:.2%}, at {short_count(most[1])}"
            if most[0] > 0
            else "gains nothing"
        )
        say(console, f"Halving or doubling the present {tuning.setting} {gained}.")
    for warning in tuning.warnings:
        say(console, f"warning: {warning}")
    if write is not None and tuning.study is not None:
        say(console, f"written: {write}")
