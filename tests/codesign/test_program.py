import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.codesign import (
    Program,
    ProgramInputs,
    best_speculation,
    round_design,
    sensitivities,
    solve,
    spread_starts,
    sweep,
)
from sdsl_jax.codesign.break_even import break_even
from sdsl_jax.codesign.program import box, design_at, objective_and_constraints
from sdsl_jax.codesign.sensitivity import of_stated_sizes
from sdsl_jax.errors import SdslError
from sdsl_jax.hardware import load_hardware
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, AffinePlane, LogitGap, Scenario, ShapeRule
from sdsl_jax.theory.hardware import Hardware
from sdsl_jax.theory.serving import Design, Serving, shapes

GAP = LogitGap(2.0, 3.5)
# No overheads, and arithmetic that costs nothing: a pass takes as long as its weights take to read.
IDEAL = Hardware(0.0, 0.0, 0.0, 1e12, float("inf"))
H100 = Hardware(40e-6, 8e-6, 1e-6, 3e12, 8e14, 4.0, 100e-6, 450e9, 3e-6, 80e9, 3.0)

SPEED = Program(steps=150)
# Speed with the batch free, under limits on latency and memory: the program that most tests share, as
# compiling it takes seconds.
BATCHED = Program(
    ("draft_params", "lookahead", "batch"),
    constraints=("memory_bytes", "latency_seconds"),
    steps=80,
    rounds=8,
)


def ideal(law=GAP, target=70e9) -> ProgramInputs:
    family = ShapeRule(128.0, 0.0, 0.0)
    serving = Serving(IDEAL, BESIROGLU, law, family, family, 15e12, 0.0, 1.0, 1.0)
    fixed = Design(1e9, 4.0, 2e12, 128.0, 1.0, target)
    return ProgramInputs(
        serving,
        fixed,
        fixed._replace(draft_params=1e6, lookahead=1.0),
        fixed._replace(draft_params=target, lookahead=64.0),
    )


def on_h100(*limits, **fixed) -> ProgramInputs:
    family = ShapeRule(128.0, 128e3, 0.0, 0.125, 2.0)
    serving = Serving(
        H100, BESIROGLU, GAP, family, family, 15e12, 4096.0, 2048.0, 512.0, devices=4.0
    )
    design = Design(1e9, 4.0, 2e12, 128.0, 8.0, 70e9)._replace(**fixed)
    lower = design._replace(draft_params=1e7, lookahead=1.0, batch=1.0)
    upper = design._replace(draft_params=20e9, lookahead=32.0, batch=512.0)
    return ProgramInputs(serving, design, lower, upper, limits=np.array(limits))


