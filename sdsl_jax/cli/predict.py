"""`sdsl predict` and `sdsl lookahead`: answers from laws and formulas, without training anything."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdsl_jax.cli.terminal import standard_console
from sdsl_jax.counts import (
    exact_count,
    parse_count,
    parse_share,
    parse_sizes,
    read_count,
    short_count,
)
from sdsl_jax.errors import require

_COUNT = tyro.conf.arg(metavar="COUNT")
_COUNTS = tyro.conf.arg(metavar="COUNT[,COUNT...]")
_LAW = tyro.conf.arg(metavar="NAME|FILE.json")
_LAW_OF_SEVERAL = tyro.conf.arg(metavar="NAME|FILE.json[#NAME]")


def predict(
    target_params: Annotated[str, _COUNTS] = "",
    draft_tokens: Annotated[str, _COUNTS] = "",
    target_tokens: Annotated[str, _COUNTS] = "",
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None,
    loss_law: Annotated[str, _LAW] = "besiroglu",
    acceptance_law: Annotated[str, _LAW_OF_SEVERAL] = "paper",
    draft_overhead: Annotated[float, tyro.conf.arg(metavar="C0")] = 0.0,
    smallest_draft: Annotated[str, _COUNT] = "",
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """What draft should I train for my target? Answered from scaling laws, without any training.

    Counts may be written 30e9 or 30B. Several targets: --target-params 13B,30B,66B, with one value
    of the other counts for all or one for each; or a CSV.

    Args:
        target_params: size of the target, in the parameter count of the loss law (total, for the
            published ones but Kaplan's).
        draft_tokens: training tokens of the draft; with --csv, for rows that give none.
        target_tokens: training tokens of the target; with --csv, for rows that give none.
        csv: targets, a row each: columns target_params, draft_tokens, target_tokens, and name if
            you like.
        loss_law: besiroglu, hoffmann, hoffmann_unrounded, muennighoff, kaplan, or the JSON of a
            fit.
        acceptance_law: paper, or the JSON of a fit; of several laws in it the first, which is the
            best, or FILE.json#logit_plane.
        draft_overhead: fixed cost of a draft step in target steps, on top of draft size / target
            size.
        smallest_draft: smallest draft considered; a 100,000th of the target if left out.
        json: print JSON: one object for one target, a list for several or for a CSV.
    """
    from sdsl_jax.codesign import predict as prediction
    from sdsl_jax.codesign.targets import Target, targets_from_csv
    from sdsl_jax.fitting import law_files

    sizes = parse_sizes(target_params, "--target-params")
    tokens = {"--draft-tokens": parse_sizes(draft_tokens, "--draft-tokens")}
    tokens["--target-tokens"] = parse_sizes(target_tokens, "--target-tokens")
    require(bool(sizes) != bool(csv), "give the targets either by --target-params or by --csv.")
    if csv is not None:
        for flag, values in tokens.items():
            require(
                len(values) <= 1,
                f"{flag} holds {len(values)} values; with --csv it must be one, or a column.",
            )
        everywhere = [values[0] if values else None for values in tokens.values()]
        targets = targets_from_csv(csv, *everywhere)
    else:
        for flag, values in tokens.items():
            require(
                bool(values),
                f"{flag} is missing: the loss of a model depends on how long it was trained.",
            )
            require(
                len(values) in (1, len(sizes)),
                f"{flag} holds {len(values)} values for {len(sizes)} targets; it must be one, or one for each.",
            )
        of_drafts, of_targets = (v * len(sizes) if len(v) == 1 else v for v in tokens.values())
        targets = [Target(*row) for row in zip(sizes, of_drafts, of_targets)]
    answers = prediction.predict(
        targets,
        law_files.loss_law(loss_law),
        law_files.acceptance_law(acceptance_law),
        draft_overhead,
        parse_count(smallest_draft, "--smallest-draft") if smallest_draft else None,
    )
    answers = [
        a | {"leaves_out": _LEFT_OUT, "codesign_command": _codesign_command(a)} for a in answers
    ]
    if json:
        _print_json(answers if csv is not None or len(answers) > 1 else answers[0])
    else:
        _print_predictions(standard_console(), answers)


# What a prediction does not know, and what asks about it.
_LEFT_OUT = (
    "this counts FLOPs only, of one row, and knows no device: on H100s overheads, memory traffic and batches move the draft, γ "
    "and the speed-up"
)


def _codesign_command(answer: dict[str, Any]) -> str:
    """The same question about a device, with as many H100s as the weights of the target need."""
    from sdsl_jax.hardware import load_hardware

    # Two bytes a weight, and room for caches and a draft.
    share = (
        2 * answer["target_params"] / (0.85 * float(load_hardware("h100").hardware.memory_bytes))
    )
    devices = 2 ** max(0, math.ceil(math.log2(share)))
    flags = {f"--{name}": exact_count(answer[name.replace("-", "_")]) for name in _COUNTED}
    flags |= {"--target-name": shlex.quote(answer["name"])} if "name" in answer else {}
    for kind, default in (("loss", "besiroglu"), ("acceptance", "paper")):
        name = answer[f"{kind}_law"]
        flags |= {f"--{kind}-law": shlex.quote(name)} if name != default else {}
    flags |= {"--hardware": "h100"} | ({"--devices": str(devices)} if devices > 1 else {})
    return "sdsl codesign " + " ".join(f"{flag} {value}" for flag, value in flags.items())


_COUNTED = ("target-params", "target-tokens", "draft-tokens")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _span(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{short_count(ends[0])} – {short_count(ends[1])}"


# Up to so many targets stand side by side, with everything said about each; more are listed, a line
# each.
_SIDE_BY_SIDE = 5


def _cells(answer: dict[str, Any]) -> dict[str, str]:
    size = short_count(answer["target_params"])
    cells = {
        "target": escape(f"{answer['name']} ({size})") if "name" in answer else size,
        "tokens D | D′": f"{short_count(answer['draft_tokens'])} | {short_count(answer['target_tokens'])}",
        "draft N*": short_count(answer["draft_params"]),
    }
    if answer["draft_params"] is None:
        verdict = "does not pay" if answer["speedup"] is not None else "no finite optimum"
        return (
            cells
            | dict.fromkeys(("M / N*", "within 1%", "within 5%", "γ* (whole)", "α"), "–")
            | {"speed-up": verdict}
        )
    slopes = answer["elasticity"]
    return cells | {
        "M / N*": f"{answer['target_params'] / answer['draft_params']:.0f}",
        "within 1%": _span(answer["indifference_1pct"]),
        "within 5%": _span(answer["indifference_5pct"]),
        "γ* (whole)": f"{answer['lookahead']:.1f} ({answer['lookahead_integer']})",
        "α": f"{answer['acceptance']:.3f}",
        "speed-up": f"{answer['speedup_integer']:.2f}×",
        "d ln N*/d ln M": f"{slopes['target_params']:.3f}",
        "d ln N*/d ln D": f"{slopes['draft_tokens']:.3f}",
        "d ln N*/d ln D′": f"{slopes['target_tokens']:.4f}",
    }


def _print_predictions(console: Console, answers: list[dict[str, Any]]) -> None:
    first, rows = answers[0], [_cells(a) for a in answers]
    table = Table()
    if len(answers) <= _SIDE_BY_SIDE:
        table.add_column("target", no_wrap=True)
        for row in rows:
            table.add_column(row["target"], justify="right", overflow="fold")
        for label in max((list(row) for row in rows), key=len)[1:]:
            table.add_row(label, *(row.get(label, "–") for row in rows))
    else:
        labels = [
            label
            for label in max((list(row) for row in rows), key=len)
            if not label.startswith("d ln")
        ]
        for label in labels:
            table.add_column(
                label, justify="left" if label == "target" else "right", overflow="fold"
            )
        for row in rows:
            table.add_row(*(row.get(label, "–") for label in labels))

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        f"Drafts to train, by loss law {first['loss_law']} and acceptance law {first['acceptance_law']}"
    )
    console.print(table)
    say(
        f"M, N*: {first['params_count']} parameters of target and best draft; D, D′: training tokens of draft and target;\n"
        "γ: drafts per round, best real number (best whole one, of which the speed-up is); α: acceptance probability;\n"
        "within 1% (5%): drafts that lose at most so much of the speed-up."
    )
    for text, who in _shared(answers, lambda a: [_interval(a)]).items():
        say(f"90% interval{who}: {text}")
    for text, who in _shared(answers, lambda a: a["warnings"]).items():
        say(f"warning{who}: {text}")
    which = (
        f", for {first.get('name') or short_count(first['target_params'])}"
        if len(answers) > 1
        else ""
    )
    say(f"left out: {_LEFT_OUT}; ask for your device{which}:\n  {first['codesign_command']}")


def _interval(answer: dict[str, Any]) -> str:
    found = answer["interval_90"]
    if found is None:
        return f"none ({answer['interval_basis']})"
    return (
        f"draft {_span(found['draft_params'])}, γ {found['lookahead'][0]:.1f} – {found['lookahead'][1]:.1f}, speed-up "
        f"{found['speedup'][0]:.2f} – {found['speedup'][1]:.2f} ({answer['interval_basis']})"
    )


def _shared(answers: list[dict[str, Any]], texts: Any) -> dict[str, str]:
    """Each text once, with the targets that it is about unless it is about all of them."""
    about: dict[str, list[str]] = {}
    for answer in answers:
        for text in texts(answer):
            about.setdefault(text, []).append(
                answer.get("name") or short_count(answer["target_params"])
            )
    return {
        text: "" if len(who) == len(answers) else f" ({', '.join(who)})"
        for text, who in about.items()
    }


def lookahead(
    cost: Annotated[float, tyro.conf.arg(metavar="C")],
    acceptance: Annotated[str, tyro.conf.arg(metavar="ALPHA")] = "",
    acceptance_length: Annotated[float | None, tyro.conf.arg(metavar="TAU")] = None,
    accepted: Annotated[str, _COUNT] = "",
    drafted: Annotated[str, _COUNT] = "",
    at_lookahead: Annotated[int | None, tyro.conf.arg(metavar="GAMMA")] = None,
    verify_cost: Annotated[float | None, tyro.conf.arg(metavar="V")] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """How far ahead should my draft guess, and does it pay?

    Give the acceptance probability; or, measured at a known lookahead, from which it is inverted,
    either an acceptance length or the counts of accepted and proposed drafts that engines log.

    Args:
        cost: of one draft step, in target steps: time of a draft token / time of a target token.
        acceptance: probability that a draft token is accepted.
        acceptance_length: mean tokens emitted per round, the bonus token included; between 1 and
            GAMMA + 1.
        accepted: drafts that the target accepted (num_accepted_tokens of vLLM), without bonus
            tokens.
        drafted: drafts that were proposed (num_draft_tokens of vLLM).
        at_lookahead: drafts per round (num_speculative_tokens) with which that was measured.
        verify_cost: of a verify pass with all overheads of a round, in target steps; at least 1,
            which is assumed if left out.
        json: print JSON.
    """
    from sdsl_jax.codesign.predict_lookahead import best_lookahead

    answer = best_lookahead(
        cost,
        parse_share(acceptance, "--acceptance") if acceptance else None,
        acceptance_length,
        at_lookahead,
        1.0 if verify_cost is None else verify_cost,
        _drafts(accepted, "--accepted"),
        _drafts(drafted, "--drafted"),
    )
    answer["verify_cost_assumed"] = verify_cost is None
    if json:
        _print_json(answer)
        return
    _print_lookahead(standard_console(), answer, acceptance_length, at_lookahead)


def _drafts(text: str, name: str) -> float | None:
    """A count of drafts, which may be 0; None where none was given."""
    if not text:
        return None
    value = read_count(text)
    require(value is None or value >= 0, f"{name} is {text}; it must be 0 or more drafts.")
    return 0.0 if value == 0 else parse_count(text, name)


def _print_lookahead(
    console: Console,
    answer: dict[str, Any],
    acceptance_length: float | None,
    at_lookahead: int | None,
) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    inverted = ""
    if acceptance_length is not None:
        inverted = f", from {acceptance_length:g} tokens per round at γ = {at_lookahead}"
    counted = "drafted" in answer
    if counted:
        low, high = answer["acceptance_interval_90"]
        inverted = (
            f" (90% interval {low:.3f} to {high:.3f}), from {answer['accepted']:,} of {answer['drafted']:,} drafts accepted "
            f"at γ = {at_lookahead}"
        )
    say(f"acceptance α = {answer['acceptance']:.3f}{inverted}")
    if answer["speculate"]:
        low, high = answer["lookahead_within_1pct"]
        say(
            f"best lookahead γ = {answer['lookahead_integer']} (γ* = {answer['lookahead']:.2f}; {low} to {high} are within 1%)\n"
            f"speed-up {answer['speedup_integer']:.3f}×, {answer['tokens_per_round']:.2f} tokens per round"
        )
    else:
        say("speculation does not pay: no whole lookahead beats plain decoding")
    if counted:
        low, high = answer["lookahead_interval_90"]
        span = f"the best γ is {low}" if low == high else f"the best γ runs from {low} to {high}"
        span += " (0: no speculation)" if low == 0 < high else ""
        span = "speculation does not pay" if high == 0 else span
        say(f"over that interval {span}; {answer['interval_basis']}")
    say(
        f"it pays up to a cost of {answer['break_even_cost']:.3f} target steps per draft step; here {answer['cost']:g}"
    )
    most = answer["break_even_verify_cost"]
    if answer["verify_cost_assumed"]:
        say(
            "verify cost 1 assumed: a pass over γ + 1 tokens takes as long as a step; measure it and give --verify-cost"
        )
    if most > 1:
        say(
            f"speculation stops paying at a verify cost of {most:.2f} target steps; here {answer['verify_cost']:g}"
        )
