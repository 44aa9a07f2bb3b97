"""What a running server reports of its speculation: Prometheus text or log lines of vLLM, SGLang
and llama.cpp, as counts of rounds and of drafts by position.

The formats, as their sources print them in November 2026:

vLLM (0.9 to 0.32)
  Counters `vllm:spec_decode_num_{drafts,draft_tokens,accepted_tokens}_total` and
  `…_accepted_tokens_per_pos_total{position="0"}`, newer versions `…_draft_tokens_per_pos_total` as
  well. A log line "SpecDecoding metrics: …" counts the interval since the line before.
llama.cpp (builds of 2025 and 2026)
  The same counters under `llamacpp:`, in recent builds. The log has a line per request, "draft acceptance = …" (until
  spring 2026 "draft acceptance rate = …"), whose rates by position stand in it or in a line "acc per
  pos = (…)" behind it; and lines "statistics NAME: …", which count since the start of the server.
SGLang (0.4 to 0.5)
  Gauges `sglang:spec_accept_length` and `sglang:spec_accept_rate` of the latest interval, counters of
  verify passes and generated tokens, and "accept len: …, accept rate: …" in its "Decode batch" lines.
  The rate counts the bonus token until April 2026 and only drafts since.

Rates by position are of all rounds with drafts (survival), in all servers that print them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement.server_counts import (
    LARGEST_LOOKAHEAD,
    RACE,
    RATE_ROUNDING,
    Counts,
    ServerReport,
    counts_of_rates,
    report_of_counts,
    report_of_intervals,
)
from sdsl_jax.statistics import ratio_interval

_Z_90 = 1.6448536269514722


def read_report(
    text: str,
    where: str,
    *,
    since: tuple[str, str] | None = None,
    model: str = "",
    lookahead: int | None = None,
) -> ServerReport:
    """Reads what a server reports.

    Args:
      text: Prometheus text, or lines of a log; other lines are passed over.
      where: Where the text is from, for messages.
      since: Text and origin of an earlier reading of the same counters, which is subtracted.
      model: Which model (or drafter), if the text reports several.
      lookahead: γ, where the text does not tell it.

    Raises:
      SdslError: The text reports no speculation, reports of several servers or models, or a line
        that cannot be.
    """
    require(
        lookahead is None or 1 <= lookahead <= LARGEST_LOOKAHEAD,
        f"--lookahead is {lookahead}; it must be from 1 to {LARGEST_LOOKAHEAD}.",
    )
    samples = _samples(text, where)
    logs = {name: hits for name, hits in _log_lines(text).items() if hits}
    kinds = sorted({one.server for one in samples.values()} | set(logs))
    require(kinds, _nothing_found(text, where))
    require(
        len(kinds) == 1 and not (samples and logs),
        f"{where} mixes reports of {' and '.join(kinds)}; give one server's."
        if len(kinds) > 1
        else f"{where} holds both counters and log lines of {kinds[0]}, which count the same rounds; give one of them.",
    )
    if samples:
        before = {} if since is None else _samples(*since)
        if since is not None:
            require(before, _nothing_found(*since))
        chosen, name = _of_one_model(samples, model, where)
        values = _difference(chosen, before, where, since)
        source = (
            "counters between the two readings" if since else "counters since the server started"
        )
        if kinds == ["SGLang"]:
            return _sglang_metrics(values, source, where, name, lookahead, since is not None)
        return _counters(kinds[0], values, source, where, name, lookahead)
    require(
        since is None,
        f"--since is for counters, and {where} is a log; cut the log to the lines that shall count.",
    )
    if kinds == ["SGLang"]:
        require(not model, "--model is for counters; a log of SGLang names no model.")
        return _sglang_log(logs["SGLang"], where, lookahead)
    if kinds == ["vLLM"]:
        require(not model, "--model is for counters; a log of vLLM names no model.")
        lines = [_vllm_line(line, f"{where}, line {number}") for number, line in logs["vLLM"]]
        return report_of_intervals("vLLM", [one for one in lines if one], where, "", lookahead)
    return _llama_log(logs["llama.cpp"], where, model, lookahead)


def _nothing_found(text: str, where: str) -> str:
    for prefix, server, hint in (
        ("vllm:", "vLLM", "it exports them once it speculates"),
        ("sglang:", "SGLang", "it exports them once it speculates"),
        ("llamacpp:", "llama.cpp", "older builds print them in their log only"),
    ):
        if re.search(rf"^{prefix}", text, re.MULTILINE):
            return f"{where} holds metrics of {server} but none of speculative decoding; {hint}."
    return (
        f"{where} holds no figures of speculative decoding: neither counters of vLLM, SGLang or llama.cpp, nor their "
        "log lines."
    )


# Counters and gauges.


class _Sample(NamedTuple):
    server: str
    name: str
    position: int
    model: str
    value: float
    line: int


_Key = tuple[str, tuple[tuple[str, str], ...]]
_SERVERS = {"vllm": "vLLM", "llamacpp": "llama.cpp", "sglang": "SGLang"}
_NAMES = re.compile(
    r"(?P<server>vllm|llamacpp):spec_decode_num_(?P<name>drafts|draft_tokens|accepted_tokens"
    r"|accepted_tokens_per_pos|draft_tokens_per_pos)(_total)?(?=[{\s])"
    r"|sglang:(?P<gauge>spec_accept_length|spec_accept_rate|spec_num_steps|spec_num_draft_tokens"
    r"|spec_verify_calls_total|generation_tokens_total|num_requests_total)(?=[{\s])"
)
_GAUGES = ("spec_accept_length", "spec_accept_rate", "spec_num_steps", "spec_num_draft_tokens")


def _samples(text: str, where: str) -> dict[_Key, _Sample]:
    """The samples of speculation, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[_Key, _Sample] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _NAMES.match(line.strip())
        if match is None:
            continue
        at = f"{where}, line {number}"
        try:
            ((parsed,),) = (one.samples for one in text_string_to_metric_families(line))
        except (ValueError, IndexError):
            raise SdslError(
                f"{at} is no sample of Prometheus text: {line.strip()[-60:]!r}."
            ) from None
        name, value = match["name"] or match["gauge"], float(parsed.value)
        gauge = name in _GAUGES
        require(
            math.isfinite(value) and value >= 0 and (gauge or value.is_integer()),
            f"{at} has the value {value:g} for {parsed.name}; it must be {'a number' if gauge else 'a whole number'} of 0 "
            "or more.",
        )
        position = 0
        if name.endswith("per_pos"):
            label = parsed.labels.get("position", "")
            require(
                label.isascii() and label.isdigit() and int(label) < LARGEST_LOOKAHEAD,
                f"{at} has the position {label!r}; it must be a whole number below {LARGEST_LOOKAHEAD}.",
            )
            position = int(label)
        key = (name, tuple(sorted(parsed.labels.items())))
        require(
            key not in found,
            f"{at} repeats a sample of line {found[key].line if key in found else 0}; give one reading of the counters, "
            "and an earlier one by --since.",
        )
        server = _SERVERS[match["server"] or "sglang"]
        found[key] = _Sample(
            server, name, position, parsed.labels.get("model_name", ""), value, number
        )
    # SGLang counts requests and tokens without speculation too.
    if not any(one.name.startswith("spec_") or one.server != "SGLang" for one in found.values()):
        return {}
    return found


