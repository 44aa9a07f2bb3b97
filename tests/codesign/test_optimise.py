import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdsl_jax.codesign import spread_starts
from sdsl_jax.codesign.kkt import Box
from sdsl_jax.codesign.optimise import minimise
from sdsl_jax.codesign.stage import gradient_optimum
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.theory import (
    AffinePlane,
    ChinchillaLaw,
    DraftProblem,
    FlopCost,
    Hardware,
    HardwareCost,
    LogitGap,
    ModelPoint,
    Precision,
    ShapeRule,
    family_shape,
)

RULE = ShapeRule(32.0, 256.0, 64.0)
DEVICE = Hardware(3e-6, 1e-6, 1e-7, 1e10, 2e10, 4.0, 5e-6)
LOSS = ChinchillaLaw(E=0.9, A=5.0, B=40.0, a=0.15, b=0.35)
LAWS = {"logit_gap": LogitGap(1.7, 2.1), "affine_plane": AffinePlane(-0.06, 0.05, 0.9)}
COSTS = {
    "flops": FlopCost(RULE, 300e3),
    "measured": HardwareCost(
        DEVICE, RULE, family_shape(300e3, RULE), Precision(4.0, 4.0), 1.0, 129.0
    ),
}


def problem(law="logit_gap", cost="flops", **changes) -> DraftProblem:
    made = DraftProblem(
        LOSS, 2e6, ModelPoint(300e3, 1.6), LAWS[law], COSTS[cost], (1e3, 300e3)
    )._replace(**changes)
    return jax.tree.map(jnp.float64, made)


def ascend(made, max_lookahead=64.0, optimizer="adam", steps=500):
    """The end of the gradient method, and N and γ there."""
    starts = jnp.asarray(spread_starts(8))
    end = gradient_optimum(made, max_lookahead, starts, 0.1, optimizer=optimizer, steps=steps)
    return end, float(jnp.exp(end.x[0])), float(jnp.expm1(end.x[1]))


@pytest.mark.parametrize(
    ("law", "cost", "optimizer"),
    [
        ("affine_plane", "flops", "nadam"),
        pytest.param("logit_gap", "measured", "adam", marks=pytest.mark.slow),
        pytest.param("logit_gap", "flops", "adam", marks=pytest.mark.release),
        pytest.param("affine_plane", "measured", "adam", marks=pytest.mark.release),
    ],
)
def test_gradient_agrees_with_the_reference(x64, law, cost, optimizer):
    made = problem(law, cost)
    end, params, lookahead = ascend(made, optimizer=optimizer, steps=1500)
    reference = made.optimum()
    assert bool(reference.interior)
    assert params == pytest.approx(float(reference.params), rel=1e-6)
    assert lookahead == pytest.approx(float(reference.lookahead), rel=1e-6)
    assert float(end.kkt_residual) < 1e-9
    assert float(end.starts_agreeing) == 1.0
    assert int(end.status) == SolverStatus.CONVERGED


def test_closed_form_agrees_with_brute_force(x64):
    made = problem()
    closed = made.optimum()
    n, gamma = np.geomspace(1e3, 300e3, 1500), np.linspace(0, 30, 1501)
    surface = np.asarray(
        jax.jit(jax.vmap(lambda n: jax.vmap(lambda g: made.speedup(n, g))(gamma)))(n)
    )
    row, column = np.unravel_index(surface.argmax(), surface.shape)
    assert float(closed.speedup) >= surface.max()
    assert float(closed.params) == pytest.approx(n[row], rel=0.01)
    assert float(closed.lookahead) == pytest.approx(gamma[column], abs=0.05)


@pytest.mark.slow
def test_gradient_of_the_objective(x64):
    for law in LAWS:
        for cost in COSTS:
            check_grads(
                problem(law, cost).log_speedup,
                (jnp.array([9.0, 1.5]),),
                order=2,
                modes=("rev",),
                rtol=1e-4,
            )


def test_an_optimum_on_the_border_is_reached_exactly(x64):
    """With sizes from 50k up the best draft is the smallest one, and with γ ≤ 2 the best lookahead is 2."""
    made = problem(bounds=(50e3, 300e3))
    end, params, _ = ascend(made, 2.0)
    assert params == pytest.approx(50e3, rel=1e-12)
    assert end.at_lower.tolist() == [True, False]
    capped, _, lookahead = ascend(problem(bounds=(1e3, 300e3)), 2.0)
    assert lookahead == pytest.approx(2.0, rel=1e-12)
    assert float(capped.kkt_residual) < 1e-9
    assert int(end.status) == int(capped.status) == SolverStatus.ON_BOUND


def test_a_descent_that_is_cut_short_says_so(x64):
    """A bent valley (`bend` 100: Rosenbrock's) is too long for 20 steps and a few of Newton's method."""

    @jax.jit
    def status(bend):
        def valley(x):
            return bend * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + (x[1] - 1) ** 2, jnp.zeros(0)

        box, starts = Box(jnp.full(2, -3.0), jnp.full(2, 3.0)), jnp.array([[0.3, 0.9]])
        return minimise(valley, box, starts, 1e-3, optimizer="adam", steps=20).status

    assert int(status(1e6)) == SolverStatus.ITERATION_CAP
    assert int(status(0.0)) == SolverStatus.CONVERGED
    assert int(status(jnp.nan)) == SolverStatus.NON_FINITE


@pytest.mark.slow
def test_where_speculation_does_not_pay_the_gradient_finds_no_speedup(x64):
    made = problem(cost="measured")
    slow = made.cost._replace(hardware=made.cost.hardware._replace(round_seconds=jnp.float64(1e-3)))
    made = made._replace(cost=slow)
    end, _, lookahead = ascend(made, steps=800)
    assert float(jnp.exp(-end.objective)) < 1
    assert lookahead >= 1
    closed = made.optimum()
    assert float(closed.speedup) == 1.0
    assert not bool(closed.speculate)


def test_starts_cover_the_square():
    starts = spread_starts(64)
    assert starts.shape == (64, 2)
    assert all(len(np.unique((starts[:, i] * 8).astype(int))) == 8 for i in range(2))
