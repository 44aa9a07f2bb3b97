"""The look that all figures share, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sdsl_jax.counts import short_count
from sdsl_jax.records import whole_file

Key = TypeVar("Key")
# Okabe and Ito's colours, which readers with colour-vision deficiency can tell apart; and a marker
# and a line style beside each, so that nothing rests on colour alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*P"
DASHES = (
    "-",
    (0, (6, 2)),
    (0, (1, 1.3)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1.5)),
    (0, (8, 2, 1, 2, 1, 2)),
)


def colours(count: int) -> list[str]:
    """So many colours, no two alike; more than there are in `COLOURS` are spread over a scale from dark to light."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    scale = matplotlib.colormaps["viridis"]
    return [matplotlib.colors.to_hex(scale(0.92 * i / (count - 1))) for i in range(count)]


def series(keys: Iterable[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Every key with a colour and a marker of its own."""
    names = list(keys)
    for i, (key, colour) in enumerate(zip(names, colours(len(names)))):
        yield key, {"color": colour, "marker": MARKERS[i % len(MARKERS)]}


def dashed(keys: Iterable[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Every key with a colour and a line style of its own."""
    for i, (key, style) in enumerate(series(keys)):
        yield key, {"color": style["color"], "ls": DASHES[i % len(DASHES)]}


def handle(label: str, **style: Any) -> Line2D:
    """An entry of a legend that no plotted line stands for."""
    return Line2D([], [], label=label, **({"color": "0.3", "ls": ""} | style))


_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.dpi": 150,
    "pdf.fonttype": 42,
}

NAMES = {
    "logit_gap": "logit in the loss gap",
    "logit_plane": "logit plane",
    "logit_log_gap": "logit in the log of the loss gap",
    "affine_plane": "affine plane",
    "params": "size",
    "tokens": "training tokens",
    "draft_params": "draft size",
    "target_params": "target size",
    "power_law": "power law of 1 − α",
    "log_linear_length": "log-linear acceptance length",
    "flops": "FLOP costs",
    "measured": "measured costs",
    "teacher_forced_text": "exact, held-out text",
    "teacher_forced_samples": "exact, target's own samples",
    "decoded_per_test": "decoder, accepted per tested draft",
    "decoded_tar": "decoder, inverted from tokens per round",
    "expected_per_test": "expected accepted per tested draft, target's own samples",
    "geometric": "geometric, exact α",
    "geometric_at_1": "geometric, α from γ = 1",
    "geometric_fitted": "geometric, α fitted",
    "beta": "Beta over prompts",
    "persistent": "persistent chain",
    "geometric_at_smallest": "geometric, α from the smallest γ",
    "beta_over_rounds": "Beta over rounds",
    "position_one_drop": "by position, one drop for all",
    "position": "by position",
    "ignored": "temperature ignored",
    "level": "a level for each temperature",
    "level_and_slope": "a level and a slope for each temperature",
    "line": "level and slope on a line in temperature",
    "calibrated": "laws and calibrated machine",
    "optimum": "nearest to its N*, γ*",
    "paper_cost": "the paper's c = N/M",
    "rule_of_200": "draft 200 times smaller",
    "lookahead_4": "γ = 4 by habit",
    "random_draft": "random draft",
    "ce": "cross-entropy (control)",
    "text": "cross-entropy on text",
    "kl": "KL(p‖q)",
    "reverse-kl": "KL(q‖p)",
    "js": "Jensen–Shannon",
    "tv": "total variation",
    "log-acceptance": "−ln α",
    "hybrid": "hybrid of KL and TV",
}


@contextmanager
def figure(
    folder: Path, name: str, rows: int, columns: int, size: tuple[float, float]
) -> Iterator[tuple[Figure, Any]]:
    """A figure with a grid of axes that is saved as PNG and PDF when the block ends.

    It is no figure of pyplot: the backend of the process, such as that of a notebook, stays as it is.

    Args:
      folder: Folder of the files.
      name: Name of the files, without ending.
      rows: Rows of axes.
      columns: Columns of axes.
      size: Width and height in inches.

    Yields:
      The figure, and its axes [rows, columns].

    Raises:
      SdslError: A file cannot be written.
    """
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn, drawn.subplots(rows, columns, squeeze=False)
        for kind in ("png", "pdf"):
            # No creation date: the same records give the same file.
            metadata = {"CreationDate": None} if kind == "pdf" else None
            with whole_file(folder / f"{name}.{kind}") as path:
                drawn.savefig(path, format=kind, metadata=metadata)


def label_sizes(axis: Any, label: str, subs: tuple[float, ...] = (1.0, 3.0)) -> None:
    """Labels a logarithmic axis of parameter or token counts, with ticks such as 3k, 30k, 1M."""
    axis.set_label_text(label)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short_count(value)))
    axis.set_minor_formatter(ticker.NullFormatter())


def log_sizes(axes: Any, label: str, subs: tuple[float, ...] = (1.0, 3.0)) -> None:
    """Makes the x axis a logarithmic one of sizes; see `label_sizes`."""
    axes.set_xscale("log")
    label_sizes(axes.xaxis, label, subs)


def target_label(size: float) -> str:
    """How legends and titles name a target of so many parameters."""
    return f"target {short_count(size)}"


def error_bars(rows: Iterable[Any], name: str, ends: str | None = None) -> list[list[float]]:
    """Lengths of the error bars below and above a column.

    Args:
      rows: Rows with the column and the ends of its interval.
      name: Name of the column.
      ends: What the names of the ends have before `low` and `high`; the column and "_" if omitted.
    """
    prefix = f"{name}_" if ends is None else ends
    values = [
        (getattr(row, name), getattr(row, f"{prefix}low"), getattr(row, f"{prefix}high"))
        for row in rows
    ]
    return [[x - low for x, low, _ in values], [high - x for x, _, high in values]]


def percent_axis(axis: Any, decimals: int = 1) -> None:
    """Shows shares on an axis as percentages."""
    axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=decimals))


def legend_beside(axis: Any, **options: Any) -> None:
    """A legend to the right of the axes."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **options)


def mark_plain_decoding(axis: Any) -> None:
    """A line at S = 1, and what it is."""
    axis.axhline(1.0, color="0.5", lw=0.8)
    axis.annotate(
        "plain decoding",
        (1, 1.0),
        (-3, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="0.4",
    )
