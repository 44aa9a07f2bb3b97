"""Records of studies that never were: chains of known persistence, and acceptance that follows known laws."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.config import StudyConfig, from_dict
from sdsl_jax.evidence import Evidence, StudyRecords
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    LossRecord,
    ModelRecord,
    SurvivalRecord,
)
from sdsl_jax.report.evidence_figures import EVIDENCE_CAPTIONS
from sdsl_jax.report.html import environment
from sdsl_jax.statistics import ratio_interval, student_quantile
from sdsl_jax.theory import acceptance_from_tokens_per_round, rounds_over_sample

BASE = "base text"


def evidence_section(evidence: Evidence, images: dict[str, str]) -> str:
    """The section of the report for sceptics, by itself; figures as base64, by their names."""
    template = environment().get_template("evidence.html.j2")
    return template.render(
        evidence=evidence, images=images, charts={}, evidence_captions=EVIDENCE_CAPTIONS
    )


def config(**sections) -> StudyConfig:
    ladder = {"draft_params": [1], "draft_tokens": [1], "target_params": [2], "target_tokens": [1]}
    return from_dict(
        StudyConfig, {"name": "invented", "ladder": ladder, "fit": {"bootstrap": 100}} | sections
    )


def model(
    name: str, params: int, loss: float = 2.0, role: str = "draft", seed: int = 0
) -> ModelRecord:
    return ModelRecord(
        name, role, params, params, 1000, seed, loss, math.exp(loss), flops_per_token=2.0 * params
    )


def exact(draft: str, target: str, alpha: float, **changed) -> AcceptanceRecord:
    known = {
        "estimator": "teacher_forced_samples",
        "lookahead": 0,
        "temperature": 1.0,
        "domain": BASE,
    }
    half = {
        "alpha_low": alpha - 0.005,
        "alpha_high": alpha + 0.005,
        "confidence": 0.9,
        "clusters": 64,
    }
    return AcceptanceRecord(draft, target, alpha=alpha, **(known | half | changed))


def records(**tables) -> StudyRecords:
    """Records that hold some tables and no others."""
    lists = ("models", "acceptance", "survival", "expected", "latency", "conditions")
    lists += ("other_models", "losses", "runs", "timed_models", "clock", "codesign", "landscapes")
    empty = {name: [] for name in lists} | dict.fromkeys(("predictions", "hardware"))
    return StudyRecords(".", **({"config": config(), "self_checks": {}} | empty | tables))


def chain(
    random: np.random.Generator, alpha: float, persistence: float, samples: int, length: int
) -> np.ndarray:
    """Whether a draft would be accepted at each position: a stationary two-state chain, [samples, length]."""
    after = alpha * (1 - persistence), alpha + persistence * (1 - alpha)
    found = np.zeros((samples, length))
    found[:, 0] = random.random(samples) < alpha
    for t in range(1, length):
        found[:, t] = random.random(samples) < np.where(found[:, t - 1] > 0, after[1], after[0])
    return found


def expected(
    draft: str, target: str, chances: np.ndarray, lookaheads=range(1, 13)
) -> list[ExpectedRecord]:
    """Rows of `expected.csv` from the acceptance probabilities of each position of each sample."""
    n = len(chances)
    rows, first = [], None
    for gamma in lookaheads:
        rounds = jax.vmap(lambda a, gamma=gamma: rounds_over_sample(a, gamma))(jnp.asarray(chances))
        started, survived = np.asarray(rounds.started, float), np.asarray(rounds.survived, float)
        emitted = started + survived.sum(axis=1)
        tau = ratio_interval(emitted, started, 0.9)
        tests = ratio_interval(survived.sum(axis=1), started + survived[:, :-1].sum(axis=1), 0.9)
        slope = jax.grad(lambda t, gamma=gamma: acceptance_from_tokens_per_round(t, float(gamma)))(
            tau.estimate
        )
        alpha = [float(x) for x in acceptance_from_tokens_per_round(np.asarray(tau), float(gamma))]
        influence = float(slope) * (emitted - tau.estimate * started) / started.sum()
        first = (alpha[0], influence) if first is None else first
        half = student_quantile(0.95, n - 1) * math.sqrt(
            n / (n - 1) * np.square(influence - first[1]).sum()
        )
        change = alpha[0] - first[0]
        values = [*tau, *tests, *alpha, change, change - half, change + half]
        rows.append(
            ExpectedRecord(draft, target, gamma, 1.0, BASE, *values, 0.9, n, float(started.sum()))
        )
    return rows


def chain_study(
    seed: int,
    persistence: float,
    alphas=(0.45, 0.55, 0.65, 0.75),
    samples: int = 64,
    length: int = 96,
):
    """Pairs of one target whose acceptances are chains of the same persistence; survival is what the chain implies."""
    random = np.random.default_rng(seed)
    target = model("target", 100_000, 1.5, "target")
    drafts = [model(f"draft-{i}", 1000 * 2**i, 2.5 - a) for i, a in enumerate(alphas)]
    tables = {"models": [*drafts, target], "acceptance": [], "expected": [], "survival": []}
    for draft, alpha in zip(drafts, alphas):
        chances = chain(random, alpha, persistence, samples, length)
        tables["acceptance"].append(exact(draft.model_id, "target", float(chances.mean())))
        tables["expected"] += expected(draft.model_id, "target", chances)
        tables["survival"].append(
            SurvivalRecord(
                draft.model_id, "target", 1, 1.0, BASE, 1, tables["expected"][-12].accepted_per_test
            )
        )
    return records(**tables)


def law_study(
    seed: int = 0, noise: float = 0.003, temperatures=(), domains=(), shift: float | None = None
):
    """Two targets and 12 drafts whose α follows a logit law in the loss gap.

    Args:
      seed: of the noise.
      noise: standard deviation of α.
      temperatures: (temperature, level, slope) of the law there.
      domains: (name, loss added to every model, factor of every loss gap); the law holds for the
        losses of each domain.
      shift: logit by which drafts of other data lie above the law; None for no such drafts.
    """
    random = np.random.default_rng(seed)
    targets = [model(f"target-{i}", 10**6 * (i + 1), 1.5 - 0.05 * i, "target") for i in range(2)]
    drafts = [
        model(f"draft-{i}-{j}", 1000 * 2**i, 2.2 - 0.08 * i - 0.02 * j, seed=j)
        for i in range(6)
        for j in range(2)
    ]
    others = (
        []
        if shift is None
        else [model(f"other-{i}", 1500 * 2**i, 2.1 - 0.07 * i) for i in range(5)]
    )

    def alpha(gap: float, level: float = 1.5, slope: float = 1.8) -> float:
        return 1 / (1 + math.exp(-level + slope * gap)) + noise * random.normal()

    acceptance, conditions, losses = [], [], []
    for draft, target in itertools.product(drafts, targets):
        gap, ids = draft.loss_nats - target.loss_nats, (draft.model_id, target.model_id)
        text = {"estimator": "teacher_forced_text"}
        acceptance.append(exact(*ids, alpha(gap), **text))
        conditions += [
            exact(*ids, alpha(gap, a, b), temperature=t, **text) for t, a, b in temperatures
        ]
        conditions += [
            exact(*ids, alpha(factor * gap), domain=name, **text) for name, _, factor in domains
        ]
    for draft, target in itertools.product(others, targets):
        at = alpha(draft.loss_nats - target.loss_nats, 1.5 + (shift or 0.0))
        conditions.append(
            exact(draft.model_id, target.model_id, at, estimator="teacher_forced_text")
        )
    for each, (name, added, factor) in itertools.product((*drafts, *targets), domains):
        losses.append(
            LossRecord(each.model_id, name, 1.5 + added + factor * (each.loss_nats - 1.5))
        )
    losses += [
        LossRecord(each.model_id, BASE, each.loss_nats) for each in (*drafts, *targets, *others)
    ]
    tables = {
        "acceptance": acceptance,
        "conditions": conditions,
        "losses": losses,
        "other_models": others,
    }
    return records(models=[*drafts, *targets], **tables)
