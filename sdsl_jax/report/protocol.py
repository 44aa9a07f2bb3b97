"""The tables and the picture of a protocol, beside what was published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdsl_jax.config import ProtocolConfig
from sdsl_jax.evidence.protocol import (
    ANSWER,
    ProtocolPair,
    ProtocolSummary,
    ProtocolTarget,
    summarise,
)
from sdsl_jax.fitting.plane import Plane
from sdsl_jax.records import write_json, write_text
from sdsl_jax.report.style import COLOURS, figure
from sdsl_jax.report.warnings import said_once

if TYPE_CHECKING:
    from sdsl_jax.measurement.protocol import ProtocolResult

_DRAWN = (-0.25, 1.25)
TABLE, FIGURE = "protocol.md", "plane"


def write_answer(config: ProtocolConfig, done: ProtocolResult, out: Path) -> str:
    """Writes what a protocol found: `protocol.json`, and the files of `write_protocol`.

    Args:
      config: The protocol.
      done: Its outcome.
      out: Folder of its records.

    Returns:
      The text of `protocol.md`.

    Raises:
      SdslError: The records are damaged, or the folder cannot be written to.
    """
    summary, points = summarise(config, done, out)
    write_json(out / ANSWER, summary)
    return write_protocol(summary, points, out)


def write_protocol(summary: ProtocolSummary, points: np.ndarray, out: Path) -> str:
    """Writes `protocol.md` and, where there are decoded pairs, `plane.png`.

    Args:
      summary: What the protocol found.
      points: Perplexities of draft and target, and α, of every decoded pair, [pairs, 3].
      out: Folder of the files.

    Returns:
      The text of `protocol.md`.

    Raises:
      SdslError: The folder cannot be written to.
    """
    text = _markdown(summary)
    write_text(out / TABLE, text)
    if len(points):
        _draw(points, summary, out)
    return text


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.0f}M" if value < 1e9 else f"{value / 1e9:.2f}B"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _header(words: int, *names: str) -> list[str]:
    """Heads of columns, of which so many of the first hold words and the others numbers."""
    return [_row(*names), "|" + "---|" * words + "---:|" * (len(names) - words)]


def _target_row(t: ProtocolTarget) -> str:
    best, optima = t.highest_alpha, (t.optimum, t.optimum_of_published_plane)
    return _row(
        t.target,
        t.state,
        "–" if best is None else f"{best.alpha:.3f} ({best.draft})",
        f"{t.params / 1e9:.3g}B",
        f"{t.train_tokens:.2g}",
        str(t.drafts),
        "–" if t.perplexity is None else f"{t.perplexity:.2f}",
        *(_size(optimum.draft_params if optimum else None) for optimum in optima),
        _size(t.stated_optimum),
    )


def _plane_row(name: str, plane: Plane | None) -> str:
    if plane is None:
        return _row(name, *5 * ["–"], "too few pairs of different perplexities")
    return _row(
        name,
        *(f"{x:.4g}" for x in (plane.A, plane.B, plane.C)),
        f"{plane.r_squared:.3f}",
        f"{plane.mean_squared_error:.3g}",
        "–" if plane.pairs is None else str(plane.pairs),
    )


def _markdown(summary: ProtocolSummary) -> str:
    """The tables, for people."""
    lines = [
        f"# {summary.name}",
        "",
        f"N*: optimal draft at D = {summary.draft_tokens:.3g} draft tokens and c = N/M, by the loss law of Besiroglu et al. and "
        "a plane of acceptance: ours, fitted to the pairs below, and the published one.",
        "",
        *_header(
            3,
            *("target", "state", "highest α", "M", "D′", "drafts", "perplexity"),
            *("N*, our plane", "N*, published plane", "N* stated"),
        ),
        *map(_target_row, summary.targets),
        "",
        "## α = A·x + B·y + C, x and y the perplexities of draft and target",
        "",
        *_header(1, "plane", "A", "B", "C", "R²", "MSE", "pairs"),
        _plane_row("ours", summary.plane),
        _plane_row("published", summary.published_plane),
    ]
    if summary.plane is not None and summary.plane.A >= 0:
        lines += [
            "",
            "A of our plane is not negative: by it a worse draft is accepted more, and there is no N*.",
        ]
    lines += [
        "",
        f"α of the plane: the token acceptance rate at γ = {summary.plane_lookahead}, inverted, of the pairs that were decoded; "
        "pairs of two tokenizers are not in it. Its perplexities are those on these prompts, each model's in its own tokens. N* "
        "uses those of the loss law instead, of another text and tokenizer: if ours are 1.5 times those of the law, N* "
        "by our plane comes out a quarter too small.",
        "",
        "## Pairs",
        "",
        *_pairs(summary.pairs),
    ]
    if summary.absent:
        lines += ["", "Not there: " + ", ".join(summary.absent) + "."]
    for reason, names in said_once((name, [text]) for name, text in summary.unreadable.items()):
        lines += ["", f"Not measured: {', '.join(names)}: {reason}"]
    return "\n".join(lines) + "\n"


def _pairs(pairs: list[ProtocolPair]) -> list[str]:
    """A row for each pair, and below them what holds for many."""
    lookaheads = sorted({gamma for pair in pairs for gamma in pair.tar_alpha}, key=int)
    inverted = [f"α from TAR, γ = {gamma}" for gamma in lookaheads]
    lines = _header(2, "draft", "target", "x", "y", "α", *inverted)
    for p in pairs:
        lines.append(
            _row(
                p.draft,
                p.target,
                f"{p.draft_perplexity:.2f}",
                f"{p.target_perplexity:.2f}",
                f"{p.alpha:.3f}" + ("" if p.lossless else " †"),
                *(f"{p.tar_alpha[g]:.3f}" if g in p.tar_alpha else "–" for g in lookaheads),
            )
        )
    lines += ["", "α: exact, on the target's samples."]
    if not all(p.lossless for p in pairs):
        lines[-1] += " †: re-tokenised, since the tokenizers differ; there is no lossless decoding."
    return lines


def _draw(points: np.ndarray, summary: ProtocolSummary, out: Path) -> None:
    """Measured α against what the two planes say."""
    with figure(out, FIGURE, 1, 1, (5.6, 4.4)) as (_, axes):
        axis = axes[0, 0]
        for name, plane, colour, marker in (
            ("plane fitted to these pairs", summary.plane, COLOURS[0], "o"),
            ("published plane", summary.published_plane, COLOURS[1], "^"),
        ):
            if plane is None:
                continue
            values = plane(points[:, 0], points[:, 1])
            # A plane is no probability; what it says far outside is counted, and not drawn.
            inside = (values >= _DRAWN[0]) & (values <= _DRAWN[1])
            beyond = f" ({int((~inside).sum())} beyond the picture)" if not inside.all() else ""
            axis.plot(values[inside], points[inside, 2], marker, color=colour, label=name + beyond)
        axis.plot([0, 1], [0, 1], color="0.4", lw=0.8, label="predicted = measured")
        axis.set(
            xlim=_DRAWN,
            ylim=(-0.05, 1.05),
            xlabel="α by a plane of the two perplexities",
            ylabel=f"measured α (TAR at γ = {summary.plane_lookahead}, inverted)",
            title="Acceptance of the measured pairs",
        )
        axis.legend(loc="best")
