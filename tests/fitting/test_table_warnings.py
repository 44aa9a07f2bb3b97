"""Tables that mean something else are doubted, and clean ones are not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.fitting.acceptance import PairTable
from sdsl_jax.fitting.forms import LOSS_FORMS, loss_data
from sdsl_jax.fitting.law_fit import hold_coefficient
from sdsl_jax.fitting.loss import LossTable
from sdsl_jax.fitting.solver import fit
from sdsl_jax.fitting.table_warnings import (
    loss_table_warnings,
    pair_table_warnings,
    residual_warnings,
)
from sdsl_jax.fitting.tables import read_loss_table
from sdsl_jax.theory import ModelPoint

LADDER = Path(__file__).parents[2] / "checkpoints" / "ladder" / "records" / "models.csv"


def loss(n, d):
    return 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28


def grid(random):
    sizes, tokens = np.meshgrid(np.geomspace(4e7, 1e10, 8), np.geomspace(1e9, 3e11, 6))
    return sizes.ravel(), tokens.ravel()


def isoflops(random):
    flops, share = (
        x.ravel() for x in np.meshgrid(np.geomspace(1e18, 1e21, 5), np.geomspace(0.2, 5, 7))
    )
    sizes = np.sqrt(flops / 120) * share
    return sizes, flops / 6 / sizes


def diagonal(random):
    sizes = np.geomspace(4e7, 1e10, 20)
    return sizes, 20 * sizes * np.exp(random.normal(0, 0.5, 20))


def table(design=grid, noise=0.005, seed=0):
    random = np.random.default_rng(seed)
    n, d = design(random)
    measured = loss(n, d) * np.exp(noise * random.normal(size=len(n)))
    return LossTable(n, d, measured, np.unique(n, return_inverse=True)[1])


def doubts(made: LossTable):
    return loss_table_warnings(made, np.arange(2, 2 + len(made.loss)), True)


@pytest.mark.parametrize("design", [grid, isoflops, diagonal])
@pytest.mark.parametrize("noise", [0.002, 0.02])
def test_clean_tables_are_not_doubted(design, noise):
    """None of 100 tables of each design; the test of slopes alone may alarm in one of 1,000."""
    assert [doubts(table(design, noise, seed)) for seed in range(100)] == [[]] * 100


@pytest.mark.release
@pytest.mark.parametrize("design", [grid, isoflops, diagonal])
def test_residuals_of_clean_tables_are_not_doubted(design):
    """At most 1 of 30 fits with noise of 1.5%, the most that a ladder of ours shows."""
    alarms, form = 0, LOSS_FORMS["chinchilla"]
    for seed in range(30):
        made = table(design, 0.015, seed)
        with jax.enable_x64(True):
            data = loss_data(made.params, made.tokens, made.loss)
            begin = jnp.asarray(form.starts(data, 16, np.random.default_rng(0)))
            best = fit(
                form.residuals, begin, data, np.ones(len(made.loss)), 1e-3, hold_coefficient(form)
            )
        alarms += bool(
            residual_warnings(
                np.asarray(best.residuals), 5, "log of the loss", np.arange(len(made.loss))
            )
        )
    assert alarms <= 1


def test_the_ladder_is_not_doubted():
    read = read_loss_table(LADDER, "params_nonembedding", "train_tokens", "loss_nats", "", 4.0)
    assert read.notes == []
    assert loss_table_warnings(read.table, read.lines, True) == []


def changed(**columns):
    return table()._replace(**{k: np.asarray(v) for k, v in columns.items()})


PLAIN = table()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (changed(loss=np.exp(PLAIN.loss)), "of 48 losses exceed 12 nats per token"),
        (changed(loss=8 + 0.3 * PLAIN.loss), "have a median of 8.8"),
        (changed(tokens=PLAIN.tokens / 1e9), "tokens are fewer than parameters in 48 of 48 rows"),
        (changed(params=PLAIN.tokens, tokens=PLAIN.params), "tokens are fewer than parameters"),
        (
            changed(params=PLAIN.params / 4e4, tokens=PLAIN.tokens),
            "tokens per parameter, beyond any published one",
        ),
        (
            changed(params=PLAIN.params / 1e9, tokens=PLAIN.tokens / 1e9),
            "48 of 48 rows have a size below 1,000",
        ),
        (
            changed(params=PLAIN.params / 1e6, tokens=PLAIN.tokens / 1e6),
            "the smallest is 40): are sizes in millions",
        ),
        (changed(loss=1.8 * PLAIN.loss), "times (in the median) what models of these sizes"),
        (changed(loss=6 - PLAIN.loss), "the loss rises with parameters"),
    ],
)
def test_what_a_table_probably_means(made, words):
    assert any(words in warning for warning in doubts(made))


def test_repeated_rows_are_named_by_their_lines():
    twice = [0, *range(48), 47]
    again = LossTable(*(x[twice] for x in PLAIN))
    assert doubts(again) == [
        "4 of 50 rows are equal to another in parameters and tokens and loss, and each counts: lines 2, 3, 50 and 51"
    ]
    differing = again._replace(loss=again.loss + 0.1 * (np.arange(50) == 0))
    assert (
        "2 of 50 rows are equal to another in parameters and tokens and differ in loss, by up to 0.1 "
        in doubts(differing)[1]
    )
    # Two seeds of one size are two runs.
    assert doubts(differing._replace(rungs=np.arange(50))) == []


def test_sizes_that_are_nearly_equal():
    near = PLAIN._replace(params=PLAIN.params * np.where(np.arange(48) == 5, 1.0002, 1))
    (warning,) = doubts(near)
    assert warning.startswith(
        "1 sizes differ by less than 0.1% from another and count as training runs of their own, as"
    )
    assert loss_table_warnings(near, np.arange(48), runs_are_sizes=False) == []


def test_far_rows_and_large_residuals():
    random, lines = np.random.default_rng(0), np.arange(2, 42)
    residuals = 0.005 * random.normal(size=40)
    assert residual_warnings(residuals, 5, "log of the loss", lines) == []
    far = residuals + np.where(np.arange(40) % 20 == 3, 0.5, 0)
    (warning,) = residual_warnings(far, 5, "log of the loss", lines)
    assert warning.startswith("2 of 40 rows lie far from the law, by up to 65%")
    assert warning.endswith("lines 5 and 25")
    (warning,) = residual_warnings(20 * residuals, 5, "log of the loss", lines)
    assert "the typical residual is large" in warning
    assert residual_warnings(far[:8], 5, "log of the loss", lines[:8]) == []


def pairs(n, draft_loss, m, target_loss, alpha):
    size = len(alpha)
    labels = np.arange(size)
    draft = ModelPoint(np.asarray(n, float), np.asarray(draft_loss), np.full(size, np.nan))
    return PairTable(
        draft,
        ModelPoint(np.asarray(m, float), np.asarray(target_loss)),
        np.asarray(alpha),
        *[labels] * 4,
    )


def test_tables_of_pairs():
    n, m = np.geomspace(1e7, 1e9, 12), np.full(12, 7e10)
    alpha, lines = np.linspace(0.5, 0.8, 12), np.arange(2, 14)
    draft, target = np.linspace(3.5, 2.5, 12), np.full(12, 2.0)
    assert pair_table_warnings(pairs(n, draft, m, target, alpha), lines) == []
    swapped = pair_table_warnings(pairs(m, target, n, draft, alpha), lines)
    assert [
        "drafts are larger than their targets in 12 of 12 rows" in swapped[0],
        "lower loss" in swapped[1],
    ] == [
        True,
        True,
    ]
    assert (
        "perplexities?" in pair_table_warnings(pairs(n, np.exp(draft), m, target, alpha), lines)[0]
    )
    assert (
        "perplexities or bits?"
        in pair_table_warnings(pairs(n, draft, m, 2 * target, alpha), lines)[0]
    )
    (rejected,) = pair_table_warnings(pairs(n, draft, m, target, 1 - alpha), lines)
    assert "does it count rejected drafts?" in rejected
    made = pairs(n, draft, m, target, alpha)
    in_billions = made._replace(draft=made.draft._replace(tokens=np.full(12, 20.0)))
    assert "tokens are fewer than parameters" in pair_table_warnings(in_billions, lines)[0]


def test_acceptance_that_does_not_depend_on_the_draft_is_not_taken_for_rejection():
    """At 3.3 standard errors about one table in 200 of 12 drafts is (Student's t of 10 degrees of freedom)."""
    n, m, lines = np.geomspace(1e7, 1e9, 12), np.full(12, 7e10), np.arange(12)
    random = np.random.default_rng(0)
    alarms = sum(
        bool(
            pair_table_warnings(
                pairs(n, np.linspace(3.5, 2.5, 12), m, np.full(12, 2.0), alpha), lines
            )
        )
        for alpha in random.uniform(0.5, 0.8, (400, 12))
    )
    assert alarms <= 6
