"""`sdsl codesign --schedule`, and answers for several batches: how far to guess at every load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column

from sdsl_jax.cli.terminal import say, table
from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.counts import parse_share, short_count
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.codesign.answer import Answer
    from sdsl_jax.codesign.schedule import Schedule

# What is shown where nothing was asked for.
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXTS = (512.0, 2048.0, 8192.0)


def schedule_of(
    problem: ProblemFlags, survival: str, records: Path | None, mix: str = ""
) -> Schedule:
    """The schedule that the flags ask for.

    Raises:
      SdslError: No draft is named, acceptance is given twice, or a value is not allowed.
    """
    from sdsl_jax.codesign.problem import Problem
    from sdsl_jax.codesign.schedule import mixed_survival, schedule
    from sdsl_jax.codesign.serving_problem import with_acceptance

    given = [problem.acceptance is not None, bool(survival), records is not None]
    require(
        sum(given) <= 1,
        "acceptance was given several times; give one of --acceptance, --survival and --records.",
    )
    draft = problem.draft
    require(
        draft is not None or problem.file is not None,
        "--schedule is for a draft at hand; name it by --draft, such as Qwen/Qwen3-0.6B or 125M.",
    )
    require(
        problem.candidates is None,
        "--schedule is for one draft at hand; --candidates compares several without it.",
    )
    require(
        problem.objective is None and not problem.constraint and problem.variables is None,
        "--schedule gives the fastest lookahead of every load; it takes no --objective, --constraint or --variables.",
    )
    batches = problem.batches or list(_BATCHES)
    for batch in batches:
        require(batch == int(batch), f"--batch is {batch:g}; it must be a whole number of rows.")
    contexts = problem.contexts or list(_CONTEXTS)
    asked = Problem(
        **vars(problem) | {"batch": batches[0], "context": contexts[0], "acceptance": None}
    ).ready
    measured, basis = _survival(survival), "--survival" if survival else ""
    if mix:
        require(
            not survival,
            "--survival is of one kind of text; --mix takes --acceptance code=0.8,chat=0.6, or --records of its domains.",
        )
        shares = _by_domain(mix, "--mix")
        domains, where = _of_domains(problem, records, shares)
        measured = mixed_survival(domains, shares)
        basis = f"{where}; tokens {', '.join(f'{s:.0%} {name}' for name, s in shares.items())}"
    else:
        alpha: Any = problem.acceptance
        if records is not None:
            measured, alpha, basis = _of_records(records)
        elif alpha is not None:
            basis = "--acceptance"
        if alpha is not None:
            asked = with_acceptance(asked, _checked(alpha))
    return schedule(
        asked,
        [int(b) for b in batches],
        contexts,
        draft=draft if isinstance(draft, str) and not draft[:1].isdigit() else "",
        survival=measured,
        basis=basis,
    )


def _checked(alpha: Any) -> float:
    """An acceptance strictly between 0 and 1."""
    require(
        not isinstance(alpha, str) or "=" not in alpha,
        f"--acceptance is {alpha!r}; acceptance by domain needs their shares: give --mix code=0.5,chat=0.5.",
    )
    value = parse_share(alpha, "--acceptance") if isinstance(alpha, str) else float(alpha)
    require(0 < value < 1, f"the acceptance is {value:g}; it must lie between 0 and 1.")
    return value


def _survival(text: str) -> list[float]:
    return [parse_share(part, "--survival") for part in text.split(",") if part.strip()]


def _by_domain(text: str, flag: str) -> dict[str, float]:
    """DOMAIN=SHARE, each domain once."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, mark, share = (word.strip() for word in part.partition("="))
        require(
            name and mark and name not in values,
            f"{flag} is {text!r}; it must be of the form code=0.5,chat=0.5, each domain once.",
        )
        values[name] = parse_share(share, flag)
    return values


def _of_domains(
    problem: ProblemFlags, records: Path | None, shares: Mapping[str, float]
) -> tuple[dict[str, list[float]], str]:
    """Survival of each domain of a mix, and where it comes from."""
    from sdsl_jax.codesign.schedule import MOST_DRAFTS

    if records is None:
        require(
            isinstance(problem.acceptance, str) and "=" in problem.acceptance,
            "--mix needs the acceptance of each domain: --acceptance code=0.8,chat=0.6, or --records of these domains.",
        )
        alphas = _by_domain(str(problem.acceptance), "--acceptance")
        return {
            name: [_checked(alpha) ** k for k in range(1, MOST_DRAFTS + 1)]
            for name, alpha in alphas.items()
        }, f"--acceptance {problem.acceptance}"
    from sdsl_jax.records import read_table

    every = read_table(records, "survival", optional=True)
    held = sorted({row.domain for row in every})
    missing = [name for name in shares if name not in held]
    require(
        not missing,
        f"{records} holds no survival of {', '.join(missing)}; it holds that of {', '.join(held) or 'none'}.",
    )
    rows = [row for row in every if row.domain in shares]
    pairs = {(row.draft_id, row.target_id, row.temperature) for row in rows}
    require(
        len(pairs) == 1,
        f"{records} holds survival of {len(pairs)} pairs; --mix is for one draft, target and temperature.",
    )
    # Of each domain that of its largest γ, as far as all domains reach.
    most = {name: max(r.lookahead for r in rows if r.domain == name) for name in shares}
    found: dict[str, list[float]] = {name: [] for name in shares}
    for row in sorted(rows, key=lambda row: row.position):
        if row.lookahead == most[row.domain]:
            found[row.domain].append(row.survival)
    gammas = ", ".join(f"{gamma} ({name})" for name, gamma in most.items())
    return found, f"survival at γ = {gammas} in {records}"


