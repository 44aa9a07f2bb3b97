"""The figures of a study's laws, measurements and optima, drawn from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord, longest_trained
from sdsl_jax.report.evidence_figures import draw_evidence
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
from sdsl_jax.theory import ModelPoint

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


def _point(model: ModelRecord) -> ModelPoint:
    return ModelPoint(model.params_nonembedding, model.loss_nats, model.train_tokens)


def _at(loss: Any) -> ModelPoint:
    """A point for the laws drawn against losses, which do not look at sizes."""
    return ModelPoint(1.0, loss)


def _loss(records: StudyRecords, folder: Path, name: str) -> None:
    law, models = records.laws.loss, [m for m in records.models if m.training_is_known]
    with figure(folder, name, 1, 2, (11.5, 3.9)) as (_, axes):
        for axis, x, by, label, title in (
            (
                axes[0, 0],
                "params_nonembedding",
                "train_tokens",
                "non-embedding parameters N",
                "Loss falls with size (hollow: targets)",
            ),
            (
                axes[0, 1],
                "train_tokens",
                "params_nonembedding",
                "training tokens D",
                "Loss falls with data (hollow: targets)",
            ),
        ):
            of_size = x == "params_nonembedding"
            at = [getattr(m, x) for m in models]
            fine = np.geomspace(min(at) / 1.3, max(at) * 1.3, 80)
            for value, style in series(sorted({getattr(m, by) for m in models})):
                curve = law(fine, float(value)) if of_size else law(float(value), fine)
                axis.plot(fine, np.asarray(curve), color=style["color"], lw=1)
                for model in (m for m in models if getattr(m, by) == value):
                    axis.errorbar(
                        getattr(model, x),
                        model.loss_nats,
                        yerr=error_bars([model], "loss_nats"),
                        mfc="white" if model.role == "target" else style["color"],
                        elinewidth=0.8,
                        **style,
                    )
                unit = "tokens" if of_size else "parameters"
                axis.plot([], [], label=f"{short_count(value)} {unit}", **style)
            log_sizes(axis, label)
            axis.set(ylabel="test loss (nats per token)", title=title)
            legend_beside(axis)


Pair = tuple[ModelRecord, ModelRecord, AcceptanceRecord]


def _pairs(records: StudyRecords, estimator: str, lookahead: int | None = None) -> list[Pair]:
    """Draft, target and row of every pair of the study's models."""
    by_id = records.models_by_id
    return [
        (by_id[r.draft_id], by_id[r.target_id], r)
        for r in records.acceptance
        if r.estimator == estimator
        and lookahead in (None, r.lookahead)
        and {r.draft_id, r.target_id} <= by_id.keys()
    ]


def _of_target(pairs: Sequence[Pair], target: ModelRecord) -> list[Pair]:
    return [p for p in pairs if p[1].params_nonembedding == target.params_nonembedding]


