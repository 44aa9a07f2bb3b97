"""`sdsl predict` and `sdsl lookahead`: answers from laws and formulas, without training anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Column
from tyro.conf import arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.terminal import print_json, say, standard_console, table
from sdsl_jax.counts import (
    parse_count,
    parse_share,
    parse_sizes,
    read_count,
    short_count,
)
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.codesign.predict import Prediction
    from sdsl_jax.codesign.predict_lookahead import LookaheadAnswer, RunningLookahead

_COUNT = arg(metavar="COUNT")
_COUNTS = arg(metavar="COUNT[,COUNT...]")
_LAW = arg(metavar="NAME|FILE.json")
_LAW_OF_SEVERAL = arg(metavar="NAME|FILE.json[#NAME]")


def predict(
    target_params: Annotated[str, _COUNTS] = "",
    draft_tokens: Annotated[str, _COUNTS] = "",
    target_tokens: Annotated[str, _COUNTS] = "",
    csv: Annotated[Path | None, arg(metavar="FILE.csv")] = None,
    loss_law: Annotated[str, _LAW] = "besiroglu",
    acceptance_law: Annotated[str, _LAW_OF_SEVERAL] = "paper",
    draft_overhead: Annotated[float, arg(metavar="C0")] = 0.0,
    smallest_draft: Annotated[str, _COUNT] = "",
    json: Flag = False,
) -> None:
    """Which draft should I train for my target? The answer comes from scaling laws, without training.

    Counts may be written 30e9 or 30B. For several targets give --target-params 13B,30B,66B, with
    one value of the other counts for all or one for each; or a CSV.

    Args:
        target_params: Size of the target, in the parameter count of the loss law (total parameters
            for the published laws, except Kaplan's).
        draft_tokens: Training tokens of the draft; with --csv, of rows that do not give them.
        target_tokens: Training tokens of the target; with --csv, of rows that do not give them.
        csv: A table with one target per row, in the columns target_params, draft_tokens,
            target_tokens and optionally name.
        loss_law: besiroglu, hoffmann, hoffmann_unrounded, muennighoff, kaplan, or the JSON of a
            fit.
        acceptance_law: paper, or the JSON of a fit. A file with several laws gives its first, the
            best one; FILE.json#logit_plane gives another.
        draft_overhead: Fixed cost of a draft step in target steps, on top of draft size / target
            size.
        smallest_draft: Smallest draft considered; a 100,000th of the target by default.
        json: Print JSON: one object for one target, a list for several or for a CSV.
    """
    from sdsl_jax.codesign import predict as prediction

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
        targets = prediction.targets_from_csv(csv, *everywhere)
    else:
        for flag, values in tokens.items():
            require(
                values,
                f"{flag} is missing: the loss of a model depends on how long it was trained.",
            )
            require(
                len(values) in (1, len(sizes)),
                f"{flag} holds {len(values)} values for {len(sizes)} targets; it must be one, or one for each.",
            )
        of_drafts, of_targets = (v * len(sizes) if len(v) == 1 else v for v in tokens.values())
        targets = [prediction.Target(*row) for row in zip(sizes, of_drafts, of_targets)]
    answers = prediction.predict(
        targets,
        loss_law,
        acceptance_law,
        draft_overhead,
        parse_count(smallest_draft, "--smallest-draft") if smallest_draft else None,
    )
    if json:
        print_json(answers if csv is not None or len(answers) > 1 else answers[0])
    else:
        _print_predictions(standard_console(), answers)


# Up to so many targets stand side by side, with everything said about each; more are listed, a line
# each.
_SIDE_BY_SIDE = 5


def _print_predictions(console: Console, answers: list[Prediction]) -> None:
    first = answers[0]
    targets = [{label: escape(cell) for label, cell in one.cells().items()} for one in answers]
    beside = len(answers) <= _SIDE_BY_SIDE
    labels = [
        label
        for label in max(map(list, targets), key=len)
        if beside or not label.startswith("d ln")
    ]
    lines = [labels, *([one.get(label, "–") for label in labels] for one in targets)]
    (_, *headings), *rows = zip(*lines) if beside else lines
    columns = [
        Column("target", no_wrap=beside, overflow="fold"),
        *(Column(one, justify="right", overflow="fold") for one in headings),
    ]
    say(
        console,
        f"Drafts to train, by loss law {first.loss_law} and acceptance law {first.acceptance_law}",
    )
    console.print(table(None, columns, rows))
    say(
        console,
        f"M, N*: {first.params_count} parameters of the target and the best draft; D, D′: training tokens of draft and target;\n"
        "γ: tokens drafted per round, the best real number (and the best whole one, which the speed-up is for); α: acceptance\n"
        "probability; within 1% (5%): draft sizes that lose at most that much of the speed-up.",
    )
    for text, who in _shared(answers, lambda a: [a.interval_text()]).items():
        say(console, f"90% interval{who}: {text}")
    for text, who in _shared(answers, lambda a: a.warnings).items():
        say(console, f"warning{who}: {text}")
    which = f" about {first.name or short_count(first.target_params)}" if len(answers) > 1 else ""
    say(
        console,
        f"note: {first.leaves_out}; for an answer{which} on your device, run\n  {first.codesign_command}",
    )


def _shared(answers: list[Prediction], texts: Callable[[Prediction], list[str]]) -> dict[str, str]:
    """Each text once, with the targets that it is about unless it is about all of them."""
    about: dict[str, list[str]] = {}
    for answer in answers:
        for text in texts(answer):
            about.setdefault(text, []).append(answer.name or short_count(answer.target_params))
    return {
        text: "" if len(who) == len(answers) else f" ({', '.join(who)})"
        for text, who in about.items()
    }


def lookahead(
    cost: Annotated[float | None, arg(metavar="C")] = None,
    target_tps: Annotated[float | None, arg(metavar="TPS")] = None,
    draft_tps: Annotated[float | None, arg(metavar="TPS")] = None,
    acceptance: Annotated[str, arg(metavar="ALPHA")] = "",
    acceptance_length: Annotated[float | None, arg(metavar="TAU")] = None,
    accepted: Annotated[str, _COUNT] = "",
    drafted: Annotated[str, _COUNT] = "",
    at_lookahead: Annotated[int | None, arg(metavar="GAMMA")] = None,
    verify_cost: Annotated[float | None, arg(metavar="V")] = None,
    lookahead: Annotated[int | None, arg(metavar="GAMMA")] = None,
    json: Flag = False,
) -> None:
    """How far ahead should my draft guess (num_speculative_tokens), and does it pay?

    Give the acceptance probability. Or give what was measured at a known lookahead, from which it
    follows: an acceptance length, or the counts of accepted and proposed drafts that engines log.
    Give the cost of a draft step, or the speeds of both models. With --lookahead, the answer also
    says what the lookahead that you run gives, from which acceptance on it pays, and what it loses
    against the best one.

    Args:
        cost: Cost of one draft step in target steps: the time of a draft token divided by the time of
            a target token, such as 0.05.
        target_tps: Tokens per second that the target writes alone, in place of a cost.
        draft_tps: Tokens per second that the draft writes alone, at the same batch and context.
        acceptance: Probability that a draft token is accepted, such as 0.7 or 70%.
        acceptance_length: Mean number of tokens emitted per round, including the bonus token;
            between 1 and GAMMA + 1.
        accepted: Drafts that the target accepted (num_accepted_tokens of vLLM), without bonus
            tokens.
        drafted: Drafts that were proposed (num_draft_tokens of vLLM).
        at_lookahead: Drafts per round (num_speculative_tokens) at which these were measured.
        verify_cost: Cost of a verify pass with all overheads of a round, in target steps: at least 1,
            and 1 if left out.
        lookahead: Drafts per round that you run (num_speculative_tokens).
        json: Print JSON.
    """
    from sdsl_jax.codesign.predict_lookahead import best_lookahead

    answer = best_lookahead(
        cost,
        parse_share(acceptance, "--acceptance") if acceptance else None,
        acceptance_length,
        at_lookahead,
        verify_cost,
        _drafts(accepted, "--accepted"),
        _drafts(drafted, "--drafted"),
        lookahead=lookahead,
        target_tps=target_tps,
        draft_tps=draft_tps,
    )
    if json:
        print_json(answer)
    else:
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
    answer: LookaheadAnswer,
    acceptance_length: float | None,
    at_lookahead: int | None,
) -> None:
    inverted, counts = "", answer.counts
    if acceptance_length is not None:
        inverted = f", from {acceptance_length:g} tokens per round at γ = {at_lookahead}"
    if counts is not None:
        low, high = counts.acceptance_interval_90
        inverted = (
            f" (90% interval {low:.3f} to {high:.3f}), from {counts.accepted:,} of {counts.drafted:,} drafts accepted "
            f"at γ = {at_lookahead}"
        )
    say(console, f"acceptance α = {answer.acceptance:.3f}{inverted}")
    if answer.target_tps is not None and answer.draft_tps is not None:
        swapped = "; the draft is not faster than the target: are the two swapped?"
        say(
            console,
            f"cost of a draft step {answer.target_tps:g} / {answer.draft_tps:g} tokens/s = {answer.cost:.3f} target steps"
            + (swapped if answer.cost >= 1 else ""),
        )
    if answer.running is not None:
        _print_running(console, answer.running, answer)
    if answer.speculate:
        first, last = answer.lookahead_within_1pct
        say(
            console,
            f"best lookahead γ = {answer.lookahead_integer} (γ* = {answer.lookahead:.2f}; {first} to {last} are within 1%)\n"
            f"speed-up {answer.speedup_integer:.3f}×, {answer.tokens_per_round:.2f} tokens per round",
        )
    else:
        say(console, "speculation does not pay: no whole lookahead beats plain decoding")
    if counts is not None:
        first, last = counts.lookahead_interval_90
        span = (
            f"the best γ is {first}" if first == last else f"the best γ runs from {first} to {last}"
        )
        span += " (0: no speculation)" if first == 0 < last else ""
        span = "speculation does not pay" if last == 0 else span
        say(console, f"over that interval {span}; {counts.interval_basis}")
    say(
        console,
        f"speculation pays up to a draft-step cost of {answer.break_even_cost:.3f} target steps; here it is {answer.cost:.4g}",
    )
    if answer.verify_cost_assumed:
        say(
            console,
            "assumed: a verify pass over γ + 1 tokens takes as long as one target step; measure it and give --verify-cost",
        )
    if answer.break_even_verify_cost > 1:
        say(
            console,
            f"speculation pays up to a verify cost of {answer.break_even_verify_cost:.2f} target steps; here it is "
            f"{answer.verify_cost:g}",
        )


def _print_running(console: Console, running: RunningLookahead, answer: LookaheadAnswer) -> None:
    """What the lookahead in use gives, from which acceptance on it pays, and what it loses."""
    gamma, alpha = running.lookahead, running.break_even_acceptance
    verdict = "faster" if running.pays else "no faster"
    say(
        console,
        f"your lookahead γ = {gamma}: speed-up {running.speedup:.3f}×, {running.tokens_per_round:.2f} tokens per round; "
        f"{verdict} than plain decoding",
    )
    edge = (
        f"it pays above α = {alpha:.3f}"
        if alpha < 1
        else "no acceptance makes it pay: a round costs γ + 1 target steps or more"
    )
    say(console, f"{edge}; as α → 1 its speed-up reaches {running.ceiling:.3f}×")
    if gamma == answer.lookahead_integer:
        say(console, "it is the best lookahead")
    else:
        other = f"γ = {answer.lookahead_integer}" if answer.speculate else "plain decoding"
        say(console, f"it loses {running.loss:.1%} against {other}")
