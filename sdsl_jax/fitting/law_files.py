"""Fitted laws as JSON holds them, and laws by name or from such a file.

`sdsl fit --json` prints one `LawRecord`, or several; `fits.json` of a study holds a `Fits`. Both are
read here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.fitting.discrepancy import Discrepancy, scatter_alone
from sdsl_jax.records import read_json
from sdsl_jax.records.documents import from_json, to_json
from sdsl_jax.theory import (
    ACCEPTANCE_LAWS,
    LOSS_LAWS,
    PUBLISHED_ACCEPTANCE_LAWS,
    PUBLISHED_LOSS_LAWS,
    About,
    AcceptanceLaw,
    Hardware,
    LossLaw,
    Precision,
    ShapeRule,
    coefficients,
    draws_from_covariance,
)
from sdsl_jax.user_files import reason

_FORMS_OF = {"loss": LOSS_LAWS, "acceptance": ACCEPTANCE_LAWS}
_FORMS = LOSS_LAWS | ACCEPTANCE_LAWS
_PUBLISHED: dict[str, dict[str, Any]] = {
    "loss": PUBLISHED_LOSS_LAWS,
    "acceptance": PUBLISHED_ACCEPTANCE_LAWS,
}
Ends = tuple[float, float]
_UNSTATED = About()


@dataclass(frozen=True)
class PredictionError:
    """How well a table determines what its law predicts: half-widths of the interval of the
    prediction over the bootstrap draws, relative for losses and absolute for acceptance.

    They do not say whether the law is the right one.

    Attributes:
      inside: Median over the rows of the table.
      inside_worst: Largest over the rows of the table.
      extrapolated_10x: Half-width at 10 times the largest size and 10 times the most tokens.
    """

    inside: float
    inside_worst: float
    extrapolated_10x: float | None = None


@dataclass(frozen=True)
class LawRecord:
    """A fitted law, as JSON holds it.

    A file needs `law` and `coefficients` only. Keys that are None are not written, and the two
    intervals are written with their confidence: `interval_90`, `profile_interval_90`.

    Attributes:
      law: Name of the law, such as chinchilla or logit_plane.
      coefficients: Estimate of each coefficient.
      standard_error: Half the width of the bootstrap interval over the normal quantile; of positive
        coefficients in the logarithm, times the estimate.
      confidence: Probability that the intervals are to cover.
      interval: Quantiles of the bootstrap draws of each coefficient.
      interval_basis: What the draws are.
      profile_interval: Values at which refitting all other coefficients costs little; null: open.
      covariance: Covariance of the coefficients at the optimum, in their order.
      objective: Sum of the Huber losses at the optimum.
      n: Rows that the law was fitted to.
      huber_delta: Where the Huber loss turns linear.
      starts: Number of descents.
      starts_agreeing: Share of them at the best objective.
      draws_cut_off: Share of the bootstrap fits that stopped before they converged.
      condition_number: Condition number of the Jacobian with columns scaled to unit length.
      rmse: Root mean square residual.
      r_squared: Share of the variance that is explained.
      left_out_rmse: Root mean square residual at sizes that the fit did not see.
      residual_unit: What a residual is.
      prediction_error: How well the table determines predictions.
      warnings: What the table cannot tell.
      unidentified: Coefficients that the table leaves open; absent in older files.
      draws: Bootstrap draws of each coefficient; draw i of all belong together.
      params_count: What its sizes count.
      text: Text that its losses were measured on.
      valid: Range of each variable in the table.
      split: Part of the text that losses are from.
      excluded_for_epochs: Models that saw their text too often.
      excluded_for_recipe: Models trained by another recipe, such as targets that were given.
      residuals: Predicted - measured by model, in the logarithm of the loss.
      estimator: Estimator of the acceptance probabilities.
      discrepancy: What the form of the law misses.
    """

    law: str
    coefficients: dict[str, float]
    standard_error: dict[str, float] = field(default_factory=dict)
    confidence: float = 0.9
    interval: dict[str, Ends] = field(default_factory=dict)
    interval_basis: str = "draws of the coefficients"
    profile_interval: dict[str, Ends] = field(default_factory=dict)
    covariance: list[list[float]] = field(default_factory=list)
    objective: float = np.nan
    n: int | float | None = None
    huber_delta: float = np.nan
    starts: int = 0
    starts_agreeing: float = np.nan
    draws_cut_off: float = 0.0
    condition_number: float = np.nan
    rmse: float | None = None
    r_squared: float | None = None
    left_out_rmse: float = np.nan
    residual_unit: str = ""
    prediction_error: PredictionError | None = None
    warnings: list[str] = field(default_factory=list)
    unidentified: list[str] | None = None
    draws: dict[str, list[float]] = field(default_factory=dict)
    params_count: str | None = None
    text: str | None = None
    valid: dict[str, Ends] | None = None
    split: str | None = None
    excluded_for_epochs: int | None = None
    excluded_for_recipe: int | None = None
    residuals: dict[str, float] | None = None
    estimator: str | None = None
    discrepancy: Discrepancy | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of the JSON object."""
        percent = f"{100 * self.confidence:g}"
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("interval"):
                values[f"{f.name}_{percent}"] = to_json(value)
            elif f.name != "confidence" and value is not None:
                values[f.name] = to_json(value)
        return values

    def accuracy(self) -> list[str]:
        """How good its predictions are: a sentence each, none if that is not recorded."""
        error = self.prediction_error
        if error is None:
            return []
        what, form = ("L(N, D)", "{:.2%}") if self.law in LOSS_LAWS else ("α", "{:.4f}")
        inside, worst = (form.format(x) for x in (error.inside, error.inside_worst))
        text = (
            f"If the form of the law holds, predictions of {what} inside the table are good to ± {inside} "
            f"(worst row ± {worst})"
        )
        if error.extrapolated_10x is not None:
            text += f", at 10 times its largest size and tokens to ± {form.format(error.extrapolated_10x)}"
        sentences = [f"{text}, at {100 * self.confidence:g}% confidence."]
        if np.isfinite(self.left_out_rmse):
            sizes = "sizes" if self.law in LOSS_LAWS else "draft sizes"
            typical = form.format(self.left_out_rmse)
            sentences.append(
                f"On {sizes} that the fit did not see, the typical error is {typical}."
            )
        return sentences

    def form_error(self) -> Discrepancy:
        """What the form of the law misses; where the file does not say, rows scatter by the error
        at sizes that the fit did not see."""
        typical = self.left_out_rmse if np.isfinite(self.left_out_rmse) else self.rmse or 0.0
        return self.discrepancy or scatter_alone(
            typical, self.residual_unit, len(next(iter(self.draws.values())))
        )

    def to_law(self, about: About = _UNSTATED) -> Any:
        """The law of the estimates."""
        return _FORMS[self.law](**self.coefficients, about=about)

    def to_draws(self, about: About = _UNSTATED) -> Any:
        """The law whose coefficients are arrays [draws]."""
        draws = {name: np.asarray(self.draws[name], float) for name in self.coefficients}
        return _FORMS[self.law](**draws, about=about)


