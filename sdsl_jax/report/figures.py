"""The figures of a study, drawn from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from sdsl_jax.counts import short_count
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord, longest_trained
from sdsl_jax.report.evidence_figures import draw_evidence
from sdsl_jax.report.inputs import Records, read_records
from sdsl_jax.report.landscapes import draw_optimiser, draw_speedup
from sdsl_jax.report.style import COLOURS, NAMES, colours, figure, label_sizes
from sdsl_jax.theory import ACCEPTANCE_LAWS, LOSS_LAWS, ModelPoint

CAPTIONS = {
    "loss": "Test loss against non-embedding parameters and training tokens, with the fitted law. "
    "Bars: intervals over windows of text, far smaller between models than they are, since all see the same windows.",
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


def draw_figures(records_folder: Path, folder: Path) -> None:
    """Draws every figure of `CAPTIONS`, and those of the evidence that the records hold, into a folder, as PNG and PDF."""
    records = read_records(records_folder)
    for name, draw in _FIGURES.items():
        draw(records, folder, name)
    draw_evidence(records, folder)


def _law(description: dict[str, Any]) -> Any:
    return ACCEPTANCE_LAWS[description["law"]](**description["coefficients"])


def _point(model: ModelRecord) -> ModelPoint:
    return ModelPoint(model.params_nonembedding, model.loss_nats, model.train_tokens)


def _at(loss: Any) -> ModelPoint:
    """A point for the laws drawn against losses, which do not look at sizes."""
    return ModelPoint(1.0, loss)


def _loss(records: Records, folder: Path, name: str) -> None:
    law = LOSS_LAWS[records.fits["loss_law"]["law"]](**records.fits["loss_law"]["coefficients"])
    n = np.asarray([m.params_nonembedding for m in records.models], float)
    d = np.asarray([m.train_tokens for m in records.models], float)
    with figure(folder, name, 1, 2, (11.5, 3.9)) as (_, axes):
        for axis, x, other, label, by in (
            (axes[0, 0], n, d, "non-embedding parameters N", "tokens"),
            (axes[0, 1], d, n, "training tokens D", "parameters"),
        ):
            values = sorted(set(other))
            for value, colour in zip(values, colours(len(values))):
                fine = np.geomspace(x.min() / 1.3, x.max() * 1.3, 80)
                axis.plot(
                    fine,
                    np.asarray(law(fine, value) if by == "tokens" else law(value, fine)),
                    color=colour,
                    lw=1,
                )
                for model in (m for m, o in zip(records.models, other) if o == value):
                    at = model.params_nonembedding if by == "tokens" else model.train_tokens
                    error = [
                        [model.loss_nats - model.loss_nats_low],
                        [model.loss_nats_high - model.loss_nats],
                    ]
                    marker = "s" if model.role == "target" else "o"
                    axis.errorbar(
                        at, model.loss_nats, yerr=error, fmt=marker, color=colour, elinewidth=0.8
                    )
                axis.plot([], [], color=colour, marker="o", label=f"{short_count(value)} {by}")
            axis.set_xscale("log")
            label_sizes(axis.xaxis, label)
            axis.set_ylabel("test loss (nats per token)")
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes[0, 0].set_title("Loss falls with size (squares: targets)")
        axes[0, 1].set_title("Loss falls with data")


def _pairs(
    records: Records, estimator: str, lookahead: int | None = None, target_params: int | None = None
) -> list[tuple[ModelRecord, ModelRecord, AcceptanceRecord]]:
    by_id = {m.model_id: m for m in records.models}
    rows = [
        r
        for r in records.acceptance
        if r.estimator == estimator and lookahead in (None, r.lookahead)
    ]
    known = [r for r in rows if r.draft_id in by_id and r.target_id in by_id]
    pairs = [(by_id[r.draft_id], by_id[r.target_id], r) for r in known]
    return [p for p in pairs if target_params in (None, p[1].params_nonembedding)]


def _acceptance(records: Records, folder: Path, name: str) -> None:
    laws = {f["law"]: _law(f) for f in records.fits["acceptance_laws"]}
    estimator = records.fits["acceptance_laws"][0]["estimator"]
    pairs = _pairs(records, estimator)
    x = np.asarray([draft.perplexity for draft, _, _ in pairs])
    y = np.asarray([target.perplexity for _, target, _ in pairs])
    alpha = np.asarray([r.alpha for _, _, r in pairs])
    with figure(folder, name, 1, 3, (12.5, 3.9)) as (made, axes):
        left, middle, right = axes[0]
        pad_x, pad_y = 0.08 * np.ptp(x), max(0.35 * np.ptp(y), 0.05)
        fine_x = np.linspace(x.min() - pad_x, x.max() + pad_x, 60)
        fine_y = np.linspace(y.min() - pad_y, y.max() + pad_y, 60)
        plane = np.asarray(
            laws["affine_plane"](_at(np.log(fine_x)[None]), _at(np.log(fine_y)[:, None]))
        )
        limits = dict(vmin=min(alpha.min(), plane.min()), vmax=max(alpha.max(), plane.max()))
        shade = left.pcolormesh(fine_x, fine_y, plane, cmap="viridis", shading="gouraud", **limits)
        left.scatter(
            x, y, c=alpha, cmap="viridis", edgecolors="white", s=55, linewidths=1.1, **limits
        )
        made.colorbar(shade, ax=left, label="acceptance α")
        left.set(
            xlabel="draft perplexity",
            ylabel="target perplexity",
            title="Affine plane, with measured points",
        )
        for target, colour in zip(records.targets, colours(len(records.targets))):
            chosen = np.asarray(
                [t.params_nonembedding == target.params_nonembedding for _, t, _ in pairs]
            )
            low = [r.alpha - r.alpha_low for (_, _, r), c in zip(pairs, chosen) if c]
            high = [r.alpha_high - r.alpha for (_, _, r), c in zip(pairs, chosen) if c]
            middle.plot(
                fine_x,
                np.asarray(laws["affine_plane"](_at(np.log(fine_x)), _at(target.loss_nats))),
                color=colour,
                lw=1,
            )
            style = dict(
                fmt="o",
                color=colour,
                elinewidth=0.8,
                label=f"target {short_count(target.params_nonembedding)}",
            )
            middle.errorbar(x[chosen], alpha[chosen], yerr=[low, high], **style)
            right.errorbar(np.log(x[chosen] / y[chosen]), alpha[chosen], yerr=[low, high], **style)
        gap = np.linspace(
            min(0.0, (np.log(x) - np.log(y)).min()) - 0.03, (np.log(x) - np.log(y)).max() + 0.05, 80
        )
        right.plot(
            gap,
            np.asarray(laws["logit_gap"](_at(gap), _at(0.0))),
            color="0.3",
            lw=1,
            label="fitted law",
        )
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
        made.suptitle(f"Acceptance: {NAMES[estimator]}", fontsize=11)


def _predicted(records: Records, folder: Path, name: str) -> None:
    described = records.fits["acceptance_laws"]
    largest = max(r.lookahead for r in records.survival)
    columns = min(3, len(described))
    rows_of_axes = -(-len(described) // columns)
    with figure(folder, name, rows_of_axes, columns, (4.4 * columns, 4.3 * rows_of_axes)) as (
        _,
        axes,
    ):
        for axis in axes.ravel()[len(described) :]:
            axis.set_axis_off()
        for axis, fit in zip(axes.ravel(), described):
            law, ends = _law(fit), []
            for estimator, lookahead, marker in (
                (fit["estimator"], None, "o"),
                ("decoded_per_test", largest, "^"),
            ):
                for target, colour in zip(records.targets, colours(len(records.targets))):
                    rows = [
                        p
                        for p in _pairs(records, estimator, lookahead)
                        if p[1].params_nonembedding == target.params_nonembedding
                    ]
                    predicted = np.asarray(
                        [float(law(_point(draft), _point(target))) for draft, _, _ in rows]
                    )
                    measured = np.asarray([r.alpha for _, _, r in rows])
                    error = [
                        [r.alpha - r.alpha_low for *_, r in rows],
                        [r.alpha_high - r.alpha for *_, r in rows],
                    ]
                    axis.errorbar(
                        predicted,
                        measured,
                        yerr=error,
                        fmt=marker,
                        color=colour,
                        elinewidth=0.7,
                        mfc=colour if marker == "o" else "white",
                    )
                    ends += [*predicted, *measured]
            span = [min(ends) - 0.02, max(ends) + 0.02]
            axis.plot(span, span, color="0.5", lw=0.8, ls="--")
            handles = [
                Line2D(
                    [],
                    [],
                    color=colour,
                    marker="s",
                    ls="",
                    label=f"target {short_count(t.params_nonembedding)}",
                )
                for t, colour in zip(records.targets, colours(len(records.targets)))
            ]
            handles += [
                Line2D([], [], color="0.3", marker="o", ls="", label=NAMES[fit["estimator"]])
            ]
            handles += [
                Line2D(
                    [],
                    [],
                    color="0.3",
                    marker="^",
                    mfc="white",
                    ls="",
                    label=f"live decoder, γ = {largest}",
                )
            ]
            axis.legend(handles=handles, loc="upper left")
            axis.set(
                xlabel="predicted acceptance α", ylabel="measured acceptance α", aspect="equal"
            )
            axis.set_title(
                f"{NAMES[fit['law']].capitalize()}\nleft-out RMSE {fit['left_out_rmse']:.4f}"
            )


def _survival(records: Records, folder: Path, name: str) -> None:
    largest = max(r.lookahead for r in records.survival)
    decoded = {r.draft_id for r in records.survival if r.lookahead == largest}
    drafts = {
        m.model_id: m
        for m in longest_trained((m for m in records.models if m.model_id in decoded), "draft")
    }
    tar = {
        (r.draft_id, r.target_id): r.alpha
        for r in records.acceptance
        if (r.estimator, r.lookahead) == ("decoded_tar", largest)
    }
    with figure(folder, name, 1, len(records.targets), (4.9 * len(records.targets), 3.9)) as (
        _,
        axes,
    ):
        for axis, target in zip(axes[0], records.targets):
            for (draft_id, draft), colour in zip(drafts.items(), colours(len(drafts))):
                rows = [
                    r
                    for r in records.survival
                    if (r.draft_id, r.target_id, r.lookahead)
                    == (draft_id, target.model_id, largest)
                ]
                k, s = [r.position for r in rows], [r.survival for r in rows]
                error = [
                    [r.survival - r.survival_low for r in rows],
                    [r.survival_high - r.survival for r in rows],
                ]
                label = f"{short_count(draft.params_nonembedding)}: {rows[0].tokens_per_round:.2f} tokens/round"
                axis.errorbar(
                    k, s, yerr=error, fmt="o-", color=colour, elinewidth=0.8, lw=1, label=label
                )
                axis.plot(
                    k, tar[draft_id, target.model_id] ** np.asarray(k), "--", color=colour, lw=0.9
                )
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:.2g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set(xlabel="position k in the round", ylabel=f"P(first k accepted), γ = {largest}")
            axis.set_title(
                f"Survival, target {short_count(target.params_nonembedding)} (dashed: geometric)"
            )
            axis.legend(title="draft", loc="lower left")


def _latency(records: Records, folder: Path, name: str) -> None:
    by_id = {m.model_id: m for m in records.models}
    predicted = {
        (r["model_id"], r["width"]): r["predicted_seconds"]
        for r in records.fits["hardware"]["rows"]
    }
    timed = [r for r in records.latency if (r.model_id, r.width) in predicted]

    def draw(
        axis: Any, rows: list[LatencyRecord], at: list[float], colour: str, label: str
    ) -> None:
        measured = 1e6 * np.asarray([r.seconds for r in rows])
        low, high = (
            1e6 * np.asarray([getattr(r, end) for r in rows])
            for end in ("seconds_low", "seconds_high")
        )
        axis.errorbar(
            at, measured, yerr=[measured - low, high - measured], fmt="o", color=colour, label=label
        )
        axis.plot(at, [1e6 * predicted[r.model_id, r.width] for r in rows], color=colour, lw=1.2)

    def size(row: LatencyRecord) -> float:
        return float(by_id[row.model_id].params_nonembedding)

    with figure(folder, name, 1, 2, (9.5, 3.9)) as (_, axes):
        left, right = axes[0]
        decode = sorted((r for r in timed if r.operation == "decode"), key=size)
        draw(left, decode, [size(r) for r in decode], COLOURS[0], "measured median")
        left.plot([], [], color=COLOURS[0], lw=1.2, label="fitted device")
        left.set_xscale("log")
        label_sizes(left.xaxis, "non-embedding parameters")
        left.set(
            ylabel="one-token step (µs)",
            title=f"Decode steps, batch {decode[0].batch}",
            ylim=(0, None),
        )
        left.legend()
        for target, colour in zip(records.targets, colours(len(records.targets))):
            rows = sorted(
                (r for r in timed if r.model_id == target.model_id), key=lambda r: r.width
            )
            label = f"target {short_count(target.params_nonembedding)}"
            draw(right, rows, [r.width for r in rows], colour, label)
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
