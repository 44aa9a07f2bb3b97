"""`python -m benchmarks.coverage [--tables N] [--json FILE]`: do 90% intervals of acceptance hold
pairs of unseen sizes, where the law is right and where it is wrong?

Tables are simulated on the design of `experiments/holdout-first-ladder.toml`: drafts of 3k to 50k parameters and
targets of 120k and 250k are fitted by the logit plane, drafts of 90k and 160k and a target of 500k
are held out. The truths are the plane itself, a plane that bends in the loss gap, an acceptance that
saturates, and targets that differ from size to size. Every model and every pair scatters. The share
of held-out pairs inside their intervals is given with its Monte-Carlo error, over tables. Widths are
medians; the second is that of coefficients and true scatter alone, the interval of someone who knows
that the plane is right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.fitting.acceptance import PairTable, pair_resamples
from sdsl_jax.fitting.discrepancy import ErrorInVariable, Variable, bent_laws, scatter
from sdsl_jax.fitting.forms import ACCEPTANCE_FORMS, pair_data
from sdsl_jax.fitting.law_fit import best_fit, bootstrap, law_of
from sdsl_jax.fitting.stage import acceptance_discrepancy
from sdsl_jax.statistics import stream
from sdsl_jax.theory import ChinchillaLaw, ModelPoint

# Losses and acceptances of the ladder that ships, to two digits.
LOSS = ChinchillaLaw(0.42, 3.7, 560.0, 0.104, 0.574)
LEVEL, DRAFT_SLOPE, TARGET_SLOPE = 3.1, 2.3, 1.5
DRAFTS = np.asarray([3e3, 5e3, 9e3, 16e3, 28e3, 50e3, 90e3, 160e3])
TARGETS = np.asarray([120e3, 250e3, 500e3])
DRAFT_TOKENS, TARGET_TOKENS = np.asarray([1.5e6, 3e6, 6e6, 12e6]), np.asarray([3e6, 6e6, 12e6])
LARGEST_DRAFT, LARGEST_TARGET = 60e3, 300e3
MODEL_SCATTER, PAIR_SCATTER = 0.003, 0.0025
DELTA, STARTS, DRAWS, CONFIDENCE = 0.02, 4, 100, 0.9

Truth = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _plane(draft: np.ndarray, target: np.ndarray) -> np.ndarray:
    return LEVEL - DRAFT_SLOPE * draft + TARGET_SLOPE * target


def _bent(draft: np.ndarray, target: np.ndarray) -> np.ndarray:
    gap = draft - target
    return _plane(draft, target) + 1.1 * np.square(gap - 0.45)


# (draft loss, target loss, index of the target's size, random) -> α
TRUTHS: dict[str, Truth] = {
    "the plane": lambda draft, target, size, random: _sigmoid(_plane(draft, target)),
    "bend in the gap": lambda draft, target, size, random: _sigmoid(_bent(draft, target)),
    "saturating": lambda draft, target, size, random: (
        0.93 * _sigmoid(1.35 * _plane(draft, target) - 0.1)
    ),
    "targets differ": lambda draft, target, size, random: _sigmoid(
        _plane(draft, target) + 0.06 * random.standard_normal(len(TARGETS))[size]
    ),
}


class Simulated(NamedTuple):
    """A table of pairs, and which of them are held out."""

    pairs: PairTable
    held_out: np.ndarray


def simulate(truth: Truth, seed: int) -> Simulated:
    """Every draft with every target."""
    random = stream(seed, "truth")
    n, d = (x.ravel() for x in np.meshgrid(DRAFTS, DRAFT_TOKENS, indexing="ij"))
    m, t = (x.ravel() for x in np.meshgrid(TARGETS, TARGET_TOKENS, indexing="ij"))
    of_draft, of_target = (x.ravel() for x in np.indices((len(n), len(m))))
    losses = [
        np.asarray(LOSS(size, tokens)) * np.exp(0.005 * random.standard_normal(len(size)))
        for size, tokens in ((n, d), (m, t))
    ]
    size = np.searchsorted(TARGETS, m)[of_target]
    alpha = truth(losses[0][of_draft], losses[1][of_target], size, random)
    alpha = alpha + MODEL_SCATTER * random.standard_normal(len(n))[of_draft]
    alpha = alpha + MODEL_SCATTER * random.standard_normal(len(m))[of_target]
    alpha = alpha + PAIR_SCATTER * random.standard_normal(len(alpha))
    runs = np.searchsorted(DRAFTS, n), len(DRAFTS) + np.searchsorted(TARGETS, m)
    pairs = PairTable(
        ModelPoint(n[of_draft], losses[0][of_draft], d[of_draft]),
        ModelPoint(m[of_target], losses[1][of_target], t[of_target]),
        alpha,
        of_draft,
        len(n) + of_target,
        runs[0][of_draft],
        runs[1][of_target],
    )
    held_out = (pairs.draft_sizes > LARGEST_DRAFT) | (pairs.target_sizes > LARGEST_TARGET)
    return Simulated(pairs, held_out)


class Outcome(NamedTuple):
    """What the intervals of one table did.

    Attributes:
      inside: Share of held-out pairs inside their intervals.
      inside_bootstrap: The same of intervals of coefficients and true scatter alone.
      width: Median width.
      width_bootstrap: Median width of the latter.
    """

    inside: float
    inside_bootstrap: float
    width: float
    width_bootstrap: float


def judge(simulated: Simulated, seed: int) -> Outcome:
    """Fits the plane to the seen pairs and counts the others."""
    seen, unseen = (simulated.pairs.rows(x) for x in (~simulated.held_out, simulated.held_out))
    form = ACCEPTANCE_FORMS["logit_plane"]
    with jax.enable_x64(True):
        data = pair_data(seen.draft, seen.target, seen.alpha)
        best = best_fit(form, data, np.ones(len(seen.alpha)), DELTA, STARTS, seed)
        law = jax.tree.map(np.asarray, law_of(form, best.parameters, data))
        draws, _ = bootstrap(form, best, data, pair_resamples(seen, DRAWS, seed), DELTA)
        found = acceptance_discrepancy(law, seen, DRAWS, seed)
        bent = bent_laws(found, law, draws, stream(seed, "waves"))
        plain, errors = _predict(bent, unseen.draft, unseen.target)
    members = {
        "draft_params": Variable(unseen.draft_sizes, unseen.draft_run, unseen.draft_model),
        "target_params": Variable(unseen.target_sizes, unseen.target_run, unseen.target_model),
    }
    count_of, random = len(unseen.alpha), stream(seed, "scatter")
    full = np.asarray(errors) + scatter(found, members, count_of, random)
    none = [0.0] * DRAWS
    of_models = ErrorInVariable(none, [], [], none, [MODEL_SCATTER] * DRAWS)
    exact = found.__class__(
        found.unit, dict.fromkeys(members, of_models), none, [PAIR_SCATTER] * DRAWS, DRAWS
    )
    alone = np.asarray(plain) + scatter(exact, members, count_of, random)

    def count(values: Float[np.ndarray, "draws n"]) -> tuple[float, float]:
        low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        inside = (low <= unseen.alpha) & (unseen.alpha <= high)
        return float(inside.mean()), float(np.median(high - low))

    (inside, width), (inside_alone, width_alone) = count(full), count(alone)
    return Outcome(inside, inside_alone, width, width_alone)


@jax.jit
def _predict(law, draft, target):
    return jax.vmap(lambda each: (each.law(draft, target), each(draft, target)))(law)


def main() -> None:
    """Prints a line for each truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=100, help="tables of each truth")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    results = {}
    print(f"{arguments.tables} tables of each truth; 90% intervals of held-out pairs")
    print("truth              covered          coefficients alone   width   alone   median ratio")
    for name, truth in TRUTHS.items():
        found = [judge(simulate(truth, seed), seed) for seed in range(arguments.tables)]
        rows = np.asarray(found)
        mean, error = rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
        ratio = float(np.median(rows[:, 2] / rows[:, 3]))
        print(
            f"{name:17s}  {mean[0]:.3f} ± {error[0]:.3f}    {mean[1]:.3f} ± {error[1]:.3f}        "
            f"{np.median(rows[:, 2]):.4f}  {np.median(rows[:, 3]):.4f}  {ratio:.2f}",
            flush=True,
        )
        results[name] = {
            "coverage": mean[0],
            "standard_error": error[0],
            "coverage_alone": mean[1],
            "standard_error_alone": error[1],
            "width_ratio": ratio,
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