def _of_records(folder: Path) -> tuple[list[float], float | None, str]:
    """Survival of the one pair of a folder at its largest lookahead, or else its α, and what it is."""
    from sdsl_jax.records import read_table

    rows = read_table(folder, "survival", optional=True)
    found = read_table(folder, "acceptance")
    pairs = sorted({(r.draft_id, r.target_id, r.temperature, r.domain) for r in [*rows, *found]})
    require(
        len(pairs) == 1,
        f"{folder} holds {len(pairs)} measurements; a schedule is for one draft, target, temperature and domain "
        "(several domains: --mix).",
    )
    draft, target, temperature, _ = pairs[0]
    where = f"{folder}: {draft} for {target} at T = {temperature:g}"
    if rows:
        most = max(row.lookahead for row in rows)
        kept = sorted((r for r in rows if r.lookahead == most), key=lambda r: r.position)
        return [row.survival for row in kept], None, f"survival at γ = {most} in {where}"
    alphas = [row for row in found if row.estimator == "teacher_forced_samples"]
    require(
        len(alphas) == 1,
        f"{folder} holds neither survival nor one acceptance on samples of the target; measure them by sdsl measure --out.",
    )
    return [], float(alphas[0].alpha), f"acceptance in {where}"


def print_schedule(console: Console, schedule: Schedule) -> None:
    """Prints the table by batch first, then the cells, then what the engines take."""
    say(console, f"{schedule.draft} for {schedule.target} on {schedule.device}\n")
    if not any(span.lookahead for span in schedule.spans):
        say(console, "Do not speculate: plain decoding is fastest at every batch and context.")
    else:
        spans = [
            (
                f"{span.first}" if span.first == span.last else f"{span.first} to {span.last}",
                f"{span.lookahead}" if span.lookahead else "0 (off)",
            )
            for span in schedule.spans
        ]
        say(console, "Lookahead by batch")
        console.print(table(None, ("rows", "γ"), spans))
        lost = schedule.largest_scheduled_loss
        table_loses = f"at most {lost:.1%} of the best speed-up" if lost >= 5e-4 else "nothing"
        single = (
            f"it loses {schedule.single_mean_loss:.1%} on average and {schedule.single_largest_loss:.1%} at worst."
            if schedule.single_largest_loss >= 5e-4
            else "it loses nothing either."
        )
        say(
            console,
            f"This table loses {table_loses} in any cell below. The best single γ is {schedule.single_lookahead}:\n{single}",
        )
        if any(cell.fits is False for cell in schedule.cells):
            say(console, f"Batches up to {schedule.spans[-1].last} fit at the shortest context.")
    if schedule.survival:
        shares = ", ".join(f"{s:.3g}" for s in schedule.survival)
        say(console, f"acceptance   survival {shares} ({schedule.basis})")
    else:
        say(console, f"acceptance   α = {schedule.acceptance:.3f} ({schedule.basis})")
    contexts = list(dict.fromkeys(cell.context for cell in schedule.cells))
    rows: dict[int, list[str]] = {}
    for cell in schedule.cells:
        shown = f"{cell.lookahead}  {cell.speedup:.2f}×" if cell.lookahead else "off"
        rows.setdefault(cell.batch, []).append("no room" if cell.fits is False else shown)
    columns: list[str | Column] = ["rows"]
    columns += [Column(f"context {c:,.0f}", justify="right") for c in contexts]
    console.print(
        table(
            "Best γ and its speed-up over plain decoding",
            columns,
            [(str(batch), *cells) for batch, cells in rows.items()],
        )
    )
    if schedule.vllm is not None:
        from sdsl_jax.codesign.schedule import vllm_option

        say(console, f"vLLM         {vllm_option(schedule.vllm)}")
        say(
            console,
            f"SGLang       {json.dumps(schedule.sglang)} for EAGLE heads; a draft model: --speculative-num-steps "
            f"{schedule.single_lookahead}",
        )
    for note in schedule.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for warning in schedule.warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False)


def print_batches(console: Console, answers: Mapping[float, Answer]) -> None:
    """Prints the best design of each batch, a row each."""
    rows = []
    for batch, answer in answers.items():
        best = answer.rounded
        one, five = (
            "–" if ends is None else f"{short_count(ends[0])} – {short_count(ends[1])}"
            for ends in (answer.indifference_1pct, answer.indifference_5pct)
        )
        rows.append(
            (
                f"{batch:g}",
                short_count(best.draft_params.total),
                f"{best.draft_layers:.0f} × {best.draft_width:.0f}",
                f"{best.lookahead:g}" if answer.speculate else "off",
                f"{best.speedup:.2f}×",
                one,
                five,
                f"{best.tokens_per_second:,.0f}",
                "yes" if answer.feasible else "no",
            )
        )
    headings = ("batch", "draft", "layers × width", "γ", "speed-up", "within 1%", "within 5%")
    console.print(table("The best design at each batch", (*headings, "tokens/s", "feasible"), rows))
    say(console, "Give --batch one number for the whole answer at that batch.")


__all__ = ["print_batches", "print_schedule", "schedule_of"]
