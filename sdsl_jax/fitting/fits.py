"""Laws from a table in one call: what `sdsl fit` does, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdsl_jax.config import FitConfig
from sdsl_jax.errors import SdslError, require
from sdsl_jax.fitting import table_warnings, tables
from sdsl_jax.fitting.acceptance import fit_acceptance_laws, pair_resamples
from sdsl_jax.fitting.law_fit import FitWarning, LawFit
from sdsl_jax.fitting.loss import fit_loss_law, resamples
from sdsl_jax.notebook import table_of


@dataclass(frozen=True)
class AcceptanceFits:
    """Every acceptance law fitted to one table, the best first.

    Laws are ranked by their error at draft sizes that the fit did not see. `fits["logit_plane"]`
    is one of them by its name; `law`, `draws` and `warnings` are those of the best.
    """

    fits: tuple[LawFit, ...]

    @property
    def law(self) -> Any:
        """The best law."""
        return self.fits[0].law

    @property
    def draws(self) -> Any:
        """The best law, each coefficient an array [draws] of bootstrap values."""
        return self.fits[0].draws

    @property
    def warnings(self) -> tuple[FitWarning, ...]:
        """What the best fit cannot tell."""
        return self.fits[0].warnings

    def __getitem__(self, name: str) -> LawFit:
        """The fit of one law by its name.

        Raises:
          KeyError: There is no such law.
        """
        return {fit.record.law: fit for fit in self.fits}[name]

    def __iter__(self) -> Iterator[LawFit]:
        return iter(self.fits)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `sdsl fit acceptance --json` prints."""
        return {"acceptance_laws": [fit.to_json() for fit in self.fits]}

    def __repr__(self) -> str:
        ranking = ", ".join(f"{f.record.law} {f.record.left_out_rmse:.4f}" for f in self.fits)
        return f"AcceptanceFits(error on left-out drafts: {ranking})"

    def _repr_html_(self) -> str:
        """The ranking as a table, for notebooks."""
        errors = {fit.record.law: f"{fit.record.left_out_rmse:.4f}" for fit in self.fits}
        return table_of("Error on left-out drafts", errors) + self.fits[0]._repr_html_()


def fit_loss(
    table: tables.TableSource,
    *,
    law: Literal["chinchilla", "kaplan", "nested", "best"] = "chinchilla",
    params_column: str = "params_nonembedding",
    tokens_column: str | None = None,
    loss_column: str = "loss_nats",
    flops_column: str = "",
    rung_column: str = "",
    where: str = "",
    skip_incomplete: bool = False,
    loss_unit: tables.LossUnit = "nats",
    objective: str = "",
    max_epochs: float = 4.0,
    resample: Literal["rows", "rungs"] = "rungs",
    huber_delta: float = 1e-3,
    starts: int = 64,
    bootstrap: int = 1000,
    confidence: float = 0.9,
    seed: int = 0,
) -> LawFit:
    """Fits a loss law L(N, D) to a table of trained models.

    Args:
      table: Path to a CSV, a pandas DataFrame, or a list of dictionaries; one row per model.
      law: Form of the law: E + A/N^a + B/D^b, Kaplan's, or the one that holds both ("nested"); "best"
        for the one with the least error at left-out sizes.
      params_column: Column with the sizes N.
      tokens_column: Column with the training tokens D; train_tokens if left out.
      loss_column: Column with the losses.
      flops_column: Column with the training FLOPs C, for tables without tokens: D = C/(6N).
      rung_column: Column with the name of the training run. If it is left out, rows of one size
        (and role and seed) count as one run.
      where: Rows to read, such as "seed == 0 and params < 1e9".
      skip_incomplete: Leave out rows that lack a value.
      loss_unit: Unit of the losses, per token. The law is fitted to nats.
      objective: Drafts to fit, by what they were trained for, "text" for the text alone; needed
        where a table mixes them.
      max_epochs: Rows of more epochs are left out, where the table has a column epochs.
      resample: Whether the bootstrap draws rows or whole training runs.
      huber_delta: Residual in ln L at which the Huber loss turns linear.
      starts: Number of descents, each from another start.
      bootstrap: Number of resamples.
      confidence: Confidence of the intervals.
      seed: Seed of starts and resamples.

    Raises:
      SdslError: The table cannot be read, or does not determine the law.
    """
    config = _settings(
        seed,
        max_epochs=max_epochs,
        huber_delta=huber_delta,
        resample=resample,
        starts=starts,
        bootstrap=bootstrap,
        confidence=confidence,
    )
    require(
        not flops_column or tokens_column is None,
        "give either --flops-column or --tokens-column, not both.",
    )
    read = tables.read_loss_table(
        table,
        params_column,
        tokens_column or "train_tokens",
        loss_column,
        rung_column,
        max_epochs,
        flops_column,
        tables.Choice(where, skip_incomplete, loss_unit, objective),
    )
    rows: Any = read.table
    doubts = table_warnings.loss_table_warnings(
        rows, read.lines, not rung_column and resample == "rungs"
    )
    fit = fit_loss_law(rows, config, resamples(rows, config, seed), seed, law)
    valid = {"params": tables.span(rows.params), "tokens": tables.span(rows.tokens)}
    return _described([fit], read, doubts, valid)[0]


