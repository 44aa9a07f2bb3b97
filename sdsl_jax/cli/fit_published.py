"""What `sdsl fit lengths` and `sdsl fit domains` print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sdsl_jax.cli.terminal import say, table
from sdsl_jax.report.style import NAMES

if TYPE_CHECKING:
    from sdsl_jax.fitting.acceptance_fits import DomainFits, LengthFits


def print_lengths(console: Console, fits: LengthFits, path: Path) -> None:
    """The pools of each kind of drafter, and the errors of every law on series that were left out."""
    rows = []
    for kind, pool in fits.pools.items():
        firsts = sorted(float(law.law.first) for law in fits.laws if law.kind == kind)
        floors = sorted(float(law.law.floor) for law in fits.laws if law.kind == kind)
        rows.append(
            (
                kind,
                str(pool.series),
                f"{firsts[len(firsts) // 2]:.3f}",
                "{:.2f} ({:.2f} to {:.2f})".format(pool.decay, *pool.decay_interval()),
                f"{floors[len(floors) // 2]:.3f}",
                f"{pool.drop:+.2f} ± {pool.spread:.2f}",
                f"{100 * pool.noise:.1f}%",
            )
        )
    columns = ("drafter", "series", "first", "decay", "floor", "drop of the logit", "scatter of τ")
    console.print(table(f"Acceptance by position, fitted to {path}", columns, rows))
    say(
        console,
        "α of draft k = floor + (first − floor)·(1 − decay)^(k − 1): medians of first and floor;\n"
        "one decay for each kind of drafter, with its 90% interval, and a drop of the logit that varies\n"
        "between series by ±.",
    )
    errors = [
        (
            NAMES.get(row.law, row.law),
            str(row.rows),
            f"{round(100 * row.median, 1) + 0.0:+.1f}%",  # no −0.0
            f"{100 * row.median_size:.1f}%",
            f"{100 * row.ninety:.1f}%",
            f"{100 * row.worst:.1f}%",
            "–" if row.covered != row.covered else f"{row.covered:.0%}",
        )
        for row in fits.summary
    ]
    if errors:
        columns = ("law", "rows", "median", "median size", "90%", "worst", "in 90% interval")
        title = f"Error of τ at larger lookaheads, every {fits.left_out} left out in turn"
        console.print(table(title, columns, errors))
        for law, row in {row.law: row for row in fits.errors}.items():
            if law == "position":
                worst = max(
                    (e for e in fits.errors if e.law == row.law), key=lambda e: abs(e.error)
                )
                about = ", ".join(part for part in worst.series if part)  # type: ignore[attr-defined]
                say(
                    console,
                    f"Worst by position: {worst.predicted:.2f} for a measured {worst.measured:.2f} "
                    f"at γ = {worst.lookahead} ({about}).",
                )
    for note in fits.notes:
        say(console, f"note: {note}")


def print_domains(console: Console, fits: DomainFits, path: Path) -> None:
    """The levels of the domains, what the variance is made of, and errors on what was left out."""
    rows = [
        (
            level.domain,
            str(level.rows),
            f"{level.raw:+.3f}",
            f"{level.level:+.3f}",
            f"{level.acceptance:.3f}",
        )
        for level in fits.domains
    ]
    title = f"Levels of logit α by domain, fitted to {path}"
    console.print(table(title, ("domain", "rows", "mean", "level", "α"), rows))
    say(
        console,
        "mean: of the domain's rows, less kinds of drafter and slopes; level: the same, shrunk; α at the level.",
    )
    parts = [f"{name} {share:.0%}" for name, share in fits.shares.shares.items()]
    unbalanced = "" if fits.shares.balanced else " (the design is not balanced: shares overlap)"
    if parts:
        say(console, f"Variance of logit α: {', '.join(parts)}{unbalanced}.")
    else:
        say(console, "All rows state the same α: there is no variance to share.")
    spreads = ", ".join(f"{name} {spread:.3f}" for name, spread in fits.fit.spreads.items())
    say(console, f"Spread of the levels in logits: {spreads}; rest {fits.fit.residual:.3f}.")
    if len(fits.fixed) > 1:
        fixed = ", ".join(f"{name} {value:+.3f}" for name, value in fits.fixed.items())
        say(console, f"Fixed part: {fixed}.")
    columns = ("left out", "median", "90%", "worst", "without domains", "τ", "in 90%", "width")
    errors = [
        (
            row.left_out,
            f"{row.median:.3f}",
            f"{row.ninety:.3f}",
            f"{row.worst:.3f}",
            f"{row.without:.3f}",
            "–" if row.length_median != row.length_median else f"{row.length_median:.1%}",
            f"{row.covered:.0%}",
            f"{row.width:.2f}",
        )
        for row in fits.errors
    ]
    if errors:
        console.print(table("Errors of α on what the fit did not see", columns, errors))
        say(
            console,
            "without domains: median error of a fit that ignores them; τ: median error of tokens per round;\n"
            "in 90%: share of rows inside their 90% interval, and its median width in α.",
        )
    for note in fits.notes:
        say(console, f"note: {note}")
