"""Intervals over draws of the laws: which draws count, and in what their sizes are stated."""

import numpy as np
import pytest

from sdsl_jax.codesign.designs import _interval
from sdsl_jax.codesign.program import Solved
from sdsl_jax.codesign.serving_problem import build
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.theory.serving import outcome


@pytest.fixture
def problem(x64):
    variables = {"draft_params": "free", "aspect_ratio": "free"}
    return build(load_problem(None, {"target": {"params": 7e9}, "variables": variables}))


def draw(problem, feasible=True, **given):
    design = problem.inputs.fixed._replace(aspect_ratio=32.0)
    found = outcome(problem.inputs.serving, design)
    found = found._replace(**{k: np.asarray(v) for k, v in given.items()})
    none = np.zeros(2, bool)
    return Solved(
        design,
        found,
        np.asarray(1.0),
        np.ones(0),
        *map(np.asarray, (0.0, feasible, 0.0, 1.0)),
        none,
        none,
        np.asarray(0),
        none,
    )


def test_draws_without_an_optimum_are_left_out_and_counted(problem):
    draws = [
        draw(problem, speedup=2.0, acceptance=0.6),
        draw(problem, speedup=0.9, acceptance=0.6),
        draw(problem, speedup=9.0, acceptance=1.2),
        draw(problem, feasible=False, speedup=7.0),
    ]
    found = _interval(problem, draws, "a bootstrap")
    assert found.values["speedup"] == pytest.approx([0.955, 1.945])
    assert (found.share_that_speculate, found.share_left_out) == (0.25, 0.5)
    assert "the device taken as known" in found.basis
    # Sizes are those of the draw's own aspect ratio.
    size = problem.sizes.stated(draws[0].design, "draft_params")
    assert found.values["draft_params"] == pytest.approx([size, size])
    assert size != pytest.approx(
        problem.sizes.stated(problem.inputs.fixed, "draft_params"), rel=1e-3
    )


def test_where_no_draw_has_an_optimum_that_is_said(problem):
    found = _interval(problem, [draw(problem, feasible=False)] * 3, "a bootstrap")
    assert found.values is None
    assert found.share_left_out == 1
    assert "none of 3 draws" in found.basis
    assert _interval(problem, [], "").values is None
