"""The search on a grid against the gradient method, and against brute force."""

import dataclasses

import numpy as np
import pytest

import sdsl_jax as sdsl
from sdsl_jax.codesign.grid import moves, search, speedup_interval, with_serving
from sdsl_jax.codesign.program import evaluate
from sdsl_jax.codesign.serving_problem import build
from sdsl_jax.fitting.law_files import load_law
from sdsl_jax.records import write_json
from sdsl_jax.theory.serving import outcome

PROBLEMS = [
    {"target_params": "70B", "devices": 4, "batch": 8, "context": 4096},
    {"target_params": "7B", "hardware": "v5e", "devices": 4, "batch": 32, "prefill": "elsewhere"},
    {"target_params": "70B", "devices": 4, "acceptance": 0.7, "candidates": "1B"},
    {"target_params": "13B", "hardware": "a100", "overlapped": True, "context": 16384},
]


def built(**flags):
    return sdsl.Problem(**flags).ready


@pytest.mark.parametrize("flags", PROBLEMS)
def test_no_design_of_a_fine_grid_is_better(flags):
    problem = built(**flags)
    best = search(problem).solved
    low, high = float(problem.inputs.lower.draft_params), float(problem.inputs.upper.draft_params)
    if "draft_params" not in problem.program.variables:
        low = high = float(problem.inputs.fixed.draft_params)
    design = problem.inputs.fixed._replace(
        draft_params=np.geomspace(low, high, 2000)[:, None],
        lookahead=np.arange(1.0, 65.0)[None, :],
    )
    table = evaluate(problem.program, problem.inputs, design)
    least = np.where(table.allowed, table.objective, np.inf).min()
    assert bool(best.feasible)
    # The objective is a logarithm: S agrees to 5 digits.
    assert float(best.objective) <= least + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("flags", PROBLEMS)
def test_the_gradient_method_finds_the_same_design(flags):
    problem = sdsl.Problem(**flags)
    best, answer = search(problem.ready).solved, problem.solve()
    assert int(best.design.lookahead) == answer.rounded.lookahead
    np.testing.assert_allclose(float(best.outcome.speedup), answer.rounded.speedup, rtol=1e-5)
    # S is flat in N: the sizes agree less closely than the speed-ups.
    size = problem.ready.sizes.of(float(best.design.draft_params), "draft").total
    np.testing.assert_allclose(size, answer.rounded.draft_params.total, rtol=0.02)


def test_moves_are_optima_of_the_changed_problems():
    problem = built(**PROBLEMS[0])
    hardware = problem.inputs.serving.hardware
    changed = [
        ("batch", built(**(PROBLEMS[0] | {"batch": 32}))),
        ("target", built(**(PROBLEMS[0] | {"target_params": "14B"}))),
        ("small", built(**(PROBLEMS[0] | {"devices": 1}))),
        (
            "bandwidth",
            with_serving(
                problem,
                hardware=hardware._replace(bytes_per_second=2 * hardware.bytes_per_second),
            ),
        ),
    ]
    for row, (change, other) in zip(moves(problem, changed), changed):
        best = search(other).solved
        assert row.change == change
        assert row.feasible == bool(best.feasible)
        assert row.lookahead == int(best.design.lookahead)
        np.testing.assert_allclose(row.speedup, float(best.outcome.speedup), rtol=1e-4)


def test_intervals_are_quantiles_over_the_draws(tmp_path):
    """Against one evaluation for each draw, size and lookahead."""
    rng = np.random.default_rng(5)
    base = {"E": 1.8, "A": 480.0, "B": 2085.0, "a": 0.35, "b": 0.366}
    draws = {k: (v * (1 + 0.02 * rng.normal(size=12))).tolist() for k, v in base.items()}
    loss, acceptance = tmp_path / "loss.json", tmp_path / "acceptance.json"
    about = {"params_count": "total", "text": "a text"}
    write_json(loss, {"law": "chinchilla", "coefficients": base, "draws": draws, **about})
    gap = {"level": 1.0, "slope": 1.1}
    draws = {k: (v * (1 + 0.05 * rng.normal(size=12))).tolist() for k, v in gap.items()}
    write_json(acceptance, {"law": "logit_gap", "coefficients": gap, "draws": draws, **about})
    flags = PROBLEMS[0] | {"loss_law": loss, "acceptance_law": acceptance}
    problem = built(**flags)
    sizes = np.asarray([5e7, 1e9, 2e10])
    low, high = speedup_interval(problem, sizes, 4.0)
    values = np.empty((12, 3))
    laws = load_law(loss, "loss").draws, load_law(acceptance, "acceptance").draws
    for i in range(12):
        one = [
            dataclasses.replace(d, **{n: getattr(d, n)[i] for n in names})
            for d, names in zip(laws, (base, gap))
        ]
        serving = problem.inputs.serving._replace(loss_law=one[0], acceptance_law=one[1])
        for j, size in enumerate(sizes):
            designs = [
                problem.inputs.fixed._replace(draft_params=size, lookahead=float(g))
                for g in range(1, 13)
            ]
            values[i, j] = max(float(outcome(serving, d).speedup) for d in designs)
    np.testing.assert_allclose(low, np.quantile(values, 0.05, axis=0), rtol=1e-6)
    np.testing.assert_allclose(high, np.quantile(values, 0.95, axis=0), rtol=1e-6)
    assert speedup_interval(built(**PROBLEMS[0]), sizes, 4.0) is None


def test_a_problem_without_room_says_the_least_bad():
    problem = build(sdsl.Problem(target_params="70B", devices=1).config())
    best = search(problem).solved
    assert problem.memory_errors
    assert not bool(best.feasible)
