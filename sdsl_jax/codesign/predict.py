"""Which draft to train for a target, from laws alone."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.laws import (
    AlphaRange,
    intervals_over_draws,
    law_caveats,
    law_draws,
    unit_caveats,
)
from sdsl_jax.counts import exact_count, parse_size, short_count
from sdsl_jax.csv_table import is_missing, listed_names, read_csv
from sdsl_jax.errors import require
from sdsl_jax.fitting.law_files import LoadedLaw, load_law
from sdsl_jax.hardware import load_hardware
from sdsl_jax.kept_programs import kept_program
from sdsl_jax.notebook import table_of
from sdsl_jax.records.documents import to_json
from sdsl_jax.theory import (
    AcceptanceLaw,
    DraftOptimum,
    Elasticities,
    Flags,
    LossLaw,
    Scenario,
    flags,
    optima_of_draws,
    optimum_with_elasticities,
)

_DEFAULT_LAWS = {"loss": "besiroglu", "acceptance": "paper"}
# What a prediction does not know.
_LEFT_OUT = (
    "this counts only FLOPs, for one sequence, and knows no device: on H100s, overheads, memory traffic and batching change the "
    "best draft, γ and the speed-up"
)


@dataclass(frozen=True)
class Target:
    """A target in need of a draft: M, and the training tokens D of the draft and D′ of the target."""

    target_params: float
    draft_tokens: float
    target_tokens: float
    name: str = ""


def targets_from_csv(
    path: Path, draft_tokens: float | None = None, target_tokens: float | None = None
) -> list[Target]:
    """Targets from a CSV with the column target_params, and draft_tokens, target_tokens and name.

    Args:
      path: The file; capitals and blanks in its header do not matter.
      draft_tokens: For rows that give none.
      target_tokens: For rows that give none.

    Raises:
      SdslError: The file cannot be read, or lacks a column or a number.
    """
    table = read_csv(path, lower=True)
    require(
        "target_params" in table,
        f"{path} has no column target_params; its columns are {listed_names(table.names)}.",
    )
    defaults = {
        "target_params": None,
        "draft_tokens": draft_tokens,
        "target_tokens": target_tokens,
    }
    cells = {name: table.column(name) for name in (*defaults, "name") if name in table}

    def value(name: str, row: int) -> float:
        text = cells[name][row] if name in cells else ""
        where = f"{path}, line {table.lines[row]}:"
        if not is_missing(text):
            unclear = table.is_unclear(text)
            require(
                not unclear,
                f"{where} {name} is {text!r}, perhaps with a decimal comma; write 1300 or 1.3.",
            )
            return parse_size(text, f"{where} {name}")
        hint = (
            ""
            if name == "target_params"
            else f"; give the column, or --{name.replace('_', '-')} for all"
        )
        require(defaults[name] is not None, f"{where} no {name}{hint}.")
        return float(defaults[name] or 0)

    return [
        Target(
            value("target_params", row),
            value("draft_tokens", row),
            value("target_tokens", row),
            cells["name"][row] if "name" in cells else "",
        )
        for row in range(len(table))
    ]


@dataclass(frozen=True)
class PredictionInterval:
    """90% intervals of the optimum over the draws of both laws.

    Attributes:
      draft_params: Interval of N*, among draws that speculate.
      lookahead: Interval of γ*.
      speedup: Interval of S*.
    """

    draft_params: list[float]
    lookahead: list[float]
    speedup: list[float]


@dataclass(frozen=True, repr=False)
class Prediction:
    """The draft to train for one target. Where speculation does not pay there is no draft size;
    where the acceptance law reaches 1 there is no optimum at all.

    Attributes:
      name: Name of the target; left out of JSON if empty.
      target_params: M, in the count of the laws.
      draft_tokens: D, training tokens of the draft.
      target_tokens: D′, training tokens of the target.
      loss_law: Name or file of the loss law.
      acceptance_law: Name or file of the acceptance law.
      params_count: Parameters that the loss law counts: total or non-embedding.
      draft_overhead: c₀, fixed cost of a draft step in target steps.
      draft_params: N*.
      lookahead: γ*, a real number.
      lookahead_integer: Best whole γ; 0 where none pays.
      acceptance: α at N*.
      draft_cost: Cost d of a draft step at N*, in target steps.
      draft_loss: Loss of a draft of N* parameters, in nats per token.
      target_loss: Loss of the target, in nats per token.
      speedup: S at γ*; 1 where speculation does not pay.
      speedup_integer: S at the best whole γ.
      speculate: Whether a whole lookahead beats plain decoding.
      indifference_1pct: Draft sizes that lose at most 1% of S.
      indifference_5pct: Draft sizes that lose at most 5% of S.
      elasticity: d ln N*/d ln of M, D and D′.
      interval_90: Intervals over the draws of both laws.
      interval_basis: What the draws are, or why there is no interval.
      warnings: What to know before relying on the prediction.
      leaves_out: What a prediction does not know.
      codesign_command: The command that asks the same about a device.
    """

    name: str
    target_params: float
    draft_tokens: float
    target_tokens: float
    loss_law: str
    acceptance_law: str
    params_count: str
    draft_overhead: float
    draft_params: float | None
    lookahead: float | None
    lookahead_integer: int | None
    acceptance: float | None
    draft_cost: float | None
    draft_loss: float | None
    target_loss: float
    speedup: float | None
    speedup_integer: float | None
    speculate: bool
    indifference_1pct: list[float] | None
    indifference_5pct: list[float] | None
    elasticity: dict[str, float] | None
    interval_90: PredictionInterval | None
    interval_basis: str
    warnings: list[str]
    leaves_out: str
    codesign_command: str

    @property
    def title(self) -> str:
        """The target by its name and size."""
        size = short_count(self.target_params)
        return f"{self.name} ({size})" if self.name else size

    def to_json(self) -> dict[str, Any]:
        """As `sdsl predict --json` prints it."""
        values = {f.name: to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return values if self.name else {k: v for k, v in values.items() if k != "name"}

    def cells(self) -> dict[str, str]:
        """What a table shows, by label."""
        cells = {
            "target": self.title,
            "tokens D | D′": f"{short_count(self.draft_tokens)} | {short_count(self.target_tokens)}",
            "draft N*": short_count(self.draft_params),
        }
        if self.draft_params is None or self.elasticity is None:
            verdict = "does not pay" if self.speedup is not None else "no finite optimum"
            return (
                cells
                | dict.fromkeys(("M / N*", "within 1%", "within 5%", "γ* (whole)", "α"), "–")
                | {"speed-up": verdict}
            )
        slopes = self.elasticity
        return cells | {
            "M / N*": f"{self.target_params / self.draft_params:.0f}",
            "within 1%": size_range(self.indifference_1pct),
            "within 5%": size_range(self.indifference_5pct),
            "γ* (whole)": f"{self.lookahead:.1f} ({self.lookahead_integer})",
            "α": f"{self.acceptance:.3f}",
            "speed-up": f"{self.speedup_integer:.2f}×",
            "d ln N*/d ln M": f"{slopes['target_params']:.3f}",
            "d ln N*/d ln D": f"{slopes['draft_tokens']:.3f}",
            "d ln N*/d ln D′": f"{slopes['target_tokens']:.4f}",
        }

    def interval_text(self) -> str:
        """The 90% interval in words, or why there is none."""
        if self.interval_90 is None:
            return f"none ({self.interval_basis})"
        (low, high), (slow, fast) = self.interval_90.lookahead, self.interval_90.speedup
        return (
            f"draft {size_range(self.interval_90.draft_params)}, γ {low:.1f} – {high:.1f}, "
            f"speed-up {slow:.2f} – {fast:.2f} ({self.interval_basis})"
        )

    def __repr__(self) -> str:
        cells = self.cells()
        draft = f"draft {cells['draft N*']}, γ* {cells['γ* (whole)']}, " if self.speculate else ""
        return f"Prediction(target {self.title}: {draft}speed-up {cells['speed-up']})"

    def _repr_html_(self) -> str:
        """The cells as a table, for notebooks."""
        return table_of(f"The draft to train for {self.title}", self.cells())


def size_range(ends: list[float] | None) -> str:
    """Two sizes in short, such as 169M – 563M; a dash for none."""
    return "–" if ends is None else f"{short_count(ends[0])} – {short_count(ends[1])}"


def predict(
    targets: Sequence[Target],
    loss: LoadedLaw | str = _DEFAULT_LAWS["loss"],
    acceptance: LoadedLaw | str = _DEFAULT_LAWS["acceptance"],
    draft_overhead: float = 0.0,
    smallest_draft: float | None = None,
) -> list[Prediction]:
    """The draft to train for each target.

    Everything is computed in float64, the optima of all targets in one call.

    Args:
      targets: Sizes in the parameter count of the laws.
      loss: Gives L(N, D); a published law by name, the JSON of a fit, or a law that was loaded.
      acceptance: Gives α; named in the same way.
      draft_overhead: c₀, cost of a draft step of any size in target steps, on top of N/M.
      smallest_draft: Smallest N considered; a 100,000th of each target if None.

    Raises:
      SdslError: A number is out of range, or a law cannot be loaded.
    """
    loss = load_law(loss, "loss") if isinstance(loss, str) else loss
    acceptance = load_law(acceptance, "acceptance") if isinstance(acceptance, str) else acceptance
    require(
        0 <= draft_overhead < float("inf"),
        f"the draft overhead is {draft_overhead}; it must be 0 or more.",
    )
    lows = [t.target_params / 1e5 if smallest_draft is None else smallest_draft for t in targets]
    for low, target in zip(lows, targets):
        require(
            0 < low < target.target_params,
            f"the smallest draft is {low:g} parameters and the target {target.target_params:g}; a draft must be smaller.",
        )
    with jax.enable_x64(True):
        columns = np.asarray(
            [(t.target_params, t.draft_tokens, t.target_tokens) for t in targets], float
        )
        solved = _solved(columns, np.asarray(lows), loss.law, acceptance.law, draft_overhead)
        answers = jax.tree.map(np.asarray, solved)
        return [
            _prediction(
                target,
                Scenario(m, d, d_target, loss.law, acceptance.law, draft_overhead, lows[i]),
                jax.tree.map(lambda x, i=i: x[i], answers),
                loss,
                acceptance,
            )
            for i, (target, (m, d, d_target)) in enumerate(zip(targets, columns))
        ]


class _Answer(NamedTuple):
    """What is computed for a target; `losses` are those of draft and target, in nats per token."""

    best: DraftOptimum
    slopes: Elasticities
    flags: Flags
    losses: Any

    @property
    def pays(self) -> bool:
        """Whether speculation pays at an optimum to speak of."""
        return bool(self.best.speculate) and not self.flags.acceptance_saturates


@kept_program
def _solved(
    columns: Any, lows: Any, loss: LossLaw, acceptance: AcceptanceLaw, overhead: Any
) -> _Answer:
    def one(column: jax.Array, low: jax.Array) -> _Answer:
        scenario = Scenario(column[0], column[1], column[2], loss, acceptance, overhead, low)
        best, slopes = optimum_with_elasticities(scenario)
        losses = jnp.stack([loss(best.params, column[1]), loss(column[0], column[2])])
        return _Answer(best, slopes, flags(scenario, best), losses)

    return jax.vmap(one)(columns, lows)


def _prediction(
    target: Target, scenario: Scenario, answer: _Answer, loss: LoadedLaw, acceptance: LoadedLaw
) -> Prediction:
    best, losses, pays = answer.best, answer.losses, answer.pays
    require(
        np.isfinite([best.acceptance, *losses]).all(),
        f"for the target of {short_count(target.target_params)} parameters and {short_count(target.draft_tokens)} | "
        f"{short_count(target.target_tokens)} tokens "
        "the laws give no finite loss and acceptance: it is too far outside them.",
    )
    interval, basis = _interval(scenario, loss, acceptance)

    def if_pays(value: Any) -> float | None:
        return float(value) if pays else None

    def unless_saturated(value: Any) -> float | None:
        return None if answer.flags.acceptance_saturates else float(value)

    whole = unless_saturated(best.lookahead_integer)
    return Prediction(
        **vars(target),
        loss_law=loss.name,
        acceptance_law=acceptance.name,
        params_count=loss.law.about.params_count,
        draft_overhead=float(scenario.draft_overhead),
        draft_params=if_pays(best.params),
        lookahead=unless_saturated(best.lookahead),
        lookahead_integer=None if whole is None else int(whole),
        acceptance=if_pays(best.acceptance),
        draft_cost=if_pays(best.draft_step),
        draft_loss=if_pays(losses[0]),
        target_loss=float(losses[1]),
        speedup=unless_saturated(best.speedup),
        speedup_integer=unless_saturated(best.speedup_integer),
        speculate=pays,
        indifference_1pct=[float(x) for x in best.indifference_1pct] if pays else None,
        indifference_5pct=[float(x) for x in best.indifference_5pct] if pays else None,
        elasticity={k: float(v) for k, v in answer.slopes._asdict().items()} if pays else None,
        interval_90=interval if pays else None,
        interval_basis=basis,
        warnings=_warnings(scenario, answer, loss, acceptance),
        leaves_out=_LEFT_OUT,
        codesign_command=codesign_command(target, loss.name, acceptance.name),
    )


def codesign_command(target: Target, loss: str, acceptance: str) -> str:
    """The `sdsl codesign` command that asks the same about H100s, as many as the target's weights need."""
    # Two bytes a weight, and room for caches and a draft.
    memory = 0.85 * float(load_hardware("h100").hardware.memory_bytes)
    devices = 2 ** max(0, math.ceil(math.log2(2 * target.target_params / memory)))
    flags = {
        f"--{name.replace('_', '-')}": exact_count(getattr(target, name))
        for name in ("target_params", "target_tokens", "draft_tokens")
    }
    if target.name:
        flags["--target-name"] = shlex.quote(target.name)
    for law, name in (("loss", loss), ("acceptance", acceptance)):
        if name != _DEFAULT_LAWS[law]:
            flags[f"--{law}-law"] = shlex.quote(name)
    flags["--hardware"] = "h100"
    if devices > 1:
        flags["--devices"] = str(devices)
    return "sdsl codesign " + " ".join(f"{flag} {value}" for flag, value in flags.items())