def solved(program, inputs):
    return solve(program, inputs, spread_starts(8, len(program.variables)), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("law", [GAP, PAPER_PLANE])
def test_on_an_ideal_device_the_optimum_is_that_of_the_paper(x64, law):
    inputs = ideal(law)
    found, closed = solved(SPEED, inputs), Scenario(70e9, 2e12, 15e12, BESIROGLU, law).optimum()
    assert float(found.design.draft_params) == pytest.approx(float(closed.params), rel=1e-6)
    assert float(found.design.lookahead) == pytest.approx(float(closed.lookahead), rel=1e-6)
    assert float(found.outcome.speedup) == pytest.approx(float(closed.speedup), rel=1e-9)
    assert float(found.kkt_residual) < 1e-9
    drafting = float(found.outcome.round.draft / found.design.lookahead)
    ratio = float(found.design.draft_params / found.design.target_params)
    assert drafting / float(found.outcome.step_seconds) == pytest.approx(ratio, rel=1e-12)


def brute_force(program, inputs, points):
    """Design and objective of the best feasible of `points`^V designs, evenly spaced in the coordinates."""
    within, functions = box(program, inputs), objective_and_constraints(program, inputs)
    shape = (points,) * len(program.variables)

    def place(index):
        share = jnp.stack(jnp.unravel_index(index, shape)) / (points - 1)
        return within.low + share * (within.high - within.low)

    def judge(index):
        f, g = functions(place(index))
        return jnp.where(g.max(initial=0.0) <= 1e-6, f, jnp.inf)

    values = jax.jit(lambda: jax.lax.map(judge, jnp.arange(np.prod(shape)), batch_size=1 << 14))()
    best = jnp.argmin(values)
    return design_at(program, inputs, place(best)), float(values[best])


def check_by_grid(program, inputs, points):
    """No point of the grid is better, and the best of them is near."""
    found, (grid, objective) = solved(program, inputs), brute_force(program, inputs, points)
    assert bool(found.feasible)
    assert float(found.kkt_residual) < 1e-6
    assert float(found.objective) <= objective
    assert float(found.objective) == pytest.approx(objective, abs=0.05)
    return found, grid


@pytest.mark.slow
def test_on_a_device_with_overheads_no_design_of_a_grid_is_better(x64):
    found, grid = check_by_grid(SPEED, on_h100(), 100)
    assert float(found.design.draft_params) == pytest.approx(float(grid.draft_params), rel=0.2)
    assert float(found.starts_agreeing) == 1.0
    assert found.path.shape == (150, 2)


@pytest.mark.slow
def test_limits_hold_and_a_multiplier_is_what_a_looser_limit_gains(x64):
    found, _ = check_by_grid(BATCHED, on_h100(60e9, 7.0), 60)
    assert float(found.outcome.latency_seconds) == pytest.approx(7.0, rel=1e-9)
    assert float(found.multipliers[1]) > 0.1
    assert float(found.multipliers[0]) == 0.0
    looser, tighter = (solved(BATCHED, on_h100(60e9, 7.0 * np.exp(h))) for h in (1e-4, -1e-4))
    gain = float(tighter.objective - looser.objective) / 2e-4
    assert float(found.multipliers[1]) == pytest.approx(gain, rel=1e-5)
    memory, _ = check_by_grid(BATCHED, on_h100(60e9, 1e3), 30)
    assert float(memory.outcome.memory_bytes) == pytest.approx(60e9, rel=1e-9)
    assert float(memory.multipliers[0]) > 0.1


@pytest.mark.slow
def test_what_cannot_be_done_is_said_to_be_infeasible(x64):
    found = solved(BATCHED, on_h100(60e9, 0.1))
    assert not bool(found.feasible)
    assert float(found.violation) > 1
    assert float(found.starts_agreeing) == 0.0
    # There is no optimum to converge to: infeasible, and no alarm about convergence besides.
    assert int(found.status) == SolverStatus.ON_BOUND
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found._replace(multipliers=0)))
    # Of all designs the one that violates least: one row at a time.
    assert float(found.design.batch) == 1.0
    assert bool(found.at_lower[2])


def test_bounds_are_reached_exactly(x64):
    inputs = on_h100(60e9, 1e3)
    found = solved(BATCHED, inputs._replace(lower=inputs.lower._replace(draft_params=5e9)))
    assert float(found.design.draft_params) == 5e9
    assert found.at_lower.tolist() == [True, False, False]


def test_gradients_are_finite_where_the_law_leaves_probabilities(x64):
    slope = jax.jit(
        lambda law, x: jax.grad(lambda x: objective_and_constraints(SPEED, ideal(law))(x)[0])(x)
    )
    for constant in (0.6, -5.0, 1.3):
        for size in (1e6, 3e8, 7e10):
            law = AffinePlane(-0.0067, 0.01297, constant)
            assert np.isfinite(slope(law, jnp.log(jnp.array([size, 5.0])))).all()


def leaf(tree, path):
    return float(functools.reduce(getattr, path, tree))


def scaled(inputs, path, factor):
    """The same with one number multiplied."""
    if not path:
        return inputs * factor
    changed = {path[0]: scaled(getattr(inputs, path[0]), path[1:], factor)}
    return (
        inputs._replace(**changed)
        if hasattr(inputs, "_replace")
        else dataclasses.replace(inputs, **changed)
    )


@pytest.mark.slow
def test_sensitivities_are_those_of_problems_solved_anew(x64):
    inputs = on_h100(60e9, 7.0)
    found = solved(BATCHED, inputs)
    moved = sensitivities(BATCHED, inputs, found)
    paths = (
        ("serving", "hardware", "bytes_per_second"),
        ("serving", "loss_law", "a"),
        ("serving", "acceptance_law", "slope"),
        ("serving", "context"),
        ("fixed", "target_params"),
    )
    h = 1e-4
    for path in paths:
        up, down = (solved(BATCHED, scaled(inputs, path, np.exp(s))) for s in (h, -h))
        whole = path[0] == "serving"
        gain = leaf(moved.objective if whole else moved.objective_fixed, path[1:])
        assert gain == pytest.approx(
            float(up.objective - down.objective) / (2 * h), rel=1e-4, abs=1e-6
        )
        for name in BATCHED.variables:
            slope = leaf((moved.variables if whole else moved.variables_fixed)[name], path[1:])
            change = np.log(float(getattr(up.design, name)) / float(getattr(down.design, name))) / (
                2 * h
            )
            assert slope == pytest.approx(change, rel=1e-4, abs=1e-6), name
    bounded = inputs._replace(lower=inputs.lower._replace(draft_params=3e9))
    held = sensitivities(BATCHED, bounded, solved(BATCHED, bounded))
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(held.variables["draft_params"]))
    assert float(held.variables["batch"].context) != 0
    # Numbers that are 0 or infinite have no logarithm.
    assert float(moved.objective.aspect_penalty) == 0.0
    assert jax.tree.structure(moved.objective) == jax.tree.structure(inputs.serving)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))


