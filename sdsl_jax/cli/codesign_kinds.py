"""The best draft of each kind that a study measured, as a page for people."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column

from sdsl_jax.cli.terminal import say, table
from sdsl_jax.config import DraftKind
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.evidence.common import Estimate
    from sdsl_jax.evidence.kinds import KindBest, Kinds

_EXAMPLE = "sdsl study experiments/kinds.toml makes one in runs/kinds"


def kinds_of_study(kinds: str, objective: str | None, study: Path | None) -> Kinds:
    """The kinds that were asked for, as a study measured them.

    Args:
      kinds: Their names, separated by commas.
      objective: Objective that drafts were trained for; all of them if None.
      study: Folder of the study.

    Raises:
      SdslError: A name is wrong, or the study measured no kinds of draft.
    """
    from typing import get_args

    from sdsl_jax.evidence import StudyRecords
    from sdsl_jax.evidence.kinds import INDEPENDENT
    from sdsl_jax.evidence.kinds import kinds as measured

    names = [name.strip() for name in kinds.split(",") if name.strip()]
    known = [INDEPENDENT, *(kind for kind in get_args(DraftKind) if kind)]
    strange = [name for name in names if name not in known]
    require(
        names and not strange,
        f"--kinds is {kinds!r}; it must hold names from {', '.join(known)}, separated by commas.",
    )
    require(
        study is not None,
        f"--kinds compares drafts that a study measured; name its folder with --study ({_EXAMPLE}).",
    )
    assert study is not None
    answer = measured(StudyRecords(study))
    require(
        answer is not None,
        f"the study in {study} holds no drafts of several kinds for one target; {_EXAMPLE}.",
    )
    assert answer is not None
    there = sorted({r.objective for r in answer.results})
    require(
        objective is None or objective in there,
        f"--objective-trained is {objective!r}; the drafts of {study} were trained for {', '.join(there)}.",
    )

    def wanted(kind: str, trained_for: str) -> bool:
        return kind in names and objective in (None, trained_for)

    return dataclasses.replace(
        answer,
        results=[r for r in answer.results if wanted(r.kind, r.objective)],
        best=[b for b in answer.best if wanted(b.kind, b.objective)],
    )


def print_kinds(
    console: Console, answer: Kinds, asked: Sequence[str], objective: str | None
) -> None:
    """Prints the best of each kind, the best first, and why some have no law."""
    say(
        console,
        f"Drafts for {answer.target_id} ({short_count(answer.target_params)} parameters), the best of each kind in FLOPs first",
    )
    columns = (
        "kind",
        "objective",
        "best size\ntrained",
        "α",
        "γ",
        "S (FLOPs)",
        "S on the\nclock",
        "train\nTFLOP",
        "N*",
        "S at N*",
    )
    narrow = [Column(name, justify="right", no_wrap=True) for name in columns[1:]]
    console.print(table(None, [columns[0], *narrow], [_row(best) for best in answer.best]))
    for best in answer.best:
        if best.why_no_law:
            say(
                console,
                f"{best.kind}, {best.objective}: no law of this kind is fitted: {best.why_no_law}.",
            )
        elif math.isnan(best.draft_params.low):
            say(
                console,
                f"{best.kind}, {best.objective}: fewer than four training runs are behind N*, too few for an interval.",
            )
        elif best.inside < 0.5:
            say(
                console,
                f"{best.kind}, {best.objective}: N* lies outside the sizes that were trained in {1 - best.inside:.0%} of the "
                "draws.",
            )
    which = f" for the objective {objective}" if objective else ""
    for name in asked:
        if name not in {b.kind for b in answer.best}:
            say(console, f"{name}: no draft of this kind was trained{which} and measured.")
    say(console, f"{answer.confidence:.0%} intervals. {answer.basis}.")


def _row(best: KindBest) -> tuple[str, ...]:
    r = best.measured

    def ranged(value: Estimate, digits: int) -> str:
        if math.isnan(value.estimate):
            return "–"
        half = (value.high - value.low) / 2
        return f"{value.estimate:.{digits}f}" + (
            "" if math.isnan(half) else f" ± {half:.{digits}f}"
        )

    size = best.draft_params
    optimum = "–"
    if not best.why_no_law:
        middle, low, high = (
            short_count(float(f"{x:.2g}")) if math.isfinite(x) else ""
            for x in (size.estimate, size.low, size.high)
        )
        optimum = middle if math.isnan(size.low) else f"{middle}\n({low}–{high})"
    return (
        best.kind,
        best.objective,
        short_count(r.draft_params),
        ranged(r.alpha, 3),
        str(r.lookahead),
        ranged(r.speedup, 2),
        ranged(r.clock_speedup, 2),
        f"{r.train_flops / 1e12:.3g}",
        optimum,
        "–"
        if best.why_no_law
        else f"{best.speedup.estimate:.2f}"
        + ("" if math.isnan(size.low) else f"\n({best.speedup.low:.2f}–{best.speedup.high:.2f})"),
    )