def _of_one_model(
    samples: dict[_Key, _Sample], model: str, where: str
) -> tuple[dict[_Key, _Sample], str]:
    names = sorted({one.model for one in samples.values()})
    if not model:
        require(
            len(names) == 1,
            f"{where} reports several models ({', '.join(names)}); choose one by --model.",
        )
        return samples, names[0]
    require(
        model in names,
        f"--model is {model!r}; {where} reports {', '.join(filter(None, names)) or 'no model names'}.",
    )
    return {key: one for key, one in samples.items() if one.model == model}, model


def _difference(
    samples: dict[_Key, _Sample],
    before: dict[_Key, _Sample],
    where: str,
    since: tuple[str, str] | None,
) -> dict[str, list[_Sample]]:
    """Samples by name; counters less those of the earlier reading."""
    values: dict[str, list[_Sample]] = {}
    for key, one in samples.items():
        if since is not None and one.name not in _GAUGES:
            require(
                key in before,
                f"{since[1]} lacks the counter {one.name} of line {one.line} of {where} with the same labels; the two must be "
                "readings of the same server.",
            )
            earlier = before[key]
            require(
                one.value >= earlier.value,
                f"the counter {one.name} fell from {earlier.value:,.0f} ({since[1]}, line {earlier.line}) to "
                f"{one.value:,.0f} ({where}, line {one.line}): the server restarted in between, or the readings are swapped; "
                "leave --since out to judge the counts since the restart.",
            )
            one = one._replace(value=one.value - earlier.value)
        values.setdefault(one.name, []).append(one)
    return values


