"""The tables, and the one objective by which all contenders are judged. Imports no jax: numpy alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

DELTA = 1e-3
# Besiroglu et al., 2404.10102: E, A, B, a, b.
PUBLISHED = np.asarray([1.8172, 482.01, 2085.43, 0.3478, 0.3658])
LADDER = Path(__file__).parents[2] / "checkpoints" / "ladder" / "records" / "models.csv"


class Losses(NamedTuple):
    """A table: sizes, tokens and losses, arrays [n]."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


def simulated() -> Losses:
    """25 sizes × 10 budgets by the published coefficients, noise of 1%."""
    params = np.geomspace(70e6, 16e9, 25).repeat(10)
    tokens = np.tile(np.geomspace(5e9, 500e9, 10), 25)
    e, a_scale, b_scale, a, b = PUBLISHED
    noise = np.random.default_rng(0).normal(size=250)
    return Losses(
        params, tokens, (e + a_scale / params**a + b_scale / tokens**b) * np.exp(0.01 * noise)
    )


def ladder() -> Losses:
    """The models that ship with the project."""
    with open(LADDER, encoding="utf-8", newline="") as file:
        rows = [
            [float(row[name]) for name in ("params_nonembedding", "train_tokens", "loss_nats")]
            for row in csv.DictReader(file)
        ]
    return Losses(*np.asarray(rows).T)


TABLES = {"simulated, 250 models": simulated, "the ladder, 65 models": ladder}


def objective(x: np.ndarray, table: Losses, delta: float = DELTA) -> float:
    """Σ huber(ln L̂ − ln L) at x = (ln E, ln A, ln B, a, b)."""
    return float(_huber(_residuals(x, table)[0], delta).sum())


def objective_and_gradient(
    x: np.ndarray, table: Losses, delta: float = DELTA
) -> tuple[float, np.ndarray]:
    """The objective with its gradient written by hand."""
    r, shares = _residuals(x, table)
    psi = np.clip(r, -delta, delta)
    n, d = np.log(table.params), np.log(table.tokens)
    slopes = (shares[0], shares[1], shares[2], -n * shares[1], -d * shares[2])
    return float(_huber(r, delta).sum()), np.asarray([psi @ slope for slope in slopes])


def _residuals(x: np.ndarray, table: Losses) -> tuple[np.ndarray, np.ndarray]:
    n, d = np.log(table.params), np.log(table.tokens)
    terms = np.stack([np.full(len(n), x[0]), x[1] - x[3] * n, x[2] - x[4] * d])
    largest = terms.max(axis=0)
    parts = np.exp(terms - largest)
    total = parts.sum(axis=0)
    return largest + np.log(total) - np.log(table.loss), parts / total


def _huber(r: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(r)
    return np.where(size <= delta, r**2 / 2, delta * (size - delta / 2))


def logs(coefficients: np.ndarray) -> np.ndarray:
    """(E, A, B, a, b) as the objective takes them; a scale that is not positive has no logarithm, and its term is left out."""
    scales = np.asarray(coefficients[:3], float)
    return np.concatenate([np.log(np.maximum(scales, 1e-300)), np.asarray(coefficients[3:], float)])


def published_starts(count: int) -> np.ndarray:
    """Some of the 4,500 starts of Hoffmann et al. (2203.15556, appendix D.3), drawn at random."""
    axes = (
        np.arange(-1, 1.5, 0.5),
        np.arange(0, 30, 5),
        np.arange(0, 30, 5),
        np.arange(0, 2.5, 0.5),
        np.arange(0, 2.5, 0.5),
    )
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 5)
    return grid[np.random.default_rng(0).choice(len(grid), count, replace=False)]
