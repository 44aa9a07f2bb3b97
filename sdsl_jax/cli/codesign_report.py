"""A co-design answer as a page for people: the verdict first, then what it rests on."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from sdsl_jax.config.codesign_problem import ProblemConfig
from sdsl_jax.counts import short_count

_SHORT = {
    "draft_params": "draft size N",
    "lookahead": "lookahead γ",
    "batch": "batch B",
    "draft_tokens": "draft tokens D",
    "aspect_ratio": "aspect ratio",
    "target_params": "target size M",
}


# Elasticities on the page; all are in the JSON.
_SHOWN, _OF_DEVICE = 8, 2


def print_answer(console: Console, values: dict[str, Any], config: ProblemConfig) -> None:
    """Prints all of an answer."""

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=False)

    def show(title: str, table: Table) -> None:
        say(f"\n{title}")
        console.print(table)

    w = config.workload
    say(f"{question(config)}: prompts of {w.prompt:g} tokens, answers of {w.new_tokens:g}")
    say()
    grave = values["warning_severities"].count("grave")
    if not values["feasible"]:
        say(_verdict(values))
    for warning in values["warnings"][not values["feasible"] : grave]:
        say(f"! {warning}")
    if values["feasible"]:
        say(_verdict(values))
    else:
        say(_remedies(values["would_be_feasible_with"]))
    say()
    console.print(_choice(values))
    say(_time(values))
    say(_alone(values["baseline"]))
    say(_memory(values["memory"]))
    if values["feasible"] and values["binding_constraints"]:
        bound = ", ".join(
            f"{c['metric']} ≤ {c['limit']:.3g}" for c in values["binding_constraints"]
        )
        say(f"constraints  {bound} {'bind' if len(values['binding_constraints']) > 1 else 'binds'}")
    say(_uncertainty(values))
    if values["candidates"]:
        show("Your candidates, each at its best lookahead", _candidates(values["candidates"]))
    show("Latency against throughput: the best design at each batch", _front(values))
    say(_break_even(values))
    if "draft_tokens" in values["pareto"]:
        title = "Training cost against speed-up: the best design for each number of training tokens"
        show(title, _training_front(values["pareto"]["draft_tokens"]))
    if values["sensitivities"]:
        title = "What the choice depends on most: % of change for 1% more of"
        show(title, _sensitivities(values["sensitivities"]))
    show(_published_title(values, config.target.name), _published(values["nearest_published"]))
    if values["engine_settings"]:
        _engines(say, values["engine_settings"], config.hardware.devices, config.draft_devices)
    for warning in values["warnings"][grave:]:
        say(f"warning: {warning}")


def question(config: ProblemConfig) -> str:
    """What is served, on what."""
    w, h = config.workload, config.hardware
    devices = f"{h.devices} × {h.name}" if h.devices > 1 else h.name
    # A batch that is chosen is part of the answer.
    batch = "" if config.variables.batch else f", batch {w.batch:g}"
    return f"Target of {short_count(config.target.params)} parameters on {devices}{batch}, context {w.mean_context:g}"


def _both(size: dict[str, float]) -> str:
    return f"{short_count(size['total'])} ({short_count(size['non_embedding'])} outside embeddings)"


def _verdict(values: dict[str, Any]) -> str:
    rounded, even = values["rounded"], values["break_even"]
    if not values["feasible"]:
        return f"No feasible design: {values['warnings'][0]}"
    if values["acceptance"] >= 1:
        return (
            "No answer: where every draft token is accepted, no draft and no lookahead is the best."
        )
    if values["speculate"]:
        size = rounded.get("draft_params") or values["design"]["draft_params"]
        return (
            f"Speculate: a draft of {short_count(size['total'])} parameters, {_ahead(rounded)}, is "
            f"{rounded['speedup']:.2f} times as fast as the target alone."
        )
    text = f"Do not speculate: the best choice is {rounded['speedup']:.2f} times as fast as the target alone."
    if even is None:
        return text
    # Break-evens are those of the best draft of the law, which need not be one that was asked
    # about.
    given = bool(values["candidates"]) or "draft_params" not in values["variables"]
    pays = "With another draft it pays" if given else "It pays"
    if even["pays_at_some_batch"]:
        text += f" {pays} at {_paying_batches(even)}."
    if even["target_params"]:
        text += (
            f" {pays} for targets from {short_count(even['target_params']['total'])} parameters on."
        )
    elif not even["pays_for_every_target"] and not even["pays_at_some_batch"]:
        text += " No batch and no target size considered makes it pay."
    return text


def _remedies(changes: list[dict[str, Any]]) -> str:
    """What would make it feasible, in words."""
    if not changes:
        return "No number of devices up to 1024 and no smaller batch makes it feasible by itself."
    flags = ", or with ".join(change["flags"] for change in changes)
    return (
        f"It is feasible with {flags} ({'each by itself, ' * (len(changes) > 1)}all else as here)."
    )


def _paying_batches(even: dict[str, Any]) -> str:
    """The batches at which some draft pays, in words."""
    low, high, considered = (
        even["smallest_batch"],
        even["largest_batch"],
        even["largest_batch_considered"],
    )
    if not even["pays_at_some_batch"]:
        return f"no batch up to {considered}"
    if even["pays_at_every_batch"]:
        return f"every batch up to {considered}"
    if low == high:
        return f"a batch of {low} alone"
    if low == 1:
        text = f"batches up to {high or considered}"
    else:
        text = (
            f"batches from {low} to {high}"
            if high
            else f"batches from {low} on, as far as {considered}"
        )
    return text if even["pays_between_them"] else text + ", though not at all of them"


def _ahead(rounded: dict[str, Any]) -> str:
    gamma = rounded["lookahead"]
    return "1 token ahead" if gamma == 1 else f"{gamma} tokens ahead"


def _plain(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return _both(value)
    if name == "draft_tokens":
        return short_count(value)
    return f"{value:.2f}" if name == "lookahead" else f"{value:.4g}"


def _choice(values: dict[str, Any]) -> Table:
    table, rounded = Table(), values["rounded"]
    table.add_column("", no_wrap=True)
    table.add_column("optimum", justify="right")
    table.add_column("with whole γ and B", justify="right")
    for name in values["variables"]:
        shown = (
            f"{rounded[name]}" if name in ("lookahead", "batch") else _plain(name, rounded[name])
        )
        table.add_row(_SHORT[name], _plain(name, values["variables"][name]), shown)
    table.add_row("speed-up S", f"{values['speedup']:.3f}×", f"{rounded['speedup']:.3f}×")
    if values["prefill_load"]:
        table.add_row(
            "S of decoding alone",
            f"{values['decode_speedup']:.3f}×",
            f"{rounded['decode_speedup']:.3f}×",
        )
        table.add_row(
            "time in prefill", f"{values['prefill_load']:.0%}", f"{rounded['prefill_load']:.0%}"
        )
    table.add_row("acceptance α", f"{values['acceptance']:.3f}", f"{rounded['acceptance']:.3f}")
    table.add_row(
        "tokens per round τ",
        f"{values['tokens_per_round']:.2f}",
        f"{rounded['tokens_per_round']:.2f}",
    )
    table.add_row(
        "tokens/s, all rows",
        f"{values['tokens_per_second']:,.0f}",
        f"{rounded['tokens_per_second']:,.0f}",
    )
    table.add_row(
        "latency of a request",
        f"{values['latency_seconds']:.2f} s",
        f"{rounded['latency_seconds']:.2f} s",
    )
    if values["cost_per_million_tokens"] is not None:
        table.add_row("cost per 1M tokens", f"{values['cost_per_million_tokens']:.3g}", "")
        table.add_row("training the draft costs", f"{values['training_cost']:.3g}", "")
    loss = rounded["loss_of_rounding"]
    table.caption = (
        f"whole numbers cost {100 * loss:.2g}% of the objective" if loss > 5e-5 else None
    )
    return table


def _time(values: dict[str, Any]) -> str:
    parts = values["cost_breakdown"]
    whole = sum(part["seconds"] for part in parts.values())
    shares = ", ".join(f"{name} {part['share']:.0%}" for name, part in parts.items())
    shares += " (what is neither draft nor verify)"
    if not values["hardware_measured"]:
        shares += f", of all of which {values['assumed_overhead_share']:.0%} are overheads that are assumed"
    return (
        f"time         a round takes {1e3 * whole:.3g} ms: {shares}; the first token comes after "
        f"{1e3 * values['first_token_seconds']:.3g} ms"
    )


def _alone(alone: dict[str, Any]) -> str:
    text = f"target alone {alone['tokens_per_second']:,.0f} tokens/s, latency of a request {alone['latency_seconds']:.2f} s"
    cost = alone["cost_per_million_tokens"]
    return text if cost is None else f"{text}, {cost:.3g} per 1M tokens"


def _memory(m: dict[str, Any]) -> str:
    text = f"memory       {m['per_device_bytes'] / 1e9:.3g} GB of the fullest device"
    if m["capacity_bytes"] is None:
        return text + "; its capacity is not known"
    text += f"'s {m['capacity_bytes'] / 1e9:.3g} GB, of which {m['usable_share']:.0%} may be used: "
    text += "fits" if m["fits"] else "does not fit"
    if m["smallest_devices"]:
        least = m["smallest_devices"]
        text += f"; {least} device{'s' * (least > 1)} (a power of two) is the least that does" * (
            not m["fits"] or least < m["devices"]
        )
    return text


def _uncertainty(values: dict[str, Any]) -> str:
    found = values["interval_90"]
    if found is None:
        return f"uncertainty  no interval: {values['interval_basis']}"
    parts = []
    for name, (low, high) in found.items():
        if name in ("draft_params", "draft_tokens", "target_params"):
            parts.append(f"{_SHORT[name]} {short_count(low)} – {short_count(high)}")
        else:
            parts.append(f"{_SHORT.get(name, name)} {low:.3g} – {high:.3g}")
    shares = f"{values['share_of_draws_that_speculate']:.0%} of the draws speculate"
    if values["share_of_draws_left_out"]:
        shares += f", and {values['share_of_draws_left_out']:.0%} without an optimum are left out"
    return f"uncertainty  90% intervals: {', '.join(parts)} ({values['interval_basis']}); {shares}"


def _candidates(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for label in ("draft", "γ", "α", "speed-up", "tokens/s", "latency", "memory", "speed-up lost"):
        table.add_column(label, justify="right")
    for row in rows:
        fits = "" if row["fits"] is not False else " does not fit"
        table.add_row(
            short_count(row["size"]) + (f" = {row['published']}" if row["published"] else ""),
            f"{row['lookahead']}",
            f"{row['acceptance']:.3f}",
            f"{row['speedup']:.2f}×",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['latency_seconds']:.2f} s",
            f"{row['per_device_bytes'] / 1e9:.3g} GB{fits}",
            f"{row['regret']:.1%}" + ("" if row["within_constraints"] else ", breaks a constraint"),
        )
    return table


def _front(values: dict[str, Any]) -> Table:
    table = Table()
    for label in ("batch", "tokens/s", "latency", "speed-up", "draft", "γ"):
        table.add_column(label, justify="right")
    for row in values["pareto"]["batch"]:
        table.add_row(
            f"{row['batch']:g}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['latency_seconds']:.2f} s",
            f"{row['speedup']:.2f}×",
            short_count(row["draft_params"]["total"]),
            f"{row['lookahead']:.1f}",
        )
    # Powers of two up to 1024 were tried.
    if not values["pareto"]["batch"] or values["pareto"]["batch"][-1]["batch"] < 1024:
        table.caption = (
            "larger batches break a limit"
            if values["pareto"]["batch"]
            else "every batch breaks a limit"
        )
    return table


def _break_even(values: dict[str, Any]) -> str:
    even = values["break_even"]
    if even is None:
        return "break-even   unknown: a measured α says nothing of other drafts"
    size = even["target_params"]
    target = (
        f"targets from {short_count(size['total'])} parameters on"
        if size
        else "no target size considered"
    )
    target = "targets of every size" if even["pays_for_every_target"] else target
    return f"break-even   speculation pays at {_paying_batches(even)}, memory aside, and at this batch for {target}"


def _training_front(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for label in (
        "training tokens",
        "training cost",
        "speed-up",
        "draft",
        "γ",
        "cost per 1M tokens",
        "total cost",
    ):
        table.add_column(label, justify="right")
    for row in rows:
        table.add_row(
            short_count(row["draft_tokens"]),
            f"{row['training_cost']:,.0f}",
            f"{row['speedup']:.2f}×",
            short_count(row["draft_params"]["total"]),
            f"{row['lookahead']:.1f}",
            f"{row['cost_per_million_tokens']:.3g}",
            f"{row['total_cost']:,.0f}",
        )
    return table


def _sensitivities(rows: list[dict[str, Any]]) -> Table:
    """The largest elasticities, and the largest by what the device is, which a calibration can settle."""
    shown = rows[:_SHOWN]
    of_device = [row for row in rows if row["path"].startswith("hardware.")][:_OF_DEVICE]
    rows = shown + [row for row in of_device if row not in shown]
    table = Table()
    table.add_column("", no_wrap=True)
    names = list(rows[0]["elasticity"])
    for name in (*names, "objective"):
        table.add_column(_SHORT.get(name, name), justify="right")
    errors = any(row["logarithms_per_standard_error"] for row in rows)
    if errors:
        # A standard error is no percent: of A it is a quarter.
        table.add_column(f"ln {_SHORT[names[0]].split()[-1]} per standard error", justify="right")
    for row in rows:
        cells = [*(row["elasticity"][name] for name in names), row["elasticity_of_objective"]]
        if errors:
            cells.append((row["logarithms_per_standard_error"] or {}).get(names[0]))
        table.add_row(
            row["quantity"], *("–" if x is None else f"{round(x, 2) + 0.0:+.2f}" for x in cells)
        )
    return table


def _published_title(values: dict[str, Any], target: str) -> str:
    """The heading of the published models, which says whether their tokenizer is the target's."""
    title = "Published models in the draft's place, by predicted speed"
    rows = values["nearest_published"]
    if rows and rows[0]["tokenizer"] == "unknown":
        hint = f"{target} is of no family known here" if target else "give --target-name"
        return f"{title}; the target's tokenizer is unknown: {hint}"
    if rows and rows[0]["tokenizer"] == "another":
        return f"{title}; none of them has the tokenizer of {target}"
    return title


def _published(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for label, justify in (
        ("model", "left"),
        ("size", "right"),
        ("γ", "right"),
        ("speed-up", "right"),
    ):
        table.add_column(label, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("shares its tokenizer with")
    for row in rows:
        table.add_row(
            row["name"],
            short_count(row["total_params"]),
            f"{row['lookahead']}",
            f"{row['speedup']:.2f}×" + ("" if row["within_constraints"] else ", breaks a limit"),
            row["tokenizer_shared_with"],
        )
    return table


def _engines(say: Any, settings: dict[str, Any], devices: int, draft_devices: int) -> None:
    draft = settings["draft"]
    if draft["source"] == "to_train" and not draft["pays"]:
        return
    where = (
        f", on all {devices} devices, where vLLM and SGLang run it"
        if draft_devices < devices
        else ""
    )
    say(f"engines      {draft['sentence']}{where}")
    if not draft["pays"]:
        return
    say("vLLM         " + settings["vllm"]["command"])
    say("SGLang       " + settings["sglang"]["command"])
    say("Transformers " + settings["hugging_face"]["code"].replace("\n", "\n             "))
    for note in settings["notes"]:
        say(f"note: {note}")
