"""What a protocol found, in the paper's own terms: the optimal draft of its targets, and a plane of its pairs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from sdsl_jax.config import ProtocolConfig
from sdsl_jax.config.protocol import ProtocolModel
from sdsl_jax.errors import SdslError
from sdsl_jax.evidence.common import Design
from sdsl_jax.fitting.plane import PUBLISHED_PLANE, Plane, fit_plane
from sdsl_jax.measurement.protocol import RETOKENISED, ProtocolResult
from sdsl_jax.records import AcceptanceRecord, ModelRecord, read_table
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, AffinePlane, Scenario

ANSWER = "protocol.json"


@dataclass(frozen=True)
class HighestAlpha:
    """The draft that a target accepts most of.

    Attributes:
      draft: the draft
      alpha: its acceptance, exact on the target's samples
    """

    draft: str
    alpha: float


@dataclass(frozen=True)
class ProtocolTarget:
    """A target of the protocol.

    Attributes:
      target: its folder
      params: M, parameters
      train_tokens: D′, training tokens
      state: measured, no draft, absent or unreadable
      perplexity: on these prompts, in its own tokens
      drafts: drafts that were measured with it
      highest_alpha: the draft that it accepts most of
      optimum: by the plane of these pairs
      optimum_of_published_plane: by the published plane
      stated_optimum: N* that the paper states
    """

    target: str
    params: float
    train_tokens: float
    state: str
    perplexity: float | None
    drafts: int
    highest_alpha: HighestAlpha | None
    optimum: Design | None
    optimum_of_published_plane: Design | None
    stated_optimum: float | None


@dataclass(frozen=True)
class ProtocolPair:
    """A measured pair.

    Attributes:
      draft: the draft
      target: the target
      draft_perplexity: of the draft, on these prompts
      target_perplexity: of the target, on these prompts
      lossless: whether both have one tokenizer
      alpha: acceptance
      alpha_low: lower end of its interval
      alpha_high: upper end of its interval
      tar_alpha: α inverted from the token acceptance rate, by γ
    """

    draft: str
    target: str
    draft_perplexity: float
    target_perplexity: float
    lossless: bool
    alpha: float
    alpha_low: float
    alpha_high: float
    tar_alpha: dict[str, float]


@dataclass(frozen=True)
class ProtocolSummary:
    """`protocol.json`: what a protocol found.

    Attributes:
      name: name of the protocol
      draft_tokens: D, training tokens of the optimal drafts
      plane_lookahead: γ at which the α of the plane is measured
      plane: the plane of these pairs; none with too few pairs
      published_plane: the paper's plane
      targets: targets of the protocol
      pairs: measured pairs
      absent: folders that do not exist
      unreadable: what could not be read or measured, and why
    """

    name: str
    draft_tokens: float
    plane_lookahead: int
    plane: Plane | None
    published_plane: Plane
    targets: list[ProtocolTarget]
    pairs: list[ProtocolPair]
    absent: list[str]
    unreadable: dict[str, str]


def summarise(
    config: ProtocolConfig, done: ProtocolResult, out: Path
) -> tuple[ProtocolSummary, np.ndarray]:
    """Fits the plane to the records of a protocol, and computes each target's optimal draft by it and
    by the published one.

    Args:
      config: The protocol.
      done: Its outcome.
      out: Folder of its records.

    Returns:
      The summary, and perplexities of draft and target and α of every decoded pair, [pairs, 3].

    Raises:
      SdslError: The records are damaged.
    """
    table = read_table(out, "models", optional=True)
    models: dict[str, ModelRecord] = {m.model_id: m for m in table}
    rows = read_table(out, "acceptance", optional=True)
    measured = {*done.measured}
    rows = [r for r in rows if (r.draft_id, r.target_id) in measured]
    lookahead = config.measure.plane_lookahead
    tar = [r for r in rows if (r.estimator, r.lookahead) == ("decoded_tar", lookahead)]
    points = _points(tar, models)
    plane = fit_plane(points[:, 0], points[:, 1], points[:, 2]) if len(points) else None
    # With A from 0 up a worse draft would be accepted more, and the smallest would be the best.
    own = (
        dataclasses.replace(PAPER_PLANE, A=plane.A, B=plane.B, C=plane.C)
        if plane is not None and plane.A < 0
        else None
    )
    summary = ProtocolSummary(
        name=config.name,
        draft_tokens=config.draft_tokens,
        plane_lookahead=lookahead,
        plane=plane,
        published_plane=PUBLISHED_PLANE,
        targets=[_target(config, t, done, rows, models, own) for t in config.targets],
        pairs=[
            _pair(r, rows, models)
            for r in rows
            if r.estimator in ("teacher_forced_samples", RETOKENISED)
        ],
        absent=done.absent,
        unreadable=done.unreadable,
    )
    return summary, points


def _points(rows: list[AcceptanceRecord], models: dict[str, ModelRecord]) -> np.ndarray:
    """Perplexities of draft and target, and α, of every pair."""
    values = [
        (models[r.draft_id].perplexity, models[r.target_id].perplexity, r.alpha) for r in rows
    ]
    return np.asarray([v for v in values if all(map(math.isfinite, v))], float).reshape(-1, 3)


def _optimum(config: ProtocolConfig, target: ProtocolModel, plane: AffinePlane) -> Design | None:
    """N* and γ* from the published loss law and a plane; None where the plane has no optimum in it."""
    try:
        with jax.enable_x64(True):
            best = Scenario(
                target.params, config.draft_tokens, target.train_tokens, BESIROGLU, plane
            ).optimum()
    except (SdslError, ValueError):
        return None
    design = Design.of(best)
    return design if all(map(math.isfinite, vars(design).values())) else None


def _target(
    config: ProtocolConfig,
    target: ProtocolModel,
    done: ProtocolResult,
    rows: list[AcceptanceRecord],
    models: dict[str, ModelRecord],
    plane: AffinePlane | None,
) -> ProtocolTarget:
    exact = [
        r for r in rows if (r.target_id, r.estimator) == (target.folder, "teacher_forced_samples")
    ]
    best = max(exact, key=lambda r: r.alpha, default=None)
    drafts = sum(of == target.folder for _, of in done.measured)
    return ProtocolTarget(
        target=target.folder,
        params=target.params,
        train_tokens=target.train_tokens,
        state="absent"
        if target.folder in done.absent
        else "unreadable"
        if target.folder in done.unreadable
        else "measured"
        if drafts
        else "no draft",
        perplexity=models[target.folder].perplexity if target.folder in models else None,
        drafts=drafts,
        highest_alpha=None if best is None else HighestAlpha(best.draft_id, best.alpha),
        optimum=None if plane is None else _optimum(config, target, plane),
        optimum_of_published_plane=_optimum(config, target, PAPER_PLANE),
        stated_optimum=target.optimum or None,
    )


def _pair(
    row: AcceptanceRecord, rows: list[AcceptanceRecord], models: dict[str, ModelRecord]
) -> ProtocolPair:
    pair = row.draft_id, row.target_id
    return ProtocolPair(
        draft=row.draft_id,
        target=row.target_id,
        draft_perplexity=models[row.draft_id].perplexity,
        target_perplexity=models[row.target_id].perplexity,
        lossless=row.estimator != RETOKENISED,
        alpha=row.alpha,
        alpha_low=row.alpha_low,
        alpha_high=row.alpha_high,
        tar_alpha={
            str(r.lookahead): r.alpha
            for r in rows
            if (r.draft_id, r.target_id, r.estimator) == (*pair, "decoded_tar")
        },
    )
