"""`sdsl check`: whether the draft of a running server does what it should."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Column
from tyro.conf import Positional, arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.terminal import print_json, say, standard_console, table
from sdsl_jax.counts import parse_share
from sdsl_jax.errors import require
from sdsl_jax.user_files import read_text
from sdsl_jax.user_urls import LARGEST, fetch_text, is_url

if TYPE_CHECKING:
    from sdsl_jax.codesign.predict_lookahead import LookaheadAnswer, MeasuredLookahead
    from sdsl_jax.measurement.served_acceptance import Judgement, Offline
    from sdsl_jax.measurement.server_counts import ServerReport

# Figures of other tools for the same run.
_ELSEWHERE = (
    "vllm_acceptance_length",
    "vllm_acceptance_rate",
    "sglang_old_accept_rate",
    "paper_alpha",
)


def check(
    source: Annotated[str, Positional, arg(metavar="FILE|URL")],
    since: Annotated[Path | None, arg(metavar="FILE")] = None,
    model: Annotated[str, arg(metavar="NAME")] = "",
    lookahead: Annotated[int | None, arg(metavar="GAMMA")] = None,
    acceptance: Annotated[str, arg(metavar="ALPHA")] = "",
    records: Annotated[Path | None, arg(metavar="DIR")] = None,
    draft: Annotated[str, arg(metavar="NAME")] = "",
    target: Annotated[str, arg(metavar="NAME")] = "",
    cost: Annotated[float | None, arg(metavar="C")] = None,
    verify_cost: Annotated[float | None, arg(metavar="V")] = None,
    json: Flag = False,
) -> None:
    """Is my server's draft doing what it should?

    Reads what vLLM, SGLang or llama.cpp report: the Prometheus text of /metrics, or a log. Shows
    acceptance by position, names its shape, compares it with what was measured offline, and gives
    the lookahead that it would choose.

    Args:
        source: File with Prometheus text or log lines, or an address such as http://host:8000, of
            which /metrics is read.
        since: An earlier reading of the same counters, which is subtracted.
        model: Which model, if several are reported; in statistics of llama.cpp, which drafter.
        lookahead: Drafts per round, where the figures do not tell it (num_speculative_tokens,
            speculative-num-steps, draft-max).
        acceptance: Acceptance probability measured offline, such as 0.7 or 70%.
        records: Folder of sdsl measure --out with the same pair, measured offline.
        draft: Which draft, if the records hold several.
        target: Which target, if the records hold several.
        cost: Cost of one draft step in target steps, for the best lookahead.
        verify_cost: Cost of a verify pass with all overheads of a round, in target steps; 1 if left
            out.
        json: Print JSON.
    """
    require(
        not (acceptance and records), "give what was measured offline by --acceptance or --records."
    )
    require(
        not (draft or target) or records is not None,
        "--draft and --target choose from --records, which is missing.",
    )
    require(verify_cost is None or cost is not None, "--verify-cost is of no use without --cost.")
    from sdsl_jax.measurement.served_acceptance import judge
    from sdsl_jax.measurement.server_reports import read_report

    text, where = (
        fetch_text(source, "/metrics")
        if is_url(source)
        else (read_text(source, "report", limit=LARGEST), f"the report {source}")
    )
    earlier = None
    if since is not None:
        earlier = read_text(since, "report", limit=LARGEST), f"the report {since}"
    report = read_report(text, where, since=earlier, model=model, lookahead=lookahead)
    judged = judge(report, _offline(report, acceptance, records, draft, target))
    best = None if cost is None else _best_lookahead(judged, cost, verify_cost)
    if json:
        print_json(_as_json(judged, best))
    else:
        _print(standard_console(), judged, best, verify_cost)


def _offline(
    report: ServerReport, acceptance: str, records: Path | None, draft: str, target: str
) -> Offline | None:
    from sdsl_jax.measurement.served_acceptance import offline_of_alpha, offline_of_records

    if acceptance:
        return offline_of_alpha(parse_share(acceptance, "--acceptance"), report.lookahead)
    if records is None:
        return None
    from sdsl_jax.records import read_table

    survival = read_table(records, "survival", optional=True)
    return offline_of_records(survival, read_table(records, "acceptance"), report, draft, target)


def _best_lookahead(
    judged: Judgement, cost: float, verify_cost: float | None
) -> MeasuredLookahead | LookaheadAnswer:
    from sdsl_jax.codesign.predict_lookahead import best_lookahead, best_measured_lookahead

    if not judged.positions:
        return best_lookahead(cost, acceptance=judged.acceptance.estimate, verify_cost=verify_cost)
    # Behind the last position drafts are taken to fare as at it; if the position does not matter,
    # as at all.
    last = judged.positions[-1].acceptance.estimate
    equal = judged.shape is not None and judged.shape.verdict == "geometric"
    tail = judged.acceptance.estimate if equal or math.isnan(last) else last
    return best_measured_lookahead(
        [one.survival for one in judged.positions],
        tail,
        cost,
        1.0 if verify_cost is None else verify_cost,
        [one.tested / judged.dispersion for one in judged.positions],
    )


def _elsewhere(judged: Judgement) -> dict[str, float]:
    from sdsl_jax.measurement import events

    report = judged.report
    if any(report.not_drafted) and report.rounds and report.drafted and report.accepted is not None:
        # Conversions are for rounds of one γ; these are ratios of sums.
        bonus = report.accepted + report.rounds
        return {
            "vllm_acceptance_length": bonus / report.rounds,
            "vllm_acceptance_rate": report.accepted / report.drafted,
            "sglang_old_accept_rate": bonus / (report.drafted + report.rounds),
        }
    tau = judged.tokens_per_round.estimate
    return {name: events.convert(tau, "eagle_tau", name, report.lookahead) for name in _ELSEWHERE}


def _as_json(judged: Judgement, best: MeasuredLookahead | LookaheadAnswer | None) -> dict[str, Any]:
    report = judged.report
    return {
        "verdict": judged.verdict,
        "server": report.server,
        "model": report.model,
        "source": report.source,
        "convention": report.convention,
        "lookahead": report.lookahead,
        "rounds": report.rounds,
        "drafted": report.drafted,
        "accepted": report.accepted,
        "tokens_per_round": judged.tokens_per_round,
        "acceptance": judged.acceptance,
        "positions": [
            {
                "position": one.position,
                "survival": one.survival,
                "tested": one.tested,
                "accepted": one.accepted,
                "acceptance": one.acceptance,
                "offline": one.offline,
            }
            for one in judged.positions
        ],
        "shape": judged.shape and judged.shape._asdict(),
        "dispersion": judged.dispersion,
        "comparison": judged.comparison and judged.comparison._asdict(),
        "conventions": _elsewhere(judged),
        "best_lookahead": best,
        "notes": list(report.notes),
    }


def _print(
    console: Console,
    judged: Judgement,
    best: MeasuredLookahead | LookaheadAnswer | None,
    verify_cost: float | None,
) -> None:
    from sdsl_jax.measurement import events

    report = judged.report
    named = f", {report.model}" if report.model else ""
    say(console, f"verdict     {judged.verdict}")
    say(console, f"server      {report.server}{named}: {report.source}, γ = {report.lookahead}")
    if report.rounds is not None and report.drafted is not None and report.accepted is not None:
        short = report.lookahead * report.rounds - report.drafted
        mean = f", {report.drafted / report.rounds:.2f} per round" if short > 0 else ""
        say(
            console,
            f"counts      {report.rounds:,} rounds, {report.drafted:,} drafts{mean}, {report.accepted:,} accepted",
        )
    about = events.CONVENTIONS[report.convention]
    say(console, f"convention  {report.convention}: {about.definition} (a: drafts accepted)")
    tau, alpha = judged.tokens_per_round, judged.acceptance
    say(
        console,
        f"acceptance  τ = {_interval(tau)} tokens per round; α = {_interval(alpha)} if equal at all positions",
    )
    others = ", ".join(f"{name} {value:.4g}" for name, value in _elsewhere(judged).items())
    say(console, f"elsewhere   {others}")
    if judged.positions:
        _print_positions(console, judged)
    say(console, "")
    for line in _explained(judged):
        say(console, f"- {line}")
    if best is not None:
        _print_best(console, judged, best, verify_cost)


def _interval(value: Any) -> str:
    if math.isnan(value.low):
        return f"{value.estimate:.3f}"
    return f"{value.estimate:.3f} (90%: {value.low:.3f} to {value.high:.3f})"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _print_positions(console: Console, judged: Judgement) -> None:
    offline = any(not math.isnan(one.offline) for one in judged.positions)
    columns: list[str | Column] = ["position", "survival S_k", "tested", "accepted", "acceptance"]
    columns += ["90% interval", *(["offline"] if offline else [])]
    rows = []
    for one in judged.positions:
        ends = f"{one.acceptance.low:.3f} – {one.acceptance.high:.3f}" if one.tested else "–"
        rows.append(
            (
                str(one.position),
                f"{one.survival:.3f}",
                f"{one.tested:,}",
                f"{one.accepted:,}",
                _share(one.acceptance.estimate),
                ends,
                *([_share(one.offline)] if offline else []),
            )
        )
    console.print(table("Acceptance of the drafts that were tested", columns, rows))


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-6 else "p < 1e-6"


_MEANINGS = {
    "geometric": "acceptance does not depend on the position, as far as the counts tell",
    "decaying": "later drafts are accepted less often, as usual for heads (EAGLE, MTP, Medusa)",
    "rising": "later drafts are accepted more often, as usual for a draft model of its own: rounds that get that far are in "
    "easy text",
    "cliff": "acceptance falls below half of that at the position before: a fault of the draft's cache, positions or "
    "features, or a γ beyond what the head was trained for",
    "uneven": "acceptance differs between positions without falling or rising throughout",
}


def _explained(judged: Judgement) -> list[str]:
    from sdsl_jax.measurement.served_acceptance import FEWEST_INTERVALS, LEVEL, MOST_UNSEEN

    lines, shape, report = [], judged.shape, judged.report
    if shape is None:
        lines.append("the server does not tell at which positions drafts were accepted")
    else:
        if shape.verdict in _MEANINGS:
            lines.append(_MEANINGS[shape.verdict])
        if shape.p_equal == shape.p_equal:
            lines.append(
                f"positions 1 to {shape.judged}: slope {shape.slope:+.4f} per position ({_p(shape.p_slope)}); equal acceptance "
                f"{_p(shape.p_equal)}"
            )
            if shape.verdict == "geometric":
                lines.append(
                    f"a change by {shape.unseen_change:.3f} over these positions would be seen half the time"
                )
        if shape.verdict == "unknown":
            lines.append(
                f"a shape needs tests at two positions that would see a change by {MOST_UNSEEN:g}"
            )
        lines.append(
            f"an equal acceptance gets another verdict in at most {LEVEL:.0%} of all cases, if rounds are independent"
        )
    if any(report.not_drafted):
        lines.append(
            "rounds drafted fewer tokens than γ: acceptance at later positions, and α, are at least what stands there"
        )
    if judged.dispersion > 1:
        lines.append(
            f"log lines differ {judged.dispersion:.1f} times as much as independent rounds would; tests and intervals allow "
            "for it"
        )
    elif report.rounds is not None and (
        report.intervals is None or len(report.intervals) < FEWEST_INTERVALS
    ):
        lines.append(
            "rounds are taken as independent, so requests that differ make intervals wider than these; a log of "
            f"{FEWEST_INTERVALS} lines or more tells by how much"
        )
    lines += report.notes
    if (compared := judged.comparison) is not None:
        change = compared.served / compared.offline - 1
        lines.append(
            f"offline: τ = {compared.offline:.3f} from {compared.basis}; here {compared.served:.3f} ({change:+.1%}, "
            f"z = {compared.z:+.1f}, two-sided level {LEVEL:.0%})"
        )
        if compared.of_one_alpha:
            lines.append(
                "acceptance that varies with the text moves τ by some percent from that of one α; survival of --records does not"
            )
        if compared.verdict == "agrees":
            lines.append(f"a loss of {compared.smallest_seen:.1%} would be seen half the time")
        if compared.verdict == "below" and not (shape and shape.cliff_at):
            lines.append(
                "look for another text or temperature than offline, drafts taken greedily at T > 0, another tokenizer or "
                "checkpoint of the draft, or a quantised draft"
            )
    return lines


def _print_best(
    console: Console,
    judged: Judgement,
    best: MeasuredLookahead | LookaheadAnswer,
    verify_cost: float | None,
) -> None:
    from sdsl_jax.codesign.predict_lookahead import MeasuredLookahead

    say(console, "")
    if not isinstance(best, MeasuredLookahead):
        text = f"γ = {best.lookahead_integer}, speed-up {best.speedup_integer:.3f}×"
        say(console, f"lookahead   {text}" if best.speculate else "lookahead   none pays")
        served = judged.report.lookahead
        beyond = (
            f"; beyond γ = {served} an extrapolation" if best.lookahead_integer > served else ""
        )
        say(
            console,
            f"  from α = {best.acceptance:.3f} at all positions, which the server does not tell{beyond}",
        )
    else:
        gamma, served = best.lookahead_integer, best.measured
        ends = best.lookahead_interval_90
        span = ""
        if ends is not None:
            span = f" (90%: {ends[0]}" + (f" to {ends[1]})" if ends[0] < ends[1] else ")")
        if gamma:
            say(console, f"lookahead   γ = {gamma}{span}, speed-up {best.speedup_integer:.3f}×")
        else:
            say(console, f"lookahead   none of 1 to {served} pays{span}")
        speeds = ", ".join(f"{x:.3f}× at {k}" for k, x in enumerate(best.speedups[1:9], 1))
        say(console, f"  exactly from the measured survival: {speeds}{', …' if served > 8 else ''}")
        if best.extrapolated_lookahead > served:
            say(
                console,
                f"  extrapolated: if drafts behind position {served} are accepted with {best.tail_acceptance:.3f} each, γ = "
                f"{best.extrapolated_lookahead} gives {best.extrapolated_speedup:.3f}×; serve γ = {served + 1} or more to see",
            )
    say(
        console,
        f"  speculation pays up to a draft-step cost of {best.break_even_cost:.3f} target steps; here it is {best.cost:g}",
    )
    if verify_cost is None:
        say(
            console,
            "  assumed: a verify pass takes as long as one target step; measure it and give --verify-cost",
        )
