"""`sdsl fit`: laws from anybody's table."""

from __future__ import annotations

import dataclasses
import json as json_format
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from sdsl_jax.cli.terminal import standard_console
from sdsl_jax.errors import SdslError, require

_COLUMN = tyro.conf.arg(metavar="NAME")
# Options that only one of the two kinds of fit reads, with their defaults.
_OF_LOSS = {
    "law": "chinchilla",
    "params_column": "params_nonembedding",
    "tokens_column": "train_tokens",
    "loss_column": "loss_nats",
    "flops_column": "",
    "rung_column": "",
    "resample": "rungs",
    "max_epochs": 4.0,
}
_OF_ACCEPTANCE = {
    "models": None,
    "estimator": "teacher_forced_samples",
    "domain": None,
    "temperature": None,
}


def fit(
    what: Annotated[Literal["loss", "acceptance"], tyro.conf.arg(metavar="loss|acceptance")],
    /,
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE.csv")],
    law: Annotated[
        Literal["chinchilla", "kaplan"], tyro.conf.arg(metavar="chinchilla|kaplan")
    ] = "chinchilla",
    params_column: Annotated[str, _COLUMN] = "params_nonembedding",
    tokens_column: Annotated[str, _COLUMN] = "train_tokens",
    loss_column: Annotated[str, _COLUMN] = "loss_nats",
    flops_column: Annotated[str, _COLUMN] = "",
    rung_column: Annotated[str, _COLUMN] = "",
    where: Annotated[str, tyro.conf.arg(metavar="ROWS")] = "",
    skip_incomplete: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    loss_unit: Annotated[
        Literal["nats", "bits", "perplexity"], tyro.conf.arg(metavar="nats|bits|perplexity")
    ] = "nats",
    models: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None,
    estimator: Annotated[str, _COLUMN] = "teacher_forced_samples",
    domain: Annotated[str | None, _COLUMN] = None,
    temperature: Annotated[float | None, tyro.conf.arg(metavar="T")] = None,
    resample: Annotated[Literal["rows", "rungs"], tyro.conf.arg(metavar="rows|rungs")] = "rungs",
    huber_delta: Annotated[float | None, tyro.conf.arg(metavar="DELTA")] = None,
    max_epochs: float = 4.0,
    starts: int = 64,
    bootstrap: int = 1000,
    confidence: Annotated[float, tyro.conf.arg(metavar="P")] = 0.9,
    seed: int = 0,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Fit a loss law, or every acceptance law, to a table, and say what the table cannot tell.

    loss: rows of size, training tokens and loss. acceptance: acceptance.csv of a study with
    models.csv beside it, or a table with the columns draft_params, draft_loss, target_params,
    target_loss, alpha (and draft_tokens, draft_id if you like). Sizes and tokens may be written
    125M, 4.2B, 1e9 or "13,000,000,000". What --json prints can be given to sdsl predict --loss-law
    and --acceptance-law.

    Args:
        what: loss or acceptance.
        csv: the table, compressed or not, with cells separated by commas, semicolons or tabs;
            records of a study as they are.
        law: form of the loss law: E + A/N^a + B/D^b, or Kaplan's.
        params_column: loss: column of the sizes.
        tokens_column: loss: column of the training tokens.
        loss_column: loss: column of the loss, in nats per token for sdsl predict.
        flops_column: loss: column of the training FLOPs C, for tables without tokens: D = C/(6N).
        rung_column: loss: column of the training run; rows of one size (and role and seed) if left
            out.
        where: rows to read, such as "seed == 0 and (family == 'opt' or not params < 1e8)"; a column
            with blanks in its name goes in backticks.
        skip_incomplete: leave out rows that lack a value, and say how many.
        loss_unit: of the losses in the table, per token; a law is fitted to nats.
        models: acceptance: records of the models; models.csv beside the table if left out.
        estimator: acceptance: rows of a study's records to fit.
        domain: acceptance: rows to fit; the most frequent domain if left out.
        temperature: acceptance: rows to fit; the most frequent temperature if left out.
        resample: loss: the bootstrap draws rows, or whole rungs; for acceptance always whole runs
            of drafts and of targets.
        huber_delta: where the Huber loss turns linear; 0.001 in ln L for losses, 0.02 for
            acceptance.
        max_epochs: loss: rows of more epochs are left out, where the table has a column epochs.
        starts: descents from different beginnings.
        bootstrap: resamples.
        confidence: of the intervals.
        seed: of starts and resamples.
        json: print JSON: one object for a loss law; for acceptance {"acceptance_laws": [...]}, the
            best first.
    """
    given = dict(locals())
    from sdsl_jax.config import FitConfig
    from sdsl_jax.fitting import table_warnings, tables
    from sdsl_jax.fitting.acceptance import fit_acceptance, pair_resamples
    from sdsl_jax.fitting.loss import fit_loss, resamples

    other = _OF_ACCEPTANCE if what == "loss" else _OF_LOSS
    unread = [
        "--" + name.replace("_", "-") for name, default in other.items() if given[name] != default
    ]
    kind = "acceptance" if what == "loss" else "loss"
    require(
        not unread,
        f"{', '.join(unread)} can only be given to sdsl fit {kind}, not to sdsl fit {what}.",
    )
    require(seed >= 0, f"--seed is {seed}; it must not be negative.")
    delta = "huber_delta" if what == "loss" else "acceptance_huber_delta"
    settings: dict[str, Any] = {} if huber_delta is None else {delta: huber_delta}
    settings |= {
        "resample": resample,
        "starts": starts,
        "bootstrap": bootstrap,
        "confidence": confidence,
    }
    try:
        config = FitConfig(max_epochs=max_epochs, **settings)
    except SdslError as error:
        # Settings are checked as those of a study; here they are options.
        name, _, rest = str(error).removeprefix("fit.").removeprefix("acceptance_").partition(" ")
        raise SdslError(f"--{name.replace('_', '-')} {rest}") from None
    choice = tables.Choice(where, skip_incomplete, loss_unit)
    if what == "loss":
        require(
            not flops_column or tokens_column == _OF_LOSS["tokens_column"],
            "give either --flops-column or --tokens-column, not both.",
        )
        read = tables.read_loss_table(
            csv,
            params_column,
            tokens_column,
            loss_column,
            rung_column,
            max_epochs,
            flops_column,
            choice,
        )
        table, runs_are_sizes = read.table, not rung_column and resample == "rungs"
        doubts = table_warnings.loss_table_warnings(table, read.lines, runs_are_sizes)
        fits = [fit_loss(table, config, resamples(table, config, seed), seed, law)]
        valid = {"params": _span(table.params), "tokens": _span(table.tokens)}
    else:
        read = tables.read_pair_table(csv, models, estimator, domain, temperature, choice)
        table = read.table
        doubts = table_warnings.pair_table_warnings(table, read.lines)
        basis = f"bootstrap over training runs of drafts and of targets, {bootstrap} draws"
        fits = fit_acceptance(table, config, pair_resamples(table, bootstrap, seed), seed, basis)
        valid = {
            f"{role}_{name}": _span(getattr(getattr(table, role), name))
            for role in ("draft", "target")
            for name in ("params", "loss")
        }
    # Rows that the best law does not describe are a matter of the table, whichever law is asked
    # for.
    best = fits[0]
    doubts += table_warnings.residual_warnings(
        best.residuals, len(best.covariance), best.residual_unit, read.lines
    )
    answers = [
        dataclasses.replace(
            made.record(),
            warnings=[*read.notes, *doubts, *made.warnings],
            params_count=read.params_count,
            valid=valid,
        ).to_json()
        for made in fits
    ]
    if json:
        _print_json(answers[0] if what == "loss" else {"acceptance_laws": answers})
    else:
        _print_laws(standard_console(), answers, csv)


def _span(values: Any) -> tuple[float, float]:
    return float(min(values)), float(max(values))


def _print_json(value: Any) -> None:
    print(json_format.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_laws(console: Console, answers: list[dict[str, Any]], path: Path) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if len(answers) > 1:
        ranking = Table(
            title=f"Acceptance laws fitted to {answers[0]['n']} pairs of {path}",
            title_justify="left",
        )
        for heading in ("law", "error on left-out drafts", "residual", "condition number"):
            ranking.add_column(heading, justify="left" if heading == "law" else "right")
        for a in answers:
            ranking.add_row(
                a["law"],
                f"{a['left_out_rmse']:.4f}",
                f"{a['rmse']:.4f}",
                f"{a['condition_number']:.3g}",
            )
        console.print(ranking)
        say(
            "Errors: root mean square of α; left-out: every draft size predicted by a fit that did not see it."
        )
    shared = [
        text for text in answers[0]["warnings"] if all(text in a["warnings"] for a in answers)
    ]
    for a in answers:
        percent = next(k for k in a if k.startswith("interval_") and k != "interval_basis")[9:]
        title = a["law"] if len(answers) > 1 else f"{a['law']}, fitted to {a['n']} rows of {path}"
        table = Table(title=title, title_justify="left")
        for heading in (
            "coefficient",
            "estimate",
            "standard error",
            f"{percent}% bootstrap",
            f"{percent}% profile",
        ):
            table.add_column(heading, justify="left" if heading == "coefficient" else "right")
        for name, value in a["coefficients"].items():
            ends = [a[f"interval_{percent}"][name], a[f"profile_interval_{percent}"][name]]
            # An E of less than 10⁻⁵ of the estimate rests on its bound, which stands for none.
            spans = [
                f"{0 if 0 < low < 1e-5 * value else low:.4g} – {high:.4g}" for low, high in ends
            ]
            table.add_row(name, f"{value:.5g}", f"{a['standard_error'][name]:.3g}", *spans)
        console.print(table)
        if len(answers) == 1:
            say(
                f"objective {a['objective']:.6g}, Huber δ {a['huber_delta']:g}, residual {a['rmse']:.4g} ({a['residual_unit']})\n"
                f"{a['starts_agreeing']:.0%} of {a['starts']} starts agree; condition number {a['condition_number']:.3g}; "
                f"{a['interval_basis']}"
            )
        for warning in a["warnings"]:
            if warning not in shared:
                say(f"warning: {warning}")
    for warning in shared:
        say(f"warning{' about all laws' * (len(answers) > 1)}: {warning}")