def _acceptance(records: StudyRecords, folder: Path, name: str) -> None:
    laws, estimator = records.laws.acceptance, records.fits.acceptance_laws[0].estimator or ""
    pairs = _pairs(records, estimator)
    x = np.asarray([draft.perplexity for draft, _, _ in pairs])
    y = np.asarray([target.perplexity for _, target, _ in pairs])
    alpha = np.asarray([r.alpha for _, _, r in pairs])
    with figure(folder, name, 1, 3, (12.5, 3.9)) as (drawn, axes):
        left, middle, right = axes[0]
        pad_x, pad_y = 0.08 * np.ptp(x), max(0.35 * np.ptp(y), 0.05)
        fine_x = np.linspace(x.min() - pad_x, x.max() + pad_x, 60)
        fine_y = np.linspace(y.min() - pad_y, y.max() + pad_y, 60)
        draw_plane(
            drawn,
            left,
            (fine_x, fine_y),
            np.asarray(
                laws["affine_plane"](_at(np.log(fine_x)[None]), _at(np.log(fine_y)[:, None]))
            ),
            (x, y, alpha),
        )
        left.set(
            xlabel="draft perplexity",
            ylabel="target perplexity",
            title="Affine plane, with measured points",
        )
        for target, style in series(records.targets):
            rows = _of_target(pairs, target)
            section = laws["affine_plane"](_at(np.log(fine_x)), _at(target.loss_nats))
            middle.plot(fine_x, np.asarray(section), color=style["color"], lw=1)
            style |= dict(ls="", elinewidth=0.8, label=target_label(target.params_nonembedding))
            measured = dict(
                y=[r.alpha for *_, r in rows], yerr=error_bars([r for *_, r in rows], "alpha")
            )
            middle.errorbar([d.perplexity for d, *_ in rows], **measured, **style)
            gaps = [np.log(d.perplexity / t.perplexity) for d, t, _ in rows]
            right.errorbar(gaps, **measured, **style)
        gap = np.log(x) - np.log(y)
        fine = np.linspace(min(0.0, gap.min()) - 0.03, gap.max() + 0.05, 80)
        curve = np.asarray(laws["logit_gap"](_at(fine), _at(0.0)))
        right.plot(fine, curve, color="0.3", lw=1, label="fitted law")
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
        drawn.suptitle(f"Acceptance: {NAMES[estimator]}", fontsize=11)


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
    fits = records.fits.acceptance_laws
    largest = max((r.lookahead for r in records.survival), default=0)
    columns = min(3, len(fits))
    rows_of_axes = -(-len(fits) // columns)
    size = 4.4 * columns, 4.3 * rows_of_axes
    with figure(folder, name, rows_of_axes, columns, size) as (_, axes):
        for axis in axes.ravel()[len(fits) :]:
            axis.set_axis_off()
        for axis, fit in zip(axes.ravel(), fits):
            law, ends, estimator = records.laws.acceptance[fit.law], [], fit.estimator or ""
            for target, style in series(records.targets):
                shown: list[tuple[str, int | None, Any]] = [(estimator, None, style["color"])]
                if largest:
                    shown.append(("decoded_per_test", largest, "white"))
                for of, lookahead, fill in shown:
                    rows = _of_target(_pairs(records, of, lookahead), target)
                    predicted = [float(law(_point(d), _point(t))) for d, t, _ in rows]
                    measured = [r.alpha for *_, r in rows]
                    bars = error_bars([r for *_, r in rows], "alpha")
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
                    handle(f"filled: {NAMES[estimator]}", marker="o"),
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
    largest = max(r.lookahead for r in records.survival)
    survival = [r for r in records.survival if r.lookahead == largest]
    decoded = {r.draft_id for r in survival}
    drafts = longest_trained((m for m in records.models if m.model_id in decoded), "draft")
    tar = records.measured("decoded_tar", largest)
    targets = records.targets
    with figure(folder, name, 1, len(targets), (4.9 * len(targets), 3.9)) as (_, axes):
        for axis, target in zip(axes[0], targets):
            for draft, style in series(drafts):
                pair = draft.model_id, target.model_id
                rows = [r for r in survival if (r.draft_id, r.target_id) == pair]
                k = np.asarray([r.position for r in rows])
                label = f"{short_count(draft.params_nonembedding)}: {rows[0].tokens_per_round:.2f} tokens/round"
                bars = error_bars(rows, "survival")
                axis.errorbar(
                    k,
                    [r.survival for r in rows],
                    yerr=bars,
                    elinewidth=0.8,
                    lw=1,
                    label=label,
                    **style,
                )
                axis.plot(k, tar[pair].alpha ** k, "--", color=style["color"], lw=0.9)
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
    by_id = records.models_by_id
    predicted = {(r.model_id, r.width): r.predicted_seconds for r in records.fits.hardware.rows}
    timed = [r for r in records.latency if (r.model_id, r.width) in predicted]

    def draw(axis: Any, rows: list[LatencyRecord], at: list[float], **style: Any) -> None:
        bars = 1e6 * np.asarray(error_bars(rows, "seconds"))
        axis.errorbar(at, [1e6 * r.seconds for r in rows], yerr=bars, ls="", **style)
        fitted = [1e6 * predicted[r.model_id, r.width] for r in rows]
        axis.plot(at, fitted, color=style["color"], lw=1.2)

    def size(row: LatencyRecord) -> float:
        return float(by_id[row.model_id].params_nonembedding)

    with figure(folder, name, 1, 2, (9.5, 3.9)) as (_, axes):
        left, right = axes[0]
        decode = sorted((r for r in timed if r.operation == "decode"), key=size)
        sizes = [size(r) for r in decode]
        draw(left, decode, sizes, color=COLOURS[0], marker="o", label="measured median")
        left.plot([], [], color=COLOURS[0], lw=1.2, label="fitted device")
        log_sizes(left, "non-embedding parameters")
        left.set(
            ylabel="one-token step (µs)",
            title=f"Decode steps, batch {decode[0].batch}",
            ylim=(0, None),
        )
        left.legend()
        for target, style in series(records.targets):
            rows = sorted(
                (r for r in timed if r.model_id == target.model_id), key=lambda r: r.width
            )
            draw(
                right,
                rows,
                [r.width for r in rows],
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