def _counters(
    server: str,
    values: dict[str, list[_Sample]],
    source: str,
    where: str,
    model: str,
    lookahead: int | None,
) -> ServerReport:
    def total(name: str) -> int:
        require(
            name in values,
            f"{where} lacks the counter spec_decode_num_{name}; give the whole page of /metrics.",
        )
        return int(sum(one.value for one in values[name]))

    def by_position(name: str) -> tuple[int, ...]:
        sums: dict[int, int] = {}
        for one in values.get(name, ()):
            sums[one.position] = sums.get(one.position, 0) + int(one.value)
        require(
            sorted(sums) == list(range(len(sums))),
            f"{where} counts accepted drafts at the positions {sorted(sums)}; they must run from 0 without a gap.",
        )
        return tuple(sums[k] for k in range(len(sums)))

    counts = Counts(
        total("drafts"),
        total("draft_tokens"),
        total("accepted_tokens"),
        by_position("accepted_tokens_per_pos"),
    )
    return report_of_counts(
        server, counts, source, where, model, lookahead, by_position("draft_tokens_per_pos")
    )


# Log lines.

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_RATES = rf"{_NUMBER}(?:\s*,\s*{_NUMBER})*"
_LLAMA_REQUEST = re.compile(
    r"draft acceptance(?: rate)?\s*=\s*[0-9.]+\s*\(\s*(?P<accepted>\d+)\s+accepted\s*/\s*(?P<drafted>\d+)\s+generated\)"
)
_LLAMA_BEGINS = re.compile(r"draft acceptance(?: rate)? =")
_LLAMA_RATES = re.compile(rf"acc(?:eptance rate)? per pos(?:ition)?\s*=\s*\((?P<rates>{_RATES})?\)")
_LLAMA_MEAN = re.compile(rf"mean (?:acceptance )?len(?:gth)?\s*=\s*(?P<mean>{_NUMBER})")
_LLAMA_STATISTICS = re.compile(r"statistics\s+(?P<drafter>[\w-]+):")


def _log_lines(text: str) -> dict[str, list[tuple[int, str]]]:
    """Lines on speculation by server, with their numbers."""
    found: dict[str, list[tuple[int, str]]] = {"vLLM": [], "SGLang": [], "llama.cpp": []}
    for number, line in enumerate(text.splitlines(), 1):
        if "SpecDecoding metrics:" in line:
            found["vLLM"].append((number, _ESCAPES.sub("", line)))
        elif "Decode batch" in line and "accept len:" in line:
            found["SGLang"].append((number, _ESCAPES.sub("", line)))
        elif (
            _LLAMA_BEGINS.search(line)
            or "acc per pos =" in line
            or ("statistics " in line and "#gen tokens" in line)
        ):
            found["llama.cpp"].append((number, _ESCAPES.sub("", line)))
    return found