@pytest.mark.slow
def test_sensitivities_of_total_sizes_are_those_of_problems_solved_anew(x64):
    inputs, h = on_h100(), 1e-4
    found = solved(SPEED, inputs)
    moved = of_stated_sizes(SPEED, inputs, found, sensitivities(SPEED, inputs, found))

    def total(inputs):
        draft, _ = shapes(inputs.serving, solved(SPEED, inputs).design)
        return float(jnp.log(draft.total_params))

    for path in (("draft_family", "vocab_size"), ("loss_law", "a")):
        up, down = (total(scaled(inputs, ("serving", *path), np.exp(s))) for s in (h, -h))
        assert leaf(moved.variables["draft_params"], path) == pytest.approx(
            (up - down) / (2 * h), rel=1e-4
        ), path
    up, down = (total(scaled(inputs, ("fixed", "aspect_ratio"), np.exp(s))) for s in (h, -h))
    slope = leaf(moved.variables_fixed["draft_params"], ("aspect_ratio",))
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-4)


@pytest.mark.slow
def test_a_sweep_gives_the_optima_of_its_problems(x64):
    limits = np.array([0.1, 6.5, 7.0, 8.0, 1e3])
    swept = sweep(BATCHED, [on_h100(60e9, limit) for limit in limits], spread_starts(8, 3), 0.1)
    assert swept.feasible.tolist() == [False] + [True] * 4
    # The looser the limit, the better the objective.
    assert (np.diff(swept.objective[1:]) <= 1e-9).all()
    np.testing.assert_allclose(swept.outcome.latency_seconds[1:4], limits[1:4], rtol=1e-9)
    for i in (2, 4):
        one = solved(BATCHED, on_h100(60e9, limits[i]))
        assert float(swept.objective[i]) == pytest.approx(float(one.objective), abs=1e-10)
        assert float(swept.design.batch[i]) == pytest.approx(float(one.design.batch), rel=1e-7)


@pytest.mark.slow
def test_rounding_keeps_the_limits_and_says_what_it_costs(x64):
    inputs = on_h100(60e9, 7.0)
    found = solved(BATCHED, inputs)
    rounded = round_design(BATCHED, inputs, found)
    design = rounded.solved.design
    assert float(design.lookahead) == round(float(design.lookahead))
    assert float(design.batch) == round(float(design.batch))
    assert bool(rounded.solved.feasible)
    assert 0 < float(rounded.loss) < 0.02
    sizes = (2e8, 5e8, 1.5e9)
    given = round_design(BATCHED, inputs, found, {"draft_params": sizes})
    assert float(given.solved.design.draft_params) in sizes
    assert float(given.loss) >= float(rounded.loss)
    with pytest.raises(SdslError, match="no allowed draft_params"):
        round_design(BATCHED, inputs, found, {"draft_params": (1e12,)})


def test_break_even_agrees_with_every_batch_tried(x64):
    inputs = on_h100()
    serving = inputs.serving._replace(
        context=128.0, prompt_tokens=64.0, acceptance_law=LogitGap(0.5, 3.5)
    )
    found = break_even(serving, inputs.fixed, 1e7, 1024)
    speedups = jax.vmap(
        lambda b: best_speculation(serving, inputs.fixed._replace(batch=b), 1e7).speedup
    )
    tried = np.asarray(speedups(jnp.arange(1.0, 1025.0)))
    assert float(found.largest_batch) == np.flatnonzero(tried > 1).max() + 1
    assert float(found.smallest_batch) == np.flatnonzero(tried > 1).min() + 1
    assert bool(found.gapless)
    assert not bool(found.every_batch)
    at = [
        best_speculation(
            serving, inputs.fixed._replace(target_params=float(found.target_params) * f), 1e7
        ).speedup
        for f in (0.999, 1.001)
    ]
    assert at[0] <= 1 < at[1]


