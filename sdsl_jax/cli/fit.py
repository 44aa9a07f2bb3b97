"""`sdsl fit`: laws from anybody's table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.options import Topic
from sdsl_jax.cli.terminal import print_json, say, standard_console, table
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.fitting.law_files import LawRecord

_COLUMN = arg(metavar="NAME")

TOPICS = (
    Topic("table", "Which rows are fitted.", ("where", "skip_incomplete", "objective")),
    Topic(
        "loss",
        "For a loss law.",
        (
            *("law", "params_column", "tokens_column", "loss_column", "flops_column"),
            *("rung_column", "loss_unit", "max_epochs"),
        ),
    ),
    Topic("acceptance", "For acceptance laws.", ("models", "estimator", "domain", "temperature")),
    Topic("lengths", "For acceptance by position.", ("leave_out", "given")),
    Topic(
        "estimation",
        "How the law is estimated.",
        ("resample", "huber_delta", "starts", "bootstrap", "confidence", "seed"),
    ),
)


def fit(
    what: Annotated[
        Literal["loss", "acceptance", "lengths", "domains"],
        arg(metavar="loss|acceptance|lengths|domains"),
    ],
    /,
    csv: Annotated[Path, arg(metavar="FILE.csv")],
    law: Annotated[
        Literal["chinchilla", "kaplan", "nested", "best"] | None,
        arg(metavar="chinchilla|kaplan|nested|best"),
    ] = None,
    params_column: Annotated[str | None, _COLUMN] = None,
    tokens_column: Annotated[str | None, _COLUMN] = None,
    loss_column: Annotated[str | None, _COLUMN] = None,
    flops_column: Annotated[str | None, _COLUMN] = None,
    rung_column: Annotated[str | None, _COLUMN] = None,
    where: Annotated[str, arg(metavar="ROWS")] = "",
    skip_incomplete: Flag = False,
    loss_unit: Annotated[
        Literal["nats", "bits", "perplexity"], arg(metavar="nats|bits|perplexity")
    ] = "nats",
    objective: Annotated[str, arg(metavar="NAME")] = "",
    models: Annotated[Path | None, arg(metavar="FILE.csv")] = None,
    estimator: Annotated[str | None, _COLUMN] = None,
    domain: Annotated[str | None, _COLUMN] = None,
    temperature: Annotated[float | None, arg(metavar="T")] = None,
    resample: Annotated[Literal["rows", "rungs"] | None, arg(metavar="rows|rungs")] = None,
    huber_delta: Annotated[float | None, arg(metavar="DELTA")] = None,
    max_epochs: Annotated[float | None, arg(metavar="FLOAT")] = None,
    starts: int = 64,
    bootstrap: int = 1000,
    confidence: Annotated[float, arg(metavar="P")] = 0.9,
    seed: int = 0,
    leave_out: Annotated[str | None, _COLUMN] = None,
    given: int | None = None,
    json: Flag = False,
) -> None:
    """Fit a law to a table, and say what the table cannot tell.

    For a loss law, give rows of size, training tokens and loss. For acceptance laws, give the
    acceptance.csv of a study with models.csv beside it, or a table with the columns draft_params,
    draft_loss, target_params, target_loss and alpha (draft_tokens and draft_id are optional). Sizes
    and tokens may be written 125M, 4.2B, 1e9 or "13,000,000,000".

    Two kinds of fit read published tables, with a row for each draft (method, draft, target), domain
    and lookahead: gamma, and acceptance_length (tokens per round, bonus included), survival or alpha.
    "lengths" fits acceptance by position and predicts tokens per round at larger lookaheads;
    "domains" fits a partially pooled level of acceptance to each domain.

    The JSON that --json prints can be given to --loss-law and --acceptance-law of sdsl predict and
    sdsl codesign.

    Args:
        what: The kind of law.
        csv: The table, compressed or not, with cells separated by commas, semicolons or tabs.
            Records of a study are read as they are.
        law: Form of the loss law: E + A/N^a + B/D^b (chinchilla, the default), Kaplan's, or nested,
            which holds both; best for the one with the least error at left-out sizes.
        params_column: Column of the sizes; params_nonembedding if left out.
        tokens_column: Column of the training tokens; train_tokens if left out.
        loss_column: Column of the loss, in nats per token for sdsl predict; loss_nats if left out.
        flops_column: Column of the training FLOPs C, for tables without tokens: D = C/(6N).
        rung_column: Column of the training run; if left out, rows of the same size (and role and
            seed) count as one run.
        where: Rows to read, such as "seed == 0 and (family == 'opt' or not params < 1e8)". Put the
            name of a column that contains blanks in backticks.
        skip_incomplete: Leave out rows that lack a value, and say how many.
        loss_unit: Unit of the losses in the table, per token; the law is fitted to nats.
        objective: Drafts to fit, by what they were trained for, such as tv, or text for those trained
            on the text alone. Required where a study's records hold several kinds: no single law
            describes them.
        models: Records of the models; models.csv beside the table if left out.
        estimator: Estimator whose rows of a study's records are fitted; teacher_forced_samples if
            left out.
        domain: Domain whose rows are fitted; the most frequent one if left out.
        temperature: Temperature whose rows are fitted; the most frequent one if left out.
        resample: What the bootstrap draws: rows, or whole rungs (the default). For acceptance laws
            it always draws whole runs of drafts and of targets.
        huber_delta: Residual at which the Huber loss turns linear; 0.001 in ln L for losses and 0.02
            for acceptance if left out.
        max_epochs: Most epochs over the training text: rows with more are left out, where the table
            has a column epochs; 4 if left out.
        starts: Number of starting points of the fit.
        bootstrap: Number of bootstrap resamples.
        confidence: Confidence of the intervals.
        seed: Seed of starting points and resamples.
        leave_out: For lengths: column whose values are left out whole to measure errors, or series for
            each series by itself. Default: draft, or series in a table of one draft.
        given: For lengths: how many of the smallest lookaheads of a left-out series a law may see; 2
            if left out.
        json: Print JSON: one object for a loss law; for acceptance laws {"acceptance_laws": [...]},
            the best first.
    """
    of_loss: dict[str, Any] = {
        "law": law,
        "params_column": params_column,
        "tokens_column": tokens_column,
        "loss_column": loss_column,
        "flops_column": flops_column,
        "rung_column": rung_column,
        "resample": resample,
        "max_epochs": max_epochs,
    }
    of_acceptance: dict[str, Any] = {
        "models": models,
        "estimator": estimator,
        "domain": domain,
        "temperature": temperature,
    }
    of_lengths: dict[str, Any] = {"leave_out": leave_out, "given": given}
    if what in ("lengths", "domains"):
        read = of_lengths if what == "lengths" else {}
        changed = {
            "huber_delta": huber_delta,
            "skip_incomplete": skip_incomplete or None,
            "loss_unit": None if loss_unit == "nats" else loss_unit,
            "objective": objective or None,
            "starts": None if starts == 64 else starts,
            "bootstrap": None if bootstrap == 1000 else bootstrap,
            "confidence": None if confidence == 0.9 else confidence,
            "seed": seed or None,
        }
        _refuse({} if read else of_lengths, what, "lengths")
        _refuse(of_loss | of_acceptance | changed, what, "loss or acceptance")
        _published(what, csv, {k: v for k, v in read.items() if v is not None}, where, json)
        return
    _refuse(of_lengths, what, "lengths")
    own, other, kind = of_loss, of_acceptance, "acceptance"
    if what == "acceptance":
        own, other, kind = of_acceptance, of_loss, "loss"
    _refuse(other, what, kind)
    from sdsl_jax.fitting.fits import AcceptanceFits, fit_acceptance, fit_loss

    options = own | {
        "huber_delta": huber_delta,
        "where": where,
        "skip_incomplete": skip_incomplete,
        "loss_unit": loss_unit,
        "objective": objective,
        "starts": starts,
        "bootstrap": bootstrap,
        "confidence": confidence,
        "seed": seed,
    }
    stated = {name: value for name, value in options.items() if value is not None}
    result = fit_loss(csv, **stated) if what == "loss" else fit_acceptance(csv, **stated)
    if json:
        print_json(result)
    else:
        fits = result.fits if isinstance(result, AcceptanceFits) else (result,)
        _print_laws(standard_console(), [fit.record for fit in fits], csv)


def _refuse(options: dict[str, Any], what: str, kind: str) -> None:
    unread = ["--" + name.replace("_", "-") for name, value in options.items() if value is not None]
    require(
        not unread,
        f"{', '.join(unread)} can only be given to sdsl fit {kind}, not to sdsl fit {what}.",
    )


def _published(what: str, csv: Path, options: dict[str, Any], where: str, json: bool) -> None:
    from sdsl_jax.cli.fit_published import print_domains, print_lengths
    from sdsl_jax.fitting.acceptance_fits import fit_domains, fit_lengths

    if what == "lengths":
        lengths = fit_lengths(csv, where=where, **options)
        print_json(lengths) if json else print_lengths(standard_console(), lengths, csv)
    else:
        domains = fit_domains(csv, where=where)
        print_json(domains) if json else print_domains(standard_console(), domains, csv)


def _print_laws(console: Console, laws: list[LawRecord], path: Path) -> None:
    several = len(laws) > 1
    if several:
        ranking = table(
            f"Acceptance laws fitted to {laws[0].n} pairs of {path}",
            ("law", "error on left-out drafts", "residual", "condition number"),
            [
                (
                    law.law,
                    f"{law.left_out_rmse:.4f}",
                    f"{law.rmse:.4f}",
                    f"{law.condition_number:.3g}",
                )
                for law in laws
            ],
        )
        console.print(ranking)
        say(
            console,
            "Errors: root mean square of α; left-out: every draft size predicted by a fit that did not see it.",
        )
    shared = [text for text in laws[0].warnings if all(text in law.warnings for law in laws)]
    for law in laws:
        percent = f"{100 * law.confidence:g}%"
        for sentence in law.accuracy():
            say(console, f"{law.law}: {sentence}" if several else sentence)
        columns = (
            "coefficient",
            "estimate",
            "robust standard error",
            f"{percent} bootstrap",
            f"{percent} profile",
        )
        rows = []
        for name, value in law.coefficients.items():
            # An E of less than 10⁻⁵ of the estimate rests on its bound, which stands for none.
            spans = [
                f"{0 if 0 < low < 1e-5 * value else low:.4g} – {high:.4g}"
                for low, high in (law.interval[name], law.profile_interval[name])
            ]
            rows.append([name, f"{value:.5g}", f"{law.standard_error[name]:.3g}", *spans])
        title = law.law if several else f"{law.law}, fitted to {law.n} rows of {path}"
        console.print(table(title, columns, rows))
        if not several:
            say(
                console,
                f"objective {law.objective:.6g}, Huber δ {law.huber_delta:g}, residual {law.rmse:.4g} ({law.residual_unit})\n"
                f"{law.starts_agreeing:.0%} of {law.starts} starts agree; condition number {law.condition_number:.3g}; "
                f"{law.interval_basis}"
                + f", {law.draws_cut_off:.0%} of them cut off before they converged"
                * (law.draws_cut_off > 0),
            )
        for warning in law.warnings:
            if warning not in shared:
                say(console, f"warning: {warning}")
    for warning in shared:
        say(console, f"warning{' about all laws' * several}: {warning}")