def _rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _vllm_line(line: str, at: str) -> Counts | None:
    """The interval that a line of vLLM counts; None if nothing was drafted in it."""
    found = {
        "Accepted": re.search(r"\bAccepted: (\d+) tokens", line),
        "Drafted": re.search(r"\bDrafted: (\d+) tokens", line),
        "Per-position acceptance rate": re.search(
            rf"Per-position acceptance rate: ({_RATES})(?:,|\s|$)", line
        ),
    }
    missing = [name for name, match in found.items() if match is None]
    require(
        not missing, f"{at} has no {' and no '.join(missing)}; the line of vLLM is cut or too old."
    )
    accepted, drafted, rates = (match[1] for match in found.values() if match)
    if int(drafted) == 0:
        return None
    return counts_of_rates(int(accepted), int(drafted), _rates(rates), at)


def _llama_log(
    lines: Sequence[tuple[int, str]], where: str, model: str, lookahead: int | None
) -> ServerReport:
    """A log of llama.cpp: its requests if they tell positions, else its statistics."""
    requests: list[tuple[int, int, int, str, str]] = []  # accepted, drafted, line, rates, mean
    statistics: list[tuple[int, str]] = []
    for number, line in lines:
        rates = _LLAMA_RATES.search(line)
        if match := _LLAMA_REQUEST.search(line):
            mean = _LLAMA_MEAN.search(line)
            requests.append(
                (
                    int(match["accepted"]),
                    int(match["drafted"]),
                    number,
                    (rates and rates["rates"]) or "",
                    mean["mean"] if mean else "",
                )
            )
        elif _LLAMA_STATISTICS.search(line):
            statistics.append((number, line))
        elif rates and requests:
            # Belongs to the request of the line before it.
            requests[-1] = (*requests[-1][:3], rates["rates"] or "", requests[-1][4])
        else:
            require(
                "acc per pos" in line and not requests,
                f"{where}, line {number} is cut: {line.strip()[-60:]!r} tells no counts of accepted and generated drafts.",
            )
    requests = [one for one in requests if one[1] > 0]
    by_position = requests and all(rates or accepted == 0 for accepted, _, _, rates, _ in requests)
    if statistics and (model or not (by_position and any(one[3] for one in requests))):
        return _llama_statistics(statistics, where, model, lookahead)
    require(not model, f"--model is {model!r}; {where} has no statistics by drafter.")
    counts = []
    for accepted, drafted, number, printed, mean_length in requests:
        at = f"{where}, line {number}"
        if printed and by_position:
            counts.append(counts_of_rates(accepted, drafted, _rates(printed), at))
        elif by_position or lookahead is not None:
            gamma = lookahead or max(len(_rates(one[3])) for one in requests if one[3])
            counts.append(Counts(math.ceil(drafted / gamma), drafted, accepted, ()))
        else:
            require(
                mean_length and (float(mean_length) > 1 or accepted == 0),
                f"{at} does not tell how many rounds it counts; give --lookahead, the server's most drafts of a round.",
            )
            rounds = accepted / (float(mean_length) - 1) if accepted else drafted
            counts.append(Counts(min(max(1, round(rounds)), drafted), drafted, accepted, ()))
    if by_position:
        gamma = max(len(one.survived) for one in counts)
        counts = [one._replace(survived=one.survived or (0,) * gamma) for one in counts]
    return report_of_intervals("llama.cpp", counts, where, "", lookahead)