def test_where_speculation_never_or_always_pays(x64):
    inputs = on_h100()
    never = break_even(
        inputs.serving._replace(acceptance_law=LogitGap(-9.0, 3.5)), inputs.fixed, 1e7, 1024
    )
    assert float(never.smallest_batch) == np.inf
    assert float(never.largest_batch) == 0.0
    assert not bool(never.every_batch)
    assert float(never.target_params) == np.inf
    always = break_even(inputs.serving, inputs.fixed, 1e7, 4)
    assert float(always.smallest_batch) == 1.0
    assert float(always.largest_batch) == np.inf
    assert bool(always.every_batch)
    assert float(always.at_design.speedup) > 2


def test_speculation_may_pay_from_a_batch_on(x64):
    """With overheads that a batch shares S rises with it: at 1 a small target is better left alone."""
    draft, target = (
        ShapeRule(64.0, 32e3, 4096.0, 0.25, 1.0),
        ShapeRule(100.0, 32e3, 4096.0, 0.125, 2.0),
    )
    device, law = load_hardware("h100").hardware, LogitGap(0.2, 1.1)
    serving = Serving(device, BESIROGLU, law, draft, target, 15e12, 4096.0, 3968.0, 256.0)
    design = Design(1e6, 4.0, 1e12, 64.0, 1.0, 120e6)

    def speedup(batch):
        return float(best_speculation(serving, design._replace(batch=batch), 1e6).speedup)

    assert [speedup(b) for b in (1.0, 16.0, 256.0, 4096.0)] == pytest.approx(
        [0.970, 0.986, 1.031, 1.045], abs=1e-3
    )
    found = break_even(serving, design, 1e6, 4096)
    assert 16 < float(found.smallest_batch) < 256
    assert speedup(float(found.smallest_batch) - 1) <= 1 < speedup(float(found.smallest_batch))
    assert float(found.largest_batch) == np.inf
    assert bool(found.gapless)
    assert not bool(found.every_batch)


@pytest.mark.slow
def test_five_variables_and_money(x64):
    program = Program(
        (*BATCHED.variables, "draft_tokens", "aspect_ratio"),
        ("total_cost",),
        ("latency_seconds",),
        steps=200,
        rounds=10,
    )
    inputs = on_h100(6.0)
    inputs = inputs._replace(
        serving=inputs.serving._replace(aspect_penalty=0.01),
        lower=inputs.lower._replace(draft_tokens=1e9, aspect_ratio=16.0),
        upper=inputs.upper._replace(draft_tokens=2e13, aspect_ratio=512.0),
    )
    found = solved(program, inputs)
    assert float(found.kkt_residual) < 1e-9
    assert not (found.at_lower | found.at_upper).any()
    assert float(found.starts_agreeing) > 0.5
    assert float(found.objective) <= brute_force(program, inputs, 10)[1]
    costlier = inputs._replace(serving=inputs.serving._replace(volume_tokens=1e13))
    # What is used more is worth training longer.
    assert float(solved(program, costlier).design.draft_tokens) > float(found.design.draft_tokens)


@pytest.mark.release
@pytest.mark.parametrize("optimizer", ["nadam", "momentum"])
def test_every_optimizer_finds_it(x64, optimizer):
    inputs = on_h100(60e9, 7.0)
    other = solve(
        dataclasses.replace(BATCHED, optimizer=optimizer), inputs, spread_starts(8, 3), 0.05
    )
    assert float(other.objective) == pytest.approx(
        float(solved(BATCHED, inputs).objective), abs=1e-9
    )


@pytest.mark.release
def test_in_single_precision():
    found = solved(BATCHED, on_h100(60e9, 7.0))
    assert bool(found.feasible)
    assert float(found.outcome.latency_seconds) == pytest.approx(7.0, rel=1e-4)
    assert float(found.kkt_residual) < 1e-4


def test_what_does_not_fit_is_refused():
    with pytest.raises(SdslError, match="unknown metric 'speed'"):
        Program(objective=("speed",))
    with pytest.raises(SdslError, match="0 limits; there must be one for each of: latency_seconds"):
        solved(Program(constraints=("latency_seconds",)), ideal())
    with pytest.raises(SdslError, match=r"lookahead is bounded by 0\.5 and 64"):
        solved(SPEED, ideal()._replace(lower=ideal().lower._replace(lookahead=0.5)))
    with pytest.raises(SdslError, match="starts have 3 columns"):
        solve(SPEED, ideal(), spread_starts(4, 3), 0.1)
    with pytest.raises(SdslError, match="the price of a device is 0"):
        solved(Program(objective=("total_cost",)), ideal())
