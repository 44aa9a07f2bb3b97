"""What a protocol found, in the paper's own terms: a table of its targets and a plane of its pairs, beside what was published."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdsl_jax.config import ProtocolConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.plane import PUBLISHED_PLANE, Plane, fit_plane
from sdsl_jax.measurement.protocol import RETOKENISED, ProtocolResult
from sdsl_jax.records import AcceptanceRecord, ModelRecord, read_table, write_json, write_text
from sdsl_jax.report.style import COLOURS, figure
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, AffinePlane, Scenario

_DRAWN = (-0.25, 1.25)
TABLE, ANSWER, FIGURE = "protocol.md", "protocol.json", "plane"


def summarise(config: ProtocolConfig, done: ProtocolResult, out: Path) -> dict[str, Any]:
    """Reads the records of a protocol, fits the plane, and computes each target's optimal draft by
    it and by the published one.

    Args:
      config: the protocol.
      done: what became of it.
      out: folder of its records; protocol.json, protocol.md and, where there are decoded pairs,
        plane.png are written to it.

    Raises:
      SdslError: the records are damaged, or the folder cannot be written to.
    """
    models = (
        {m.model_id: m for m in read_table(out, "models")} if (out / "models.csv").exists() else {}
    )
    rows = read_table(out, "acceptance") if (out / "acceptance.csv").exists() else []
    mine = {*done.measured}
    rows = [r for r in rows if (r.draft_id, r.target_id) in mine]
    tar = [
        r
        for r in rows
        if r.estimator == "decoded_tar" and r.lookahead == config.measure.plane_lookahead
    ]
    points = _points(tar, models)
    plane = fit_plane(points[:, 0], points[:, 1], points[:, 2]) if len(points) else None
    found = {
        "name": config.name,
        "draft_tokens": config.draft_tokens,
        "plane_lookahead": config.measure.plane_lookahead,
        "plane": None if plane is None else plane._asdict(),
        "published_plane": PUBLISHED_PLANE._asdict() | {"pairs": None},
        "targets": [_target(config, t, done, rows, models, plane) for t in config.targets],
        "pairs": [
            _pair(r, rows, models)
            for r in rows
            if r.estimator in ("teacher_forced_samples", RETOKENISED)
        ],
        "absent": done.absent,
        "unreadable": done.unreadable,
    }
    write_json(out / ANSWER, found)
    write_text(out / TABLE, markdown(found))
    if len(points):
        _draw(points, plane, config.measure.plane_lookahead, out)
    return found


def _points(rows: list[AcceptanceRecord], models: dict[str, ModelRecord]) -> np.ndarray:
    """Perplexities of draft and target, and α, of every pair."""
    values = [
        (models[r.draft_id].perplexity, models[r.target_id].perplexity, r.alpha) for r in rows
    ]
    return np.asarray([v for v in values if all(map(math.isfinite, v))], float).reshape(-1, 3)


def _optimum(config: ProtocolConfig, target: Any, plane: AffinePlane) -> dict[str, float] | None:
    """N* and γ* from the published loss law and a plane; None where the plane has no optimum in it."""
    try:
        with jax.enable_x64(True):
            best = Scenario(
                target.params, config.draft_tokens, target.train_tokens, BESIROGLU, plane
            ).optimum()
    except (SdslError, ValueError):
        return None
    found = {
        "draft_params": float(best.params),
        "lookahead": float(best.lookahead),
        "speedup": float(best.speedup),
    }
    return found if all(map(math.isfinite, found.values())) else None


def _target(
    config: ProtocolConfig,
    target: Any,
    done: ProtocolResult,
    rows: list[AcceptanceRecord],
    models: dict[str, ModelRecord],
    plane: Plane | None,
) -> dict[str, Any]:
    # With A from 0 up a worse draft would be accepted more, and the smallest would be the best.
    usable = plane is not None and plane.A < 0
    own = (
        dataclasses.replace(PAPER_PLANE, A=plane.A, B=plane.B, C=plane.C)
        if plane and usable
        else None
    )
    exact = [
        r for r in rows if r.target_id == target.folder and r.estimator == "teacher_forced_samples"
    ]
    best = max(exact, key=lambda r: r.alpha, default=None)
    model = models.get(target.folder)
    return {
        "target": target.folder,
        "params": target.params,
        "train_tokens": target.train_tokens,
        "state": "absent"
        if target.folder in done.absent
        else "unreadable"
        if target.folder in done.unreadable
        else "measured"
        if any(t == target.folder for _, t in done.measured)
        else "no draft",
        "perplexity": None if model is None else model.perplexity,
        "drafts": sum(t == target.folder for _, t in done.measured),
        "highest_alpha": None if best is None else {"draft": best.draft_id, "alpha": best.alpha},
        "optimum": None if own is None else _optimum(config, target, own),
        "optimum_of_published_plane": _optimum(config, target, PAPER_PLANE),
        "stated_optimum": target.optimum or None,
    }


def _pair(
    row: AcceptanceRecord, rows: list[AcceptanceRecord], models: dict[str, ModelRecord]
) -> dict[str, Any]:
    pair = (row.draft_id, row.target_id)
    tar = {
        r.lookahead: r.alpha
        for r in rows
        if (r.draft_id, r.target_id) == pair and r.estimator == "decoded_tar"
    }
    return {
        "draft": row.draft_id,
        "target": row.target_id,
        "draft_perplexity": models[row.draft_id].perplexity,
        "target_perplexity": models[row.target_id].perplexity,
        "lossless": row.estimator != RETOKENISED,
        "alpha": row.alpha,
        "alpha_low": row.alpha_low,
        "alpha_high": row.alpha_high,
        "tar_alpha": tar,
    }


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.0f}M" if value < 1e9 else f"{value / 1e9:.2f}B"


def markdown(found: dict[str, Any]) -> str:
    """The tables, for people."""
    lines = [
        f"# {found['name']}",
        "",
        f"N*: optimal draft at D = {found['draft_tokens']:.3g} draft tokens and c = N/M, by the loss law of Besiroglu et al. and "
        "a plane of acceptance: ours, fitted to the pairs below, and the published one.",
        "",
        "| target | M | D′ | state | drafts | perplexity | highest α | N*, our plane | N*, published plane | N* stated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for t in found["targets"]:
        best, own, published = t["highest_alpha"], t["optimum"], t["optimum_of_published_plane"]
        cells = [
            t["target"],
            f"{t['params'] / 1e9:.3g}B",
            f"{t['train_tokens']:.2g}",
            t["state"],
            str(t["drafts"]),
            "–" if t["perplexity"] is None else f"{t['perplexity']:.2f}",
            "–" if best is None else f"{best['alpha']:.3f} ({best['draft']})",
            _size(own and own["draft_params"]),
            _size(published and published["draft_params"]),
            _size(t["stated_optimum"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## α = A·x + B·y + C, x and y the perplexities of draft and target", ""]
    lines += ["| | A | B | C | R² | MSE | pairs |", "|---|---|---|---|---|---|---|"]
    for name, plane in (("ours", found["plane"]), ("published", found["published_plane"])):
        if plane is None:
            lines.append(
                f"| {name} | – | – | – | – | – | too few pairs of different perplexities |"
            )
            continue
        cells = [
            f"{plane['A']:.4g}",
            f"{plane['B']:.4g}",
            f"{plane['C']:.4g}",
            f"{plane['r_squared']:.3f}",
        ]
        cells += [
            f"{plane['mean_squared_error']:.3g}",
            "–" if plane["pairs"] is None else str(plane["pairs"]),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if found["plane"] is not None and found["plane"]["A"] >= 0:
        lines += [
            "",
            "A of our plane is not negative: by it a worse draft is accepted more, and there is no N*.",
        ]
    lines += [
        "",
        f"α of the plane: the token acceptance rate at γ = {found['plane_lookahead']}, inverted, of the pairs that were decoded; "
        "pairs of two tokenizers are not in it. Its perplexities are those on these prompts, each model's in its own tokens. N* "
        "takes those of the loss law for them, of another text and tokenizer: if ours are 1.5 times those of the law, N* "
        "by our plane comes out a quarter too small.",
        "",
        "## Pairs",
        "",
    ]
    lines += [
        "| draft | target | x | y | α | how | α from TAR at γ |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in found["pairs"]:
        how = (
            "exact, on the target's samples"
            if p["lossless"]
            else "re-tokenised, no lossless decoding"
        )
        tar = (
            ", ".join(f"{gamma}: {alpha:.3f}" for gamma, alpha in sorted(p["tar_alpha"].items()))
            or "–"
        )
        lines.append(
            f"| {p['draft']} | {p['target']} | {p['draft_perplexity']:.2f} | {p['target_perplexity']:.2f} | {p['alpha']:.3f} | "
            f"{how} | {tar} |"
        )
    if found["absent"]:
        lines += ["", "Not there: " + ", ".join(found["absent"]) + "."]
    for name, reason in found["unreadable"].items():
        lines += ["", f"Not measured: {name}: {reason}"]
    return "\n".join(lines) + "\n"


def _draw(points: np.ndarray, plane: Plane | None, lookahead: int, out: Path) -> None:
    """Measured α against what the two planes say."""
    with figure(out, FIGURE, 1, 1, (5.6, 4.4)) as (_, axes):
        axis = axes[0, 0]
        for name, each, colour, marker in (
            ("plane fitted to these pairs", plane, COLOURS[0], "o"),
            ("published plane", PUBLISHED_PLANE, COLOURS[1], "^"),
        ):
            if each is None:
                continue
            values = each(points[:, 0], points[:, 1])
            # A plane is no probability; what it says far outside is told, and not drawn.
            inside = (values >= _DRAWN[0]) & (values <= _DRAWN[1])
            beyond = f" ({int((~inside).sum())} beyond the picture)" if not inside.all() else ""
            axis.plot(values[inside], points[inside, 2], marker, color=colour, label=name + beyond)
        axis.plot([0, 1], [0, 1], color="0.4", lw=0.8)
        axis.set(xlim=_DRAWN, ylim=(-0.05, 1.05))
        axis.set(
            xlabel="α by a plane of the two perplexities",
            ylabel=f"measured α (TAR at γ = {lookahead}, inverted)",
            title="Acceptance of the measured pairs",
        )
        axis.legend(loc="best")