_optima_of_draws = kept_program(optima_of_draws)


def _interval(
    scenario: Scenario, loss: LoadedLaw, acceptance: LoadedLaw
) -> tuple[PredictionInterval | None, str]:
    """90% interval over the draws of both laws, and what these are, or why there is none."""
    draws = law_draws(loss, acceptance)
    if draws.count == 0:
        return None, draws.basis
    solved = _optima_of_draws(scenario, draws.loss, draws.acceptance)
    optima = jax.tree.map(np.asarray, solved)
    over_draws = intervals_over_draws(
        {"draft_params": optima.params, "lookahead": optima.lookahead, "speedup": optima.speedup},
        # Above 1 where a whole lookahead pays.
        optima.speedup_integer,
        np.isfinite(optima.lookahead),
        of_speculating=("draft_params",),
        more_than=0.5,
    )
    basis, share = draws.basis, over_draws.share_that_speculate
    if share < 1:
        basis += f"; speculation pays in {share:.0%} of the draws, and draft_params is among these"
    if over_draws.ends is None:
        return None, f"{basis}; too few for an interval"
    return PredictionInterval(**over_draws.ends), basis


def _warnings(
    scenario: Scenario, answer: _Answer, loss: LoadedLaw, acceptance: LoadedLaw
) -> list[str]:
    best, flagged, pays = answer.best, answer.flags, answer.pays
    warnings = []
    if flagged.acceptance_saturates:
        warnings.append(
            "the acceptance law gives α ≥ 1 to drafts as good as the best, which is no probability: it has no optimum here"
        )
    elif not pays:
        # No whole lookahead of any draft gains more than the best real one.
        gain = 100 * (float(best.speedup) - 1)
        warnings.append(
            "speculation does not pay: no draft size and lookahead beat plain decoding"
            if gain <= 0
            else "speculation does not pay: the best draft size needs a lookahead below 1, and no size with a whole one "
            f"gains more than {gain:.2g}%"
        )
        if flagged.acceptance_not_positive:
            warnings.append("the acceptance law gives no draft a positive α")
    else:
        if 0.99 * best.speedup_integer <= 1:
            warnings.append("plain decoding is within 1% of the optimum")
        if flagged.at_bound:
            warnings.append(
                "the optimum is the smallest or largest draft considered: S may rise beyond it"
            )
        problem, (low, high) = scenario.problem(), best.indifference_1pct
        if problem.acceptance(high) <= problem.acceptance(low):
            warnings.append(
                "the acceptance law does not rise with the size of the draft around the optimum"
            )
    stated = {
        "draft": {"tokens": float(scenario.draft_tokens)},
        "target": {
            "params": float(scenario.target_params),
            "tokens": float(scenario.target_tokens),
        },
    }
    alphas = None
    losses = {"target_loss": float(answer.losses[1])}
    if pays:
        stated["draft"]["params"] = float(best.params)
        losses["draft_loss"] = float(answer.losses[0])
        # How far the law moves α with the size of the draft, to be held against its error.
        larger = min(100 * float(best.params), float(scenario.target_params))
        alpha_of_larger = float(scenario.problem().acceptance(larger))
        alphas = AlphaRange(float(best.params), float(best.acceptance), larger, alpha_of_larger)
    warnings += unit_caveats(loss, acceptance, stated)
    if flagged.interval_extrapolated and not (
        flagged.acceptance_extrapolated or flagged.draft_loss_extrapolated
    ):
        warnings.append("the sizes within 5% reach beyond what the laws were fitted on")
    return warnings + law_caveats(
        loss, acceptance, stated, losses, alpha_range=alphas, with_values=False
    )
