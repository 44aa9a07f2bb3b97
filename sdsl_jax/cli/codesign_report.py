"""A co-design answer as a page for people: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from sdsl_jax.cli.terminal import table
from sdsl_jax.config.codesign_problem import ProblemConfig
from sdsl_jax.counts import short_count

if TYPE_CHECKING:
    from sdsl_jax.codesign.answer import Answer
    from sdsl_jax.codesign.comparison import Candidate
    from sdsl_jax.codesign.concurrency import Concurrency
    from sdsl_jax.codesign.designs import FrontPoint
    from sdsl_jax.codesign.engines import EngineSettings
    from sdsl_jax.codesign.experts import MixtureOfExperts
    from sdsl_jax.codesign.remedies import Remedy

_SHORT = {
    "draft_params": "draft size N",
    "lookahead": "lookahead γ",
    "batch": "batch B",
    "draft_tokens": "draft tokens D",
    "aspect_ratio": "aspect ratio",
    "target_params": "target size M",
}
# What limits are on, in words.
_LIMITED = {
    "memory_bytes": "memory",
    "latency_seconds": "latency",
    "first_token_seconds": "the time to the first token",
    "output_token_seconds": "the time per output token",
    "joules_per_token": "joules per token",
    "seconds_per_token": "seconds per token",
    "cost_per_million_tokens": "the cost per million tokens",
    "total_cost": "the total cost",
    "training_cost": "the training cost",
    "training_flops": "training FLOPs",
    "draft_loss": "the loss of the draft",
    "target_loss": "the loss of the target",
}
_SIZES = ("draft_params", "draft_tokens", "target_params")
# Elasticities on the page; all are in the JSON.
_SHOWN, _OF_DEVICE = 8, 2


def print_answer(console: Console, answer: Answer, config: ProblemConfig, device: str) -> None:
    """Prints all of an answer about a device of this name."""

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=False)

    def show(title: str, rows: Table) -> None:
        say(f"\n{title}")
        console.print(rows)

    w = config.workload
    say(f"{question(config, device)}: prompts of {w.prompt:g} tokens, answers of {w.new_tokens:g}")
    say()
    critical = answer.warning_severities.count("grave")
    if not answer.feasible:
        # The verdict holds the first warning.
        say(answer.verdict)
    for warning in answer.warnings[not answer.feasible : critical]:
        say(f"! {warning}")
    if answer.feasible:
        say(answer.verdict)
        if answer.speculate and answer.indifference_1pct:
            say(_as_good(answer))
    else:
        say(_remedies(answer.would_be_feasible_with))
    say()
    console.print(_choice(answer))
    say(_time(answer))
    say(_alone(answer))
    say(_memory(answer))
    if answer.concurrency:
        say(_concurrency(answer.concurrency))
    if answer.joules_per_token is not None:
        say(_energy(answer))
    if answer.feasible and answer.binding_constraints:
        bound = ", ".join(f"{c.metric} ≤ {c.limit:.3g}" for c in answer.binding_constraints)
        say(f"constraints  {bound} {'bind' if len(answer.binding_constraints) > 1 else 'binds'}")
    say(_uncertainty(answer))
    if answer.candidates:
        show("Your candidates, each at its best lookahead", _candidates(answer.candidates))
    show("Latency against throughput: the best design at each batch", _front(answer))
    say(_break_even(answer))
    if answer.mixture_of_experts:
        mixture = answer.mixture_of_experts
        title = (
            f"{mixture.active_experts} of {mixture.experts} experts: this draft for the target, and for its dense twin of "
            f"{short_count(mixture.active_params.total)} parameters"
        )
        show(title, _experts(mixture))
    if "draft_tokens" in answer.pareto:
        title = "Training cost against speed-up: the best design for each number of training tokens"
        show(title, _training_front(answer.pareto["draft_tokens"]))
    if answer.sensitivities:
        title = "What the choice depends on most: % of change for 1% more of"
        show(title, _sensitivities(answer))
    if answer.nearest_published:
        show(_published_title(answer, config.target.name), _published(answer))
    if answer.engine_settings:
        _engines(say, answer.engine_settings, config)
    for warning in answer.warnings[critical:]:
        say(f"warning: {warning}")


def question(config: ProblemConfig, device: str) -> str:
    """What is served, on what."""
    w, count = config.workload, config.hardware.devices
    devices = f"{count} × {device}" if count > 1 else device
    # A batch that is chosen is part of the answer.
    batch = "" if config.variables.batch else f", batch {w.batch:g}"
    return f"Target of {short_count(config.target.params)} parameters on {devices}{batch}, context {w.mean_context:g}"


def _as_good(answer: Answer) -> str:
    """Which drafts are nearly as good: a choice rests on a range, not on a size."""
    assert answer.indifference_1pct is not None
    assert answer.indifference_5pct is not None
    low, high = map(short_count, answer.indifference_1pct)
    lower, higher = map(short_count, answer.indifference_5pct)
    # Where memory binds, a smaller batch would allow larger drafts than these.
    others = [_SHORT[v] for v in answer.variables if v not in ("draft_params", "lookahead")]
    unchanged = f" with {' and '.join(others)} unchanged," if others else ""
    five = f"up to {higher}" if low == lower else f"{lower} to {higher}"
    text = (
        f"Drafts of {low} to {high} parameters, each at its best lookahead,{unchanged} come within 1% of the best, and {five} "
        "within 5%"
    )
    if low == lower:
        text += f" (below {low} none is considered or allowed)"
    if not answer.candidates:
        return f"{text}: take the nearest trained one."
    best = min(answer.candidates, key=lambda row: (not row.within_constraints, row.objective_loss))
    if not best.within_constraints:
        return f"{text}. None of your candidates keeps every constraint."
    return (
        f"{text}. Of your candidates {short_count(best.size)} is the best, at γ = {best.lookahead}: "
        f"{best.speedup:.2f} times as fast."
    )


def _remedies(changes: Sequence[Remedy]) -> str:
    """What would make it feasible, in words."""
    if not changes:
        return "No number of devices up to 1024 and no smaller batch makes it feasible by itself."
    flags = ", or with ".join(change.flags for change in changes)
    return (
        f"It is feasible with {flags} ({'each by itself, ' * (len(changes) > 1)}all else as here)."
    )


def _plain(name: str, value: Any) -> str:
    if name in ("draft_params", "target_params"):
        outside = short_count(value.non_embedding)
        return f"{short_count(value.total)} ({outside} outside embeddings)"
    if name == "draft_tokens":
        return short_count(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if name == "lookahead" else f"{value:.4g}"


def _choice(answer: Answer) -> Table:
    whole = answer.rounded
    rows: list[tuple[str, ...]] = [
        (_SHORT[name], _plain(name, value), _plain(name, getattr(whole, name)))
        for name, value in answer.variables.items()
    ]
    if "draft_params" in answer.variables:
        shape = f"about {whole.draft_layers:.0f} layers, {whole.draft_width:.0f} wide"
        rows.append(("shape of the draft", "", shape))
    performance = {"speedup": ("speed-up S", "{:.3f}×")}
    if answer.prefill_load:
        performance["decode_speedup"] = ("S of decoding alone", "{:.3f}×")
        performance["prefill_load"] = ("time in prefill", "{:.0%}")
    performance |= {
        "acceptance": ("acceptance α", "{:.3f}"),
        "tokens_per_round": ("tokens per round τ", "{:.2f}"),
        "tokens_per_second": ("tokens/s, all rows", "{:,.0f}"),
        "latency_seconds": ("latency of a request", "{:.2f} s"),
    }
    for name, (label, form) in performance.items():
        rows.append((label, *(form.format(getattr(one, name)) for one in (answer, whole))))
    if answer.cost_per_million_tokens is not None:
        rows.append(("cost per 1M tokens", f"{answer.cost_per_million_tokens:.3g}", ""))
        rows.append(("training the draft costs", f"{answer.training_cost:.3g}", ""))
    choice = table(None, ("", "optimum", _rounded_heading(answer)), rows)
    loss = whole.loss_of_rounding
    if loss > 5e-5:
        choice.caption = f"whole numbers cost {100 * loss:.2g}% of the objective"
    return choice


def _rounded_heading(answer: Answer) -> str:
    """Which of the variables are rounded."""
    whole = [
        _SHORT[name].split()[-1] for name in ("lookahead", "batch") if name in answer.variables
    ]
    return f"with whole {' and '.join(whole)}" if whole else "as built"


def _time(answer: Answer) -> str:
    parts = answer.cost_breakdown
    whole = sum(part.seconds for part in parts.values())
    shares = ", ".join(f"{name} {part.share:.0%}" for name, part in parts.items())
    if not answer.hardware_measured:
        shares += f"; {answer.assumed_overhead_share:.0%} of a round rests on assumed overheads"
    return (
        f"time         a round takes {1e3 * whole:.3g} ms: {shares}; the first token comes after "
        f"{1e3 * answer.first_token_seconds:.3g} ms (TTFT), then one every {1e3 * answer.output_token_seconds:.3g} ms (TPOT)"
    )


def _alone(answer: Answer) -> str:
    alone = answer.baseline
    text = (
        f"target alone {alone.tokens_per_second:,.0f} tokens/s, latency of a request {alone.latency_seconds:.2f} s, TPOT "
        f"{1e3 * alone.output_token_seconds:.3g} ms"
    )
    cost = alone.cost_per_million_tokens
    return text if cost is None else f"{text}, {cost:.3g} per 1M tokens"


def _energy(answer: Answer) -> str:
    return (
        f"energy       {answer.joules_per_token:.3g} J per token at the power of the devices, "
        f"{answer.baseline.joules_per_token:.3g} J by the target alone"
    )


def _concurrency(rows: Concurrency) -> str:
    """What fits with the draft and without, and the throughput of a full device."""
    beside, alone = rows.with_draft, rows.without_draft
    text = (
        f"concurrency  beside the draft {beside.rows:,} rows of {rows.row_tokens:,.0f} tokens fit, without it {alone.rows:,} "
        f"({beside.cache_tokens:,} and {alone.cache_tokens:,} cache tokens)"
    )
    if alone.tokens_per_second is None:
        return text
    full = f"{alone.tokens_per_second:,.0f} tokens/s"
    if beside.tokens_per_second is None:
        return f"{text}; full, the target alone gives {full}"
    return f"{text}; full, they give {beside.tokens_per_second:,.0f} (γ = {beside.lookahead}) and {full}"


def _experts(mixture: MixtureOfExperts) -> Table:
    """Speed-ups of the mixture beside those of its dense twin."""
    rows = table(
        None,
        (
            Column("batch", justify="right"),
            "experts read: step → verify",
            "γ",
            "speed-up",
            "γ of the twin",
            "its speed-up",
        ),
        (
            (
                f"{row.batch}",
                f"{row.step_experts:.0f} → {row.verify_experts:.0f}",
                f"{row.lookahead}",
                f"{row.speedup:.2f}×",
                f"{row.dense_lookahead}",
                f"{row.dense_speedup:.2f}×",
            )
            for row in mixture.by_batch
        ),
    )
    rows.caption = f"the draft pays at {mixture.pays_at.batches}; for the twin at {mixture.dense_pays_at.batches}"
    return rows


def _memory(answer: Answer) -> str:
    m = answer.memory
    text = f"memory       {m.per_device_bytes / 1e9:.3g} GB of the fullest device"
    if m.fits is None:
        return text + "; its capacity is not known"
    text += f"'s {m.capacity_bytes / 1e9:.3g} GB, of which {m.usable_share:.0%} may be used: "
    text += "fits" if m.fits else "does not fit"
    least = m.smallest_devices
    if least and (not m.fits or least < m.devices):
        text += f"; it needs at least {least} device{'s' * (least > 1)} (powers of two only)"
    return text


def _uncertainty(answer: Answer) -> str:
    if answer.interval_90 is None:
        return f"uncertainty  no interval: {answer.interval_basis}"
    parts = []
    for name, ends in answer.interval_90.items():
        low, high = (short_count(end) if name in _SIZES else f"{end:.3g}" for end in ends)
        parts.append(f"{_SHORT.get(name, name)} {low} – {high}")
    shares = f"{answer.share_of_draws_that_speculate:.0%} of the draws speculate"
    if answer.share_of_draws_left_out:
        shares += f", and {answer.share_of_draws_left_out:.0%} without an optimum are left out"
    return f"uncertainty  90% intervals: {', '.join(parts)} ({answer.interval_basis}); {shares}"


def _candidates(rows: Sequence[Candidate]) -> Table:
    return table(
        None,
        (
            Column("draft", justify="right"),
            "γ",
            "α",
            "speed-up",
            "tokens/s",
            "latency",
            "memory",
            "speed-up lost",
        ),
        (
            (
                short_count(row.size) + (f" = {row.published}" if row.published else ""),
                f"{row.lookahead}",
                f"{row.acceptance:.3f}",
                f"{row.speedup:.2f}×",
                f"{row.tokens_per_second:,.0f}",
                f"{row.latency_seconds:.2f} s",
                f"{row.per_device_bytes / 1e9:.3g} GB"
                + (" does not fit" if row.fits is False else ""),
                f"{row.regret:.1%}" + ("" if row.within_constraints else ", breaks a constraint"),
            )
            for row in rows
        ),
    )


def _front(answer: Answer) -> Table:
    points = answer.pareto["batch"]
    batches = table(
        None,
        (Column("batch", justify="right"), "tokens/s", "latency", "speed-up", "draft", "γ"),
        (
            (
                f"{row.batch:g}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.latency_seconds:.2f} s",
                f"{row.speedup:.2f}×",
                short_count(row.draft_params.total),
                f"{row.lookahead:.1f}",
            )
            for row in points
        ),
    )
    # Powers of two up to 1024 were tried.
    if not points or points[-1].batch < 1024:
        limits = " and ".join(_LIMITED.get(one, one) for one in answer.next_batch_breaks)
        which = "larger batches break" if points else "every batch breaks"
        batches.caption = f"{which} the limit on {limits}" if limits else f"{which} a limit"
    return batches


def _break_even(answer: Answer) -> str:
    region = answer.break_even
    if region is None:
        return "break-even   unknown: a measured α says nothing of other drafts"
    size = region.target_params
    target = (
        f"targets of {short_count(size.total)} parameters or more"
        if size
        else "no target size considered"
    )
    target = "targets of every size" if region.pays_for_every_target else target
    return f"break-even   speculation pays at {region.batches}, memory aside, and at this batch for {target}"


def _training_front(points: Sequence[FrontPoint]) -> Table:
    return table(
        None,
        (
            Column("training tokens", justify="right"),
            "training cost",
            "speed-up",
            "draft",
            "γ",
            "cost per 1M tokens",
            "total cost",
        ),
        (
            (
                short_count(row.draft_tokens),
                f"{row.training_cost:,.0f}",
                f"{row.speedup:.2f}×",
                short_count(row.draft_params.total),
                f"{row.lookahead:.1f}",
                f"{row.cost_per_million_tokens:.3g}",
                f"{row.total_cost:,.0f}",
            )
            for row in points
        ),
    )


def _sensitivities(answer: Answer) -> Table:
    """The largest elasticities, and the largest by what the device is, which a calibration can settle."""
    ranked = answer.sensitivities or []
    shown = ranked[:_SHOWN]
    of_device = [row for row in ranked if row.path.startswith("hardware.")][:_OF_DEVICE]
    shown = shown + [row for row in of_device if row not in shown]
    names = list(answer.variables)
    columns = ["", *(_SHORT[name] for name in names), "objective"]
    errors = any(row.logarithms_per_standard_error for row in shown)
    if errors:
        # A standard error is no percent: of A it is a quarter.
        columns.append(f"ln {_SHORT[names[0]].split()[-1]} per standard error")
    rows = []
    for row in shown:
        cells = [*(row.elasticity[name] for name in names), row.elasticity_of_objective]
        if errors:
            cells.append((row.logarithms_per_standard_error or {}).get(names[0]))
        numbers = ["–" if x is None else f"{round(x, 2) + 0.0:+.2f}" for x in cells]
        rows.append([row.quantity, *numbers])
    return table(None, columns, rows)


def _published_title(answer: Answer, target: str) -> str:
    """The heading of the published models, which says whether their tokenizer is the target's."""
    title = "Published models in the draft's place, likely tokenizers first"
    tokenizer = answer.nearest_published[0].tokenizer
    if tokenizer == "unknown":
        hint = f"{target} is of no family known here" if target else "give --target-name"
        return f"{title}; the target's tokenizer is unknown: {hint}"
    if tokenizer == "another":
        return f"{title}; none of them has the tokenizer of {target}"
    return title


def _published(answer: Answer) -> Table:
    return table(
        None,
        ("model", "size", "γ", "speed-up", Column("shares its tokenizer with")),
        (
            (
                row.name,
                short_count(row.total_params),
                f"{row.lookahead}",
                f"{row.speedup:.2f}×" + ("" if row.within_constraints else ", breaks a limit"),
                row.tokenizer_shared_with,
            )
            for row in answer.nearest_published
        ),
    )


def _engines(say: Callable[[str], None], settings: EngineSettings, config: ProblemConfig) -> None:
    draft, devices = settings.draft, config.hardware.devices
    if draft is None or (draft.source == "to_train" and not draft.pays):
        return
    split = config.draft_devices != devices or config.hardware.overlapped
    where = f", on all {devices} devices, where vLLM and SGLang run it" if split else ""
    where += ", in turn with the target" if config.hardware.overlapped else ""
    say(f"engines      {draft.sentence}{where}")
    if not draft.pays:
        return
    say("vLLM         " + settings.vllm.command)
    say("SGLang       " + settings.sglang.command)
    say("Transformers " + settings.hugging_face.code.replace("\n", "\n             "))
    for note in settings.notes:
        say(f"note: {note}")