def fit_acceptance(
    table: tables.TableSource,
    *,
    models: Path | str | None = None,
    estimator: str = "teacher_forced_samples",
    domain: str | None = None,
    temperature: float | None = None,
    where: str = "",
    skip_incomplete: bool = False,
    loss_unit: tables.LossUnit = "nats",
    objective: str = "",
    laws: Sequence[str] = (),
    huber_delta: float = 0.02,
    starts: int = 64,
    bootstrap: int = 1000,
    confidence: float = 0.9,
    seed: int = 0,
) -> AcceptanceFits:
    """Fits acceptance laws to a table of pairs of draft and target, the best first.

    Args:
      table: Path to a CSV, a pandas DataFrame, or a list of dictionaries; one row per pair, with
        draft_params, draft_loss, target_params, target_loss and alpha, and draft_tokens and
        draft_id if there are any. Or acceptance.csv of a study.
      models: Path to the records of the models, where the table only names them; models.csv beside
        the table if left out.
      estimator: Rows of a study's records to fit.
      domain: Rows to fit; the most frequent domain if left out.
      temperature: Rows to fit; the most frequent temperature if left out.
      where: Rows to read, such as "draft_params < 1e9".
      skip_incomplete: Leave out rows that lack a value.
      loss_unit: Unit of the losses, per token.
      objective: Drafts to fit, by what they were trained for, "text" for the text alone; needed
        where the records mix them.
      laws: Names of the laws to fit, such as ("logit_gap", "affine_plane"); all if empty.
      huber_delta: Residual in α at which the Huber loss turns linear.
      starts: Number of descents, each from another start.
      bootstrap: Number of resamples of whole training runs, of drafts and of targets.
      confidence: Confidence of the intervals.
      seed: Seed of starts and resamples.

    Raises:
      SdslError: The table cannot be read or does not determine the laws, or there is no such law.
    """
    config = _settings(
        seed,
        acceptance_huber_delta=huber_delta,
        starts=starts,
        bootstrap=bootstrap,
        confidence=confidence,
    )
    read = tables.read_pair_table(
        table,
        None if models is None else Path(models),
        estimator,
        domain,
        temperature,
        tables.Choice(where, skip_incomplete, loss_unit, objective),
    )
    pairs: Any = read.table
    doubts = table_warnings.pair_table_warnings(pairs, read.lines)
    basis = f"bootstrap over training runs of drafts and of targets, {bootstrap} draws"
    weights = pair_resamples(pairs, bootstrap, seed)
    fits = fit_acceptance_laws(pairs, config, weights, seed, basis, laws)
    valid = {
        f"{role}_{name}": tables.span(getattr(getattr(pairs, role), name))
        for role in ("draft", "target")
        for name in ("params", "loss")
    }
    return AcceptanceFits(tuple(_described(fits, read, doubts, valid)))


def _settings(seed: int, **settings: Any) -> FitConfig:
    require(seed >= 0, f"--seed is {seed}; it must not be negative.")
    try:
        return FitConfig(**settings)
    except SdslError as error:
        # Settings are checked as those of a study; here they are options.
        name, _, rest = str(error).removeprefix("fit.").removeprefix("acceptance_").partition(" ")
        raise SdslError(f"--{name.replace('_', '-')} {rest}") from None


def _described(
    fits: list[LawFit],
    read: tables.ReadTable,
    doubts: list[str],
    valid: dict[str, tuple[float, float]],
) -> list[LawFit]:
    """The fits with the warnings about their table and its ranges."""
    # Rows far from the best law are a matter of the table, whichever law is used.
    best = fits[0]
    far = table_warnings.residual_warnings(
        best.residuals, len(best.record.coefficients), best.record.residual_unit, read.lines
    )
    of_table = [FitWarning("table", text) for text in (*read.notes, *doubts, *far)]
    return [
        fit.with_warnings(*of_table, *fit.warnings, params_count=read.params_count, valid=valid)
        for fit in fits
    ]
