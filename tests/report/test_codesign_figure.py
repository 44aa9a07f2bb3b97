"""The picture of a co-design problem, and the landscape that it shows."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from matplotlib.text import Text

from sdsl_jax.codesign.designs import landscape
from sdsl_jax.codesign.program import at_best_lookahead, whole_lookaheads
from sdsl_jax.codesign.serving_problem import Size, build
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.errors import SdslError
from sdsl_jax.report import codesign_figure
from sdsl_jax.report.codesign_figure import draw_landscape
from sdsl_jax.theory.serving import outcome


@pytest.fixture(scope="module")
def problem():
    """Half of the drafts take too long."""
    sections = {
        "target": {"params": 70e9},
        "hardware": {"devices": 4},
        "draft": {"devices": 1},
        "workload": {"batch": 8, "prefill": "elsewhere"},
        "constraints": {"latency_seconds": 2.2},
        "variables": {"draft_params": [1e8, 1e10], "lookahead": [1, 12]},
    }
    return build(load_problem(None, sections))


@pytest.fixture(scope="module")
def surface(problem):
    return landscape(problem, problem.inputs.fixed)


def test_the_landscape_is_what_the_theory_says(problem, surface, x64):
    row, column = 20, 30
    at = problem.inputs.fixed._replace(
        draft_params=problem.sizes.non_embedding(surface.draft_params[column], "draft"),
        lookahead=surface.lookahead[row],
    )
    given = outcome(problem.inputs.serving, at)
    assert surface.speedup[row, column] == pytest.approx(float(given.speedup))
    assert surface.allowed[row, column] == bool(given.latency_seconds <= 2.2)
    assert 0.1 < surface.allowed.mean() < 0.9


def test_the_best_whole_lookahead_is_the_best_of_all(problem, x64):
    column = jax.tree.map(lambda x: np.asarray([[float(x)]]), problem.inputs.fixed)
    found = at_best_lookahead(problem.program, problem.inputs, column)
    every = [
        outcome(problem.inputs.serving, problem.inputs.fixed._replace(lookahead=g))
        for g in whole_lookaheads(problem.program, problem.inputs)
    ]
    allowed = [float(o.seconds_per_token) for o in every if o.latency_seconds <= 2.2] or [
        float(o.seconds_per_token) for o in every
    ]
    assert float(np.exp(found.objective[0])) == pytest.approx(min(allowed))


def answer(**more):
    values = {"speedup": 1.9, "lookahead": 4.2, "feasible": True, "candidates": []}
    values["design"] = SimpleNamespace(draft_params=Size(3e8, 2e8))
    return SimpleNamespace(**values | more)


def test_a_picture(surface, tmp_path):
    candidates = [
        SimpleNamespace(size=size, draft_params=Size(size, size), lookahead=4, speedup=1.5)
        for size in (2e8, 2.5e8, 1e15)
    ]
    draw_landscape(surface, answer(candidates=candidates), "a title", tmp_path / "seen.png")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"seen.{kind}").stat().st_size > 10_000
    again = tmp_path / "again.png"
    draw_landscape(surface, answer(feasible=False), "a title", again)
    assert again.exists()


def test_labels_of_candidates_hide_neither_each_other_nor_a_marker(surface, tmp_path, monkeypatch):
    drawn = []
    label = codesign_figure._label

    def labelled(drawing, axis, *rest):
        label(drawing, axis, *rest)
        drawn.append((drawing, axis))

    monkeypatch.setattr(codesign_figure, "_label", labelled)
    edge = surface.draft_params[-1]
    sizes = (2e8, 2.1e8, 2.5e8, 3e8, 3.3e8, edge)  # the best design is at 3e8
    candidates = [
        SimpleNamespace(size=size, draft_params=Size(size, size), lookahead=4, speedup=1.5)
        for size in sizes
    ]
    draw_landscape(surface, answer(candidates=candidates), "a title", tmp_path / "seen.png")
    ((drawing, axis),) = drawn
    drawing.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    points = axis.transData.transform([(3e8, 4.2), *((size, 4) for size in sizes)])
    assert len(boxes) == len(sizes)
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not [1 for box in boxes for point in points if box.contains(*point)]
    frame = axis.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in box.get_points())


def test_only_png(surface, tmp_path):
    with pytest.raises(SdslError, match=r"must end in \.png"):
        draw_landscape(surface, answer(), "a title", tmp_path / "seen.svg")
