"""The figures of a study's laws, measurements and optima, drawn from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.report.evidence_figures import draw_evidence
from sdsl_jax.report.figure_data import (
    TimedStep,
    acceptance_shown,
    largest_survival_lookahead,
    loss_gaps,
    loss_panels,
    of_target,
    predicted_panels,
    survival_curves,
    timed_steps,
)
from sdsl_jax.report.landscapes import draw_optimiser, draw_speedup
from sdsl_jax.report.style import (
    COLOURS,
    NAMES,
    error_bars,
    figure,
    handle,
    legend_beside,
    log_sizes,
    series,
    target_label,
)

CAPTIONS = {
    "loss": "Test loss against non-embedding parameters and training tokens, with the fitted law. "
    "Bars: intervals over windows of text; differences between models are known much better, since all see the same windows.",
    "acceptance": "Acceptance probability against the perplexities of draft and target: the paper's affine plane (left, points "
    "filled with the measured value on the plane's own colours), its sections at each target (middle), and the bounded law in "
    "the loss gap (right).",
    "predicted": "Acceptance predicted by each fitted law against acceptance measured, for the estimator that the laws were "
    "fitted to and for the live decoder. RMSE of left-out drafts in the title.",
    "speedup": "Speed-up against draft size at the best lookahead of at least 1 for each size. Shaded: sizes within 1% of "
    "the best. Dots: trained drafts at their largest budget, with the tokens per round that the decoder measured, at the best "
    "measured lookahead.",
    "optimiser": "Speed-up over draft size and lookahead, the path of the optimiser from its best start (which may lie above "
    "the frame), and the reference: the closed form of γ at costs in FLOPs, bracketed roots at measured ones.",
    "survival": "Share of rounds whose first k drafts were all accepted, at the largest measured lookahead, "
    "against the geometric α^k of independent acceptance with α from the same rounds (dashed).",
    "latency": "Median time of a one-token decoding step against size, and of passes of the targets against their width, with "
    "what the fitted device takes for the same shapes (lines).",
}


def figures_of(records: StudyRecords) -> list[str]:
    """The figures of `CAPTIONS` that the records of a study with laws hold something for."""
    return [name for name in CAPTIONS if name != "survival" or records.survival]


def draw_figures(records: StudyRecords, folder: Path) -> None:
    """Draws the figures of `CAPTIONS`, and those of the evidence, that the records hold something for, as
    PNG and PDF, and removes older ones of the others.

    Args:
      records: Records of the study.
      folder: Folder of the files.

    Raises:
      SdslError: A record is missing or damaged, or a file cannot be written.
    """
    for name, draw in _FIGURES.items():
        if name in figures_of(records):
            draw(records, folder, name)
        else:
            for ending in ("png", "pdf"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    draw_evidence(records, folder)


def _loss(records: StudyRecords, folder: Path, name: str) -> None:
    with figure(folder, name, 1, 2, (11.5, 3.9)) as (_, axes):
        for axis, panel in zip(axes[0], loss_panels(records)):
            for (value, style), label, curve in zip(
                series(panel.values), panel.names, panel.curves
            ):
                axis.plot(panel.grid, curve, color=style["color"], lw=1)
                for model in (m for m in panel.models if getattr(m, panel.by) == value):
                    axis.errorbar(
                        getattr(model, panel.x),
                        model.loss_nats,
                        yerr=error_bars([model], "loss_nats"),
                        mfc="white" if model.role == "target" else style["color"],
                        elinewidth=0.8,
                        **style,
                    )
                axis.plot([], [], label=label, **style)
            log_sizes(axis, panel.label)
            axis.set(ylabel="test loss (nats per token)", title=panel.title)
            legend_beside(axis)


def _acceptance(records: StudyRecords, folder: Path, name: str) -> None:
    shown = acceptance_shown(records)
    with figure(folder, name, 1, 3, (12.5, 3.9)) as (drawn, axes):
        left, middle, right = axes[0]
        points = (
            np.asarray([draft.perplexity for draft, *_ in shown.pairs]),
            np.asarray([target.perplexity for _, target, _ in shown.pairs]),
            np.asarray([r.alpha for *_, r in shown.pairs]),
        )
        draw_plane(drawn, left, (shown.x, shown.y), shown.plane, points)
        left.set(
            xlabel="draft perplexity",
            ylabel="target perplexity",
            title="Affine plane, with measured points",
        )
        for (target, style), section in zip(series(records.targets), shown.sections):
            rows = of_target(shown.pairs, target)
            gaps = loss_gaps(rows)
            middle.plot(shown.x, section, color=style["color"], lw=1)
            style |= dict(ls="", elinewidth=0.8, label=target_label(target.params_nonembedding))
            measured = dict(
                y=[r.alpha for *_, r in rows], yerr=error_bars([r for *_, r in rows], "alpha")
            )
            middle.errorbar([d.perplexity for d, *_ in rows], **measured, **style)
            right.errorbar(gaps, **measured, **style)
        right.plot(shown.gap_grid, shown.gap_curve, color="0.3", lw=1, label="fitted law")
        middle.set(
            xlabel="draft perplexity",
            ylabel="acceptance α",
            title="Affine plane, section at each target",
        )
        right.set(
            xlabel="loss gap, draft − target (nats)",
            ylabel="acceptance α",
            title="Logit in the loss gap (bounded)",
        )
        middle.legend()
        right.legend()
        drawn.suptitle(f"Acceptance: {NAMES[shown.estimator]}", fontsize=11)


def draw_plane(
    drawn: Any,
    axis: Any,
    grid: tuple[np.ndarray, np.ndarray],
    plane: np.ndarray,
    points: tuple[Any, Any, Any],
) -> None:
    """A plane of acceptance in colours, with measured points filled on the same scale.

    Args:
      drawn: The figure.
      axis: Its axes.
      grid: Perplexities of draft and target that the plane is drawn at.
      plane: α by target and draft perplexity.
      points: Perplexities of draft and target, and α, of the measured pairs.
    """
    x, y, alpha = points
    limits = dict(vmin=min(alpha.min(), plane.min()), vmax=max(alpha.max(), plane.max()))
    shade = axis.pcolormesh(*grid, plane, cmap="viridis", shading="gouraud", **limits)
    # Black rings within white ones are seen on yellow as well as on blue.
    axis.scatter(x, y, s=72, color="white", linewidths=0)
    axis.scatter(x, y, c=alpha, cmap="viridis", edgecolors="black", s=46, linewidths=0.8, **limits)
    drawn.colorbar(shade, ax=axis, label="acceptance α")


def _predicted(records: StudyRecords, folder: Path, name: str) -> None:
    panels, largest = predicted_panels(records), largest_survival_lookahead(records)
    columns = min(3, len(panels))
    rows_of_axes = -(-len(panels) // columns)
    size = 4.4 * columns, 4.3 * rows_of_axes
    with figure(folder, name, rows_of_axes, columns, size) as (_, axes):
        for axis in axes.ravel()[len(panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes.ravel(), panels):
            fit, ends = panel.fit, []
            for target, style in series(records.targets):
                for shown, fill in ((panel.exact, style["color"]), (panel.decoded, "white")):
                    size_of_target = target.params_nonembedding
                    rows = [
                        (r, value)
                        for (_, t, r), value in shown
                        if t.params_nonembedding == size_of_target
                    ]
                    predicted, measured = [v for _, v in rows], [r.alpha for r, _ in rows]
                    bars = error_bars([r for r, _ in rows], "alpha")
                    axis.errorbar(
                        predicted, measured, yerr=bars, ls="", elinewidth=0.7, mfc=fill, **style
                    )
                    ends += [*predicted, *measured]
            span = [min(ends) - 0.02, max(ends) + 0.02]
            axis.plot(span, span, color="0.5", lw=0.8, ls="--")
            axis.legend(
                handles=[
                    *(
                        handle(target_label(target.params_nonembedding), **style)
                        for target, style in series(records.targets)
                    ),
                    handle(f"filled: {NAMES[fit.estimator or '']}", marker="o"),
                    *(
                        [handle(f"hollow: live decoder, γ = {largest}", marker="o", mfc="white")]
                        if largest
                        else []
                    ),
                ],
                loc="upper left",
            )
            axis.set(
                xlabel="predicted acceptance α",
                ylabel="measured acceptance α",
                aspect="equal",
                title=f"{NAMES[fit.law].capitalize()}\nleft-out RMSE {fit.left_out_rmse:.4f}",
            )


def _survival(records: StudyRecords, folder: Path, name: str) -> None:
    largest, curves = largest_survival_lookahead(records), survival_curves(records)
    targets = records.targets
    with figure(folder, name, 1, len(targets), (4.9 * len(targets), 3.9)) as (_, axes):
        for axis, target in zip(axes[0], targets):
            own = [c for c in curves if c.target.model_id == target.model_id]
            for curve, (_, style) in zip(own, series(c.draft.model_id for c in own)):
                size = short_count(curve.draft.params_nonembedding)
                axis.errorbar(
                    curve.positions,
                    curve.survival,
                    yerr=[curve.survival - curve.low, curve.high - curve.survival],
                    elinewidth=0.8,
                    lw=1,
                    label=f"{size}: {curve.tokens_per_round:.2f} tokens/round",
                    **style,
                )
                axis.plot(curve.positions, curve.geometric, "--", color=style["color"], lw=0.9)
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:.2g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set(
                xlabel="position k in the round",
                ylabel=f"P(first k accepted), γ = {largest}",
                title=f"Survival, {target_label(target.params_nonembedding)} (dashed: geometric)",
            )
            axis.legend(title="draft", loc="lower left")


def _latency(records: StudyRecords, folder: Path, name: str) -> None:
    decode, passes = timed_steps(records)

    def draw(axis: Any, steps: list[TimedStep], at: list[float], **style: Any) -> None:
        rows = [s.row for s in steps]
        bars = 1e6 * np.asarray(error_bars(rows, "seconds"))
        axis.errorbar(at, [1e6 * r.seconds for r in rows], yerr=bars, ls="", **style)
        fitted = [1e6 * s.predicted_seconds for s in steps]
        axis.plot(at, fitted, color=style["color"], lw=1.2)

    with figure(folder, name, 1, 2, (9.5, 3.9)) as (_, axes):
        left, right = axes[0]
        sizes = [float(s.model.params_nonembedding) for s in decode]
        draw(left, decode, sizes, color=COLOURS[0], marker="o", label="measured median")
        left.plot([], [], color=COLOURS[0], lw=1.2, label="fitted device")
        log_sizes(left, "non-embedding parameters")
        left.set(
            ylabel="one-token step (µs)",
            title=f"Decode steps, batch {decode[0].row.batch}",
            ylim=(0, None),
        )
        left.legend()
        for target, style in series(records.targets):
            steps = [s for s in passes if s.model.model_id == target.model_id]
            draw(
                right,
                steps,
                [s.row.width for s in steps],
                label=target_label(target.params_nonembedding),
                **style,
            )
        right.set(
            xlabel="tokens in the pass (γ + 1)",
            ylabel="verify pass (µs)",
            title="A verify pass is not free (lines: fitted device)",
            ylim=(0, None),
        )
        right.legend()


_FIGURES = {
    "loss": _loss,
    "acceptance": _acceptance,
    "predicted": _predicted,
    "speedup": draw_speedup,
    "optimiser": draw_optimiser,
    "survival": _survival,
    "latency": _latency,
}