def read_law(values: dict[str, Any], where: str) -> LawRecord:
    """A law from an object of JSON.

    Args:
      values: The object.
      where: The file, for errors.

    Raises:
      SdslError: A key is missing, or holds something of another type.
    """
    try:
        return from_json(LawRecord, _plain_keys(values), where)
    except ArithmeticError as error:
        raise SdslError(f"{where} is damaged ({reason(error)}).") from None


def _plain_keys(values: Any) -> Any:
    """Takes the confidence out of the keys of the intervals."""
    if not isinstance(values, dict):
        return values
    plain = dict(values)
    for key in values:
        if match := re.fullmatch(r"((?:profile_)?interval)_(\d+(?:\.\d+)?)", key):
            plain[match[1]] = plain.pop(key)
            plain["confidence"] = float(match[2]) / 100
    if isinstance(plain.get("warnings"), str):
        plain["warnings"] = [plain["warnings"]]
    return plain


@dataclass(frozen=True)
class TimedStep:
    """A timed step beside what the fitted device takes for it.

    Attributes:
      model_id: Model.
      operation: Decode or verify.
      width: Tokens of a row that the step feeds.
      batch: Rows.
      context: Cache positions.
      seconds: Measured seconds.
      predicted_seconds: Seconds that the fitted device takes.
      residual_log: Ln(predicted/measured).
    """

    model_id: str
    operation: str
    width: int
    batch: int
    context: int
    seconds: float
    predicted_seconds: float
    residual_log: float


