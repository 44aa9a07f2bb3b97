"""Goals and tables: what was measured beside what was wanted."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

# Wanted at batch 1 as multiples of the peer's tokens per second, and of batch 8 as multiples of
# batch 1.
GOALS = {
    "1m": {"assisted": 10.0, "generate": 10.0, "batch": 4.0},
    "33m": {"assisted": 3.0, "generate": 3.0, "batch": 2.5, "floor": 1.25},
}
LARGEST_DIFFERENCE = 0.05


def fastest(size: dict[str, Any], system: str, batch: int, drafts: bool) -> dict[str, Any] | None:
    """The contender with the most tokens per second, with a draft or without."""
    fits = [
        c
        for c in size["contenders"]
        if c["system"] == system
        and c["batch"] == batch
        and bool(c["lookahead"]) == drafts
        and c["new_tokens"] > 1
    ]
    return max(fits, key=lambda c: c["tokens_per_second"], default=None)


def goals(size: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with what was measured and whether it is met."""
    wanted, found = GOALS.get(size["size"], {}), []

    def goal(text: str, value: float, limit: float, at_most: bool = False) -> None:
        met = value <= limit if at_most else value >= limit
        found.append(
            {
                "goal": f"{size['size']}: {text}",
                "wanted": limit,
                "at_most": at_most,
                "value": value,
                "met": met,
            }
        )

    mine = {
        (batch, drafts): fastest(size, "ours", batch, drafts)
        for batch in (1, 8)
        for drafts in (False, True)
    }
    for name, text, drafts in (
        ("assisted", "assisted generation", True),
        ("generate", "generate", False),
    ):
        peer, own = fastest(size, "transformers", 1, drafts), mine[1, drafts]
        if name in wanted and peer and own:
            ratio = own["tokens_per_second"] / peer["tokens_per_second"]
            goal(f"tokens/s over transformers' {text}, batch 1", ratio, wanted[name])
    if "floor" in wanted:
        check = next(c for c in size["checks"] if c["batch"] == 1 and not c["lookahead"])
        goal(
            "autoregressive step over its floor, batch 1",
            check["ratio_to_floor"],
            wanted["floor"],
            at_most=True,
        )
    one, eight = mine[1, True], mine[8, True]
    if "batch" in wanted and one and eight:
        goal(
            "speculative tokens/s at batch 8 over batch 1",
            eight["tokens_per_second"] / one["tokens_per_second"],
            wanted["batch"],
        )
    for check in size["checks"]:
        if check["lookahead"]:
            text = f"cost model against measured speed-up, batch {check['batch']}, lookahead {check['lookahead']}"
            goal(text, abs(check["relative_difference"]), LARGEST_DIFFERENCE, at_most=True)
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """Prints everything that a reader wants; the JSON holds the rest."""
    machine = result["machine"]
    console.print(f"{result['device']}; {result['versions']}; {result['options']['dtype']}")
    rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in machine["bandwidth"].items())
    console.print(
        f"memory, GB/s: {rates}; matrix product: {machine['matmul_flops'] / 1e9:.0f} GFLOP/s"
    )
    for size in result["sizes"]:
        _show_size(size, console)
    table = Table("goal", "wanted", "measured", "", title="goals")
    for g in (g for size in result["sizes"] for g in goals(size)):
        sign = "≤" if g["at_most"] else "≥"
        table.add_row(
            g["goal"],
            f"{sign} {g['wanted']:g}",
            f"{g['value']:.3g}",
            "met" if g["met"] else "missed",
        )
    console.print(table)