def _llama_statistics(
    lines: Sequence[tuple[int, str]], where: str, model: str, lookahead: int | None
) -> ServerReport:
    """The cumulative lines of a drafter, up to its last one before every restart."""
    totals: dict[str, list[Counts]] = {}
    for number, line in lines:
        at = f"{where}, line {number}"
        match = _LLAMA_STATISTICS.search(line)
        calls = re.search(r"#calls\(b,g,a\)\s*=\s*\d+\s+\d+\s+(\d+)", line)
        calls = calls or re.search(r"#gen drafts\s*=\s*(\d+)", line)
        drafted = re.search(r"#gen tokens\s*=\s*(\d+)", line)
        accepted = re.search(r"#acc tokens\s*=\s*(\d+)", line)
        if match is None or calls is None or drafted is None or accepted is None:
            raise SdslError(
                f"{at} is cut: statistics of llama.cpp hold #gen drafts, #gen tokens and #acc tokens."
            )
        rates = re.search(rf"#acc rate/pos\s*=\s*\(({_RATES})\)", line)
        if int(drafted[1]) == 0:
            continue
        counts = Counts(int(calls[1]), int(drafted[1]), int(accepted[1]), ())
        if rates is not None:
            survived = tuple(round(r * counts.rounds) for r in _rates(rates[1]))
            require(
                abs(sum(survived) - counts.accepted)
                <= len(survived) * max(RATE_ROUNDING * counts.rounds, 0.5),
                f"{at} has {counts.accepted:,} accepted drafts in {counts.rounds:,} rounds, and rates by position that sum to "
                f"{sum(survived):,}.",
            )
            counts = counts._replace(survived=survived)
        segments = totals.setdefault(match["drafter"], [])
        if segments and segments[-1].drafted <= counts.drafted:
            segments[-1] = counts
        else:
            segments.append(counts)
    require(totals, f"{where} counts no round with drafts: the server has drafted nothing there.")
    require(
        model in totals or (not model and len(totals) == 1),
        f"{where} reports the drafters {', '.join(totals)}; choose one by --model.",
    )
    drafter = model or next(iter(totals))
    segments = totals[drafter]
    report = report_of_intervals("llama.cpp", segments, where, drafter, lookahead)
    many = f"{len(segments)} runs of the server" if len(segments) > 1 else "one run of the server"
    # Whole runs of a server are no replicates of a short interval.
    return replace(report, source=f"statistics of {many}", intervals=None)


# SGLang tells means, without counts of rounds.


class _Mean(NamedTuple):
    length: float
    rate: float  # NaN if not told
    weight: float


def _sglang_metrics(
    values: dict[str, list[_Sample]],
    source: str,
    where: str,
    model: str,
    lookahead: int | None,
    is_difference: bool,
) -> ServerReport:
    def number(name: str) -> int | None:
        told = {int(one.value) for one in values.get(name, ()) if one.value > 0}
        return told.pop() if len(told) == 1 else None

    steps, nodes = number("spec_num_steps"), number("spec_num_draft_tokens")
    require(
        lookahead is not None or steps is None or nodes is None or nodes == steps + 1,
        f"{where} reports {nodes} draft tokens in {steps} steps, which is a tree of drafts unless one step drafts a block; "
        "trees are not judged, and for a block give --lookahead.",
    )
    lengths, rates = values.get("spec_accept_length", []), values.get("spec_accept_rate", [])
    told = [one for one in lengths if one.value > 0]
    means = [_Mean(one.value, math.nan, 1.0) for one in told]
    if len(rates) == len(lengths):
        means = [_Mean(a.value, b.value, 1.0) for a, b in zip(lengths, rates) if a.value > 0]
    gamma = lookahead or steps
    if gamma is None or means:
        gamma, convention = _sglang_convention(means, 1e-4, where, gamma)
    else:
        convention = "vllm_acceptance_length"
    rounds, generated, requests = (
        sum(one.value for one in values.get(name, ()))
        for name in ("spec_verify_calls_total", "generation_tokens_total", "num_requests_total")
    )
    if rounds > 0 and generated > 0:
        tau = (generated - requests) / rounds
        require(
            1 - RACE <= tau <= (gamma + 1) * (1 + RACE),
            f"{where} counts {generated:,.0f} tokens of {requests:,.0f} requests in {rounds:,.0f} verify passes, {tau:.2f} a "
            f"pass; at a lookahead of {gamma} it must lie in [1, {gamma + 1}].",
        )
        tau = min(max(tau, 1.0), gamma + 1.0)
        return ServerReport(
            server="SGLang",
            source=source,
            convention="vllm_acceptance_length",
            model=model,
            lookahead=gamma,
            tokens_per_round=tau,
            rounds=int(rounds),
            drafted=int(rounds) * gamma,
            accepted=round((tau - 1) * rounds),
            notes=(
                "τ is (generation_tokens − num_requests) / spec_verify_calls: the first token of a request comes without a "
                "round; drafts proposed are taken as γ in every round",
            ),
        )
    require(
        not is_difference,
        f"{where} holds gauges of SGLang, which a second reading does not extend; give its log, or leave --since out.",
    )
    require(means, f"{where} counts no round with drafts: the server has drafted nothing there.")
    return ServerReport(
        server="SGLang",
        source="gauges of the latest interval",
        convention=convention,
        model=model,
        lookahead=gamma,
        tokens_per_round=sum(one.length for one in means) / len(means),
        notes=(
            "gauges tell nothing of their uncertainty; the log's Decode batch lines do, and so do the counters "
            "spec_verify_calls_total and generation_tokens_total",
        ),
    )