@dataclass(frozen=True)
class DeviceRecord:
    """The device that the steps of a study were timed on.

    Attributes:
      coefficients: Coefficients of `theory.Hardware`; unknown ones are left out.
      precision: Bytes of a weight and of a cache entry.
      batch: Rows of the timed steps.
      context: Cache slots of each row.
      rmse_log: Root mean square of ln(predicted/measured).
      median_absolute_error: Median of |ln(predicted/measured)|.
      starts_agreeing: Share of descents at the best objective.
      condition_number: Condition number of the fit.
      warnings: What the timings cannot tell.
      rows: Timed steps.
      decode_seconds: One-token step of each model, s.
      verify_seconds_by_lookahead: Verify pass of each target by lookahead, s.
    """

    coefficients: dict[str, float]
    precision: dict[str, float]
    batch: float
    context: float
    rmse_log: float = np.nan
    median_absolute_error: float = np.nan
    starts_agreeing: float = np.nan
    condition_number: float = np.nan
    warnings: list[str] = field(default_factory=list)
    rows: list[TimedStep] = field(default_factory=list)
    decode_seconds: dict[str, float] = field(default_factory=dict)
    verify_seconds_by_lookahead: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fits:
    """`fits.json` of a study. Draw i of one law belongs to draw i of every other.

    Attributes:
      loss_law: L(N, D).
      acceptance_laws: Acceptance laws, the best by left-out drafts first.
      hardware: The device that steps were timed on.
      shape_rule: Shapes of the family, as `theory.ShapeRule`.
    """

    loss_law: LawRecord
    acceptance_laws: list[LawRecord]
    hardware: DeviceRecord
    shape_rule: dict[str, float]

    def laws(self) -> FittedLaws:
        """The laws as functions.

        Raises:
          SdslError: A law has an unknown name, or not its coefficients.
        """
        device = self.hardware
        try:
            return FittedLaws(
                loss=self.loss_law.to_law(),
                loss_draws=self.loss_law.to_draws(),
                acceptance={law.law: law.to_law() for law in self.acceptance_laws},
                acceptance_draws={law.law: law.to_draws() for law in self.acceptance_laws},
                hardware=Hardware(**device.coefficients),
                precision=Precision(**device.precision),
                batch=device.batch,
                context=device.context,
                verify_seconds={
                    target: {int(lookahead): s for lookahead, s in widths.items()}
                    for target, widths in device.verify_seconds_by_lookahead.items()
                },
                decode_seconds=device.decode_seconds,
                rule=ShapeRule(**self.shape_rule),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SdslError(
                f"the fitted laws (fits.json) are damaged: {error} is missing or of the wrong kind."
            ) from None


def read_fits(values: dict[str, Any], where: str = "the record file fits.json") -> Fits:
    """`fits.json` from its contents.

    Args:
      values: The parsed file.
      where: The file, for errors.

    Raises:
      SdslError: Something is missing or of another type.
    """
    plain = dict(values)
    plain["loss_law"] = _plain_keys(values.get("loss_law"))
    laws = values.get("acceptance_laws")
    plain["acceptance_laws"] = list(map(_plain_keys, laws)) if isinstance(laws, list) else laws
    return from_json(Fits, plain, where)


class FittedLaws(NamedTuple):
    """The laws of a study, with bootstrap draws that belong together: draw i of one law goes with
    draw i of another.

    Attributes:
      loss: Loss law.
      loss_draws: The same with arrays [draws].
      acceptance: Acceptance laws by name, the best first.
      acceptance_draws: The same with arrays [draws].
      hardware: Device that steps were timed on.
      precision: Bytes of weights and caches in the timings.
      batch: Rows of the timed steps.
      context: Cache slots of each row in the timed steps.
      verify_seconds: Seconds of a verify pass by target and lookahead.
      decode_seconds: Seconds of a one-token step by model.
      rule: Shapes of the family.
    """

    loss: LossLaw
    loss_draws: LossLaw
    acceptance: dict[str, AcceptanceLaw]
    acceptance_draws: dict[str, AcceptanceLaw]
    hardware: Hardware
    precision: Precision
    batch: float
    context: float
    verify_seconds: dict[str, dict[int, float]]
    decode_seconds: dict[str, float]
    rule: ShapeRule


# Draws from a covariance matrix: enough for the ends of a 90% interval to be known to a few percent
# of its width.
_DRAWS = 1000


class LoadedLaw(NamedTuple):
    """A law that was asked for.

    Attributes:
      name: The name that was asked for.
      law: Its coefficients and what they are about.
      draws: The same law with arrays of draws, or None.
      basis: What the draws are, or why there are none.
      joint: File whose joint draws these are; draws of laws from one file belong together.
      warnings: Warnings that came with the law.
    """

    name: str
    law: Any
    draws: Any
    basis: str
    joint: Path | None
    warnings: list[str]

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={float(v):.4g}" for k, v in coefficients(self.law).items())
        return f"LoadedLaw({self.name}: {type(self.law).__name__}({values}); {self.basis})"


_Kind = Literal["loss", "acceptance"]


def load_law(name: str | Path, kind: _Kind | None = None) -> LoadedLaw:
    """A published law by its name, or a fitted one from a JSON file.

    A file that holds several laws gives its first of the kind, which is the best;
    `FILE.json#NAME` asks for another.

    Args:
      name: A name such as besiroglu or paper, a path to a JSON file, or "fits.json#logit_plane".
      kind: Kind of law; None takes either, if the name leaves no doubt.

    Raises:
      SdslError: There is no such law, or the file holds none, or both kinds.
    """
    name = str(name)
    kinds: list[_Kind] = [kind] if kind else ["loss", "acceptance"]
    what = f"{kind} law" if kind else "law"
    published = {key: law for each in kinds for key, law in _PUBLISHED[each].items()}
    if name in published:
        law = published[name]
        return LoadedLaw(name, law, None, law.about.no_interval, None, [])
    # A file may have a # in its name; what follows the last one is the name of a law only where it
    # can be none of a file.
    file, mark, chosen = name.rpartition("#")
    if not mark or Path(name).exists():
        file, mark, chosen = name, "", ""
    path = Path(file)
    require(
        path.suffix == ".json" or path.exists(),
        f"{name} is no {what}; it must be one of {', '.join(published)}, or a JSON file that holds a fitted one.",
    )
    contents = read_json(path, dict)
    # The results of a study hold all laws; a file of its own holds one.
    laws: list[Any] = [contents]
    if "loss_law" in contents or "acceptance_laws" in contents:
        several = contents.get("acceptance_laws")
        of_kind = {
            "loss": [contents.get("loss_law")],
            "acceptance": several if isinstance(several, list) else [],
        }
        laws = [law for each in kinds for law in of_kind[each]]
    laws = [law for law in laws if isinstance(law, dict)]
    names = [str(law.get("law")) for law in laws]
    if mark:
        require(
            chosen in names,
            f"{path} holds no {what} named '{chosen}'; it holds {', '.join(names) or 'none'}.",
        )
        laws, names = [laws[names.index(chosen)]], [chosen]
    require(
        kind is not None or len(laws) < 2,
        f"{path} holds several laws; ask for one of them, such as {path}#{names[-1] if names else ''}.",
    )
    forms = {form: each for each in kinds for form in _FORMS_OF[each]}
    form = names[0] if names else "None"
    require(
        form in forms,
        f"{path} holds no {what}: its field law is {form}, and must be one of {', '.join(forms)}.",
    )
    record = read_law(laws[0], str(path))
    try:
        return _loaded(name, record, forms[form], path)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise SdslError(f"{path} does not hold a usable {what} ({reason(error)}).") from None


def _loaded(name: str, record: LawRecord, kind: str, path: Path) -> LoadedLaw:
    about = About(
        source=str(path),
        params_count=record.params_count or "non-embedding",
        text=record.text or About.text,
        valid=_ranges(record.valid or {}, kind, path),
        r_squared=record.r_squared,
        # Residuals of loss laws are those of logarithms.
        mean_squared_error=None if kind == "loss" or record.rmse is None else record.rmse**2,
        count=None if record.n is None else int(record.n),
    )
    law = record.to_law(about)
    require(
        np.isfinite(list(record.coefficients.values())).all(),
        f"{path} holds a coefficient that is not finite.",
    )
    draws, basis, joint = None, about.no_interval, None
    if record.draws:
        draws = record.to_draws(about)
        leaves = jax.tree.leaves(draws)
        require(
            len({len(leaf) for leaf in leaves}) == 1
            and len(leaves[0]) > 1
            and np.isfinite(leaves).all(),
            f"{path} holds draws that cannot be used: each coefficient needs a list of the same number of finite values.",
        )
        basis, joint = record.interval_basis, path
    elif record.covariance:
        with jax.enable_x64(True):
            draws = draws_from_covariance(
                law, jnp.asarray(record.covariance), _DRAWS, jax.random.key(int(kind == "loss"))
            )
        basis = f"{_DRAWS} normal draws from the covariance of the coefficients"
    return LoadedLaw(name, law, draws, basis, joint, record.warnings)


# What a law may be given a range of.
_VARIABLES = {
    "loss": ("params", "tokens"),
    "acceptance": ("draft_params", "target_params", "draft_loss", "target_loss"),
}


def _ranges(
    valid: dict[str, Ends], kind: str, path: Path
) -> tuple[tuple[str, float, float], ...] | None:
    for name in valid:
        require(
            name in _VARIABLES[kind],
            f"{path} gives a range of {name}; the range of {kind} laws may be given in {', '.join(_VARIABLES[kind])}.",
        )
    return tuple((name, low, high) for name, (low, high) in valid.items()) or None