def _show_size(size: dict[str, Any], console: Console) -> None:
    draft, target = size["draft"], size["target"]
    console.print(
        f"\n{size['size']}: target of {target['nonembedding']:,} non-embedding parameters ({target['layers']} layers of "
        f"width {target['width']}), draft of {draft['nonembedding']:,} ({draft['layers']} of {draft['width']}), "
        f"{target['vocabulary']} tokens; acceptance {size['acceptance']:.3f} on the target's samples"
    )
    if "peer" in size:
        p = size["peer"]
        console.print(
            f"transformers runs {p['classes'][1]} from the exported folder; its logits differ from ours by at most "
            f"{max(p['target_logits_difference'], p['draft_logits_difference']):.1e} of the largest; its assisted generation "
            "takes batch 1 only, so that ours at batch 8 stands beside its plain generate"
        )
    for name, found in size["pilot"].items():
        if isinstance(found, dict) and "best" in found:
            tried = ", ".join(
                f"γ={g} {v['ms_per_token_expected']:.3g} ({v['ms_per_round']:.3g})"
                for g, v in found.items()
                if g != "best"
            )
            console.print(
                f"pilot, {name}, ms per token (per round): {tried}; best γ={found['best']}"
            )
        elif isinstance(found, dict) and "threads" in name:
            console.print(
                f"pilot, {name}: {', '.join(f'{t}: {ms:.3g}' for t, ms in found.items())}"
            )
    table = Table(title=f"{size['size']}: decoding, prefill included")
    for name in (
        "decoder",
        "batch",
        "tokens/s",
        "ms/token",
        "ms/round",
        "tokens/round",
        "× peer",
        "× own AR",
        "compile s",
    ):
        table.add_column(name, justify="left" if name == "decoder" else "right")
    for c in (c for c in size["contenders"] if c["new_tokens"] > 1):
        # At equal lookahead if the peer was timed at it, else against its best; without assistance
        # where that is all it has.
        rivals = [
            r
            for r in size["contenders"]
            if r["system"] == "transformers" and r["batch"] == c["batch"]
        ]
        same = [r for r in rivals if r["new_tokens"] > 1 and r["lookahead"] == c["lookahead"]]
        best = fastest(size, "transformers", c["batch"], True) or fastest(
            size, "transformers", c["batch"], False
        )
        rival = same[0] if same else best
        alone = fastest(size, c["system"], c["batch"], False)
        own = c["tokens_per_second"] / alone["tokens_per_second"] if alone else float("nan")
        table.add_row(
            f"{c['system']}, {'γ=' + str(c['lookahead']) if c['lookahead'] else 'autoregressive'}",
            str(c["batch"]),
            f"{c['tokens_per_second']:,.0f}",
            f"{c['ms_per_token']:.4g}",
            f"{c['ms_per_round']:.4g}",
            f"{c['tokens_per_round']:.3f}",
            f"{c['tokens_per_second'] / rival['tokens_per_second']:.2f}" if rival else "–",
            f"{own:.2f}",
            f"{c['compile_seconds']:.1f}" if "compile_seconds" in c else "",
        )
    console.print(table)
    table = Table(
        "step or round", "measured ms", "floor ms", "ratio", "speed-up", "predicted", "difference"
    )
    table.title = f"{size['size']}: without prefill, against the floor and the cost model"
    for check in size["checks"]:
        g = check["lookahead"]
        row = [
            f"batch {check['batch']}, " + (f"round of γ={g}" if g else "autoregressive step"),
            f"{1e3 * check['step_seconds']:.4g}",
            f"{1e3 * check['floor_seconds']:.4g}",
            f"{check['ratio_to_floor']:.2f}",
        ]
        if g:
            row += [f"{check['measured_speedup']:.3f}", f"{check['predicted_speedup']:.3f}"]
            row += [f"{100 * check['relative_difference']:+.1f}%"]
        table.add_row(*row)
    console.print(table)
    for check in (c for c in size["checks"] if not c["lookahead"]):
        theirs = [
            c["seconds"]
            for c in size["contenders"]
            if c["system"] == "transformers"
            and c["batch"] == check["batch"]
            and c["new_tokens"] == 1
        ]
        beside = f" (transformers {1e3 * theirs[0]:.3g} ms)" if theirs else ""
        console.print(
            f"batch {check['batch']}: first token after {1e3 * check['time_to_first_token_seconds']:.3g} ms{beside}, "
            f"of which prefill {1e3 * check['prefill_seconds']:.3g} ms"
        )
    steps = ", ".join(
        f"{name} {1e3 * seconds:.4g}"
        for name, seconds in size["steps"].items()
        if "prefill" not in name
    )
    console.print(f"steps, ms: {steps}")
    rates = ", ".join(
        f"{name} {rate['best'] / 1e9:.1f}" for name, rate in size["bandwidth"].items()
    )
    console.print(f"bandwidth over as many bytes as one step reads, GB/s: {rates}")