def _sglang_log(
    lines: Sequence[tuple[int, str]], where: str, lookahead: int | None
) -> ServerReport:
    means = []
    for number, line in lines:
        length = re.search(rf"accept len: ({_NUMBER})(?:,|\s|$)", line)
        rate = re.search(rf"accept rate: ({_NUMBER})(?:,|\s|$)", line)
        running = re.search(r"#running-req: (\d+)", line)
        if length is None or running is None:
            raise SdslError(
                f"{where}, line {number} is cut: a Decode batch line of SGLang holds #running-req and accept len."
            )
        means.append(
            _Mean(float(length[1]), float(rate[1]) if rate else math.nan, float(running[1]))
        )
    means = [one for one in means if one.weight > 0 and one.length > 0]
    require(means, f"{where} counts no round with drafts: the server has drafted nothing there.")
    gamma, convention = _sglang_convention(means, 0.005 + 1e-9, where, lookahead)
    weights = np.array([one.weight for one in means])
    tau = ratio_interval(weights * [one.length for one in means], weights, 0.90)
    return ServerReport(
        server="SGLang",
        source=f"{len(means)} log line{'s' * (len(means) > 1)}",
        convention=convention,
        model="",
        lookahead=gamma,
        tokens_per_round=min(max(tau.estimate, 1.0), gamma + 1.0),
        tokens_error=(tau.high - tau.low) / 2 / _Z_90 if len(means) > 1 else math.nan,
        notes=("lines are weighted by the requests that run, and their spread is the uncertainty",),
    )


def _sglang_convention(
    means: Iterable[_Mean], rounding: float, where: str, lookahead: int | None
) -> tuple[int, str]:
    """γ and the convention of the rate, under which length and rate of every line agree."""
    means = list(means)
    longest = max((one.length for one in means), default=1.0)
    pairs = [(one.length, one.rate) for one in means if not math.isnan(one.rate)]
    fitting = []
    for gamma in range(1, 129):
        if longest > gamma + 1 + rounding:
            continue
        for name, bonus in (("vllm_acceptance_rate", 1), ("sglang_old_accept_rate", 0)):
            per_round = gamma + 1 - bonus
            if pairs and all(
                abs((length - bonus) / per_round - rate) <= rounding * (1 + 1 / per_round)
                for length, rate in pairs
            ):
                fitting.append((gamma, name))
    require(
        lookahead is None or longest <= lookahead + 1 + rounding,
        f"the lookahead is {lookahead}, and {where} has an accept length of {longest:g}; it must be at most γ + 1.",
    )
    told = sorted({gamma for gamma, _ in fitting})
    require(
        lookahead is None or not told or lookahead in told,
        f"--lookahead is {lookahead}, and the accept lengths and rates of {where} are those of "
        f"{', '.join(map(str, told[:4]))}.",
    )
    if lookahead is not None:
        fitting = [one for one in fitting if one[0] == lookahead]
    if len(fitting) == 1:
        return fitting[0]
    if lookahead is not None:
        return lookahead, fitting[0][1] if fitting else "vllm_acceptance_length"
    require(
        not pairs or fitting,
        f"{where} has accept lengths and rates that no lookahead gives in all lines; give the lines of one run, or "
        "--lookahead (speculative-num-steps).",
    )
    raise SdslError(
        f"{where} does not tell the lookahead"
        + (f" ({', '.join(str(gamma) for gamma, _ in fitting[:4])} would fit)" if fitting else "")
        + "; give --lookahead (speculative-num-steps)."
    )
