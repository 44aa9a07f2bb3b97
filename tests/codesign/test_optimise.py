import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdsl_jax.codesign import maximise, spread_starts
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
    found = maximise(
        made, 64.0, jnp.asarray(spread_starts(8)), 0.1, optimizer=optimizer, steps=1500
    )
    reference = made.optimum()
    assert bool(reference.interior)
    assert float(found.params) == pytest.approx(float(reference.params), rel=1e-3)
    assert float(found.lookahead) == pytest.approx(float(reference.lookahead), rel=1e-3)
    assert float(found.stationarity) < 1e-4
    assert float(found.starts_agreeing) == 1.0


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
    found = maximise(made, 2.0, jnp.asarray(spread_starts(8)), 0.1, optimizer="adam", steps=500)
    assert float(found.params) == pytest.approx(50e3, rel=1e-12)
    free = problem(bounds=(1e3, 300e3))
    capped = maximise(free, 2.0, jnp.asarray(spread_starts(8)), 0.1, optimizer="adam", steps=500)
    assert float(capped.lookahead) == pytest.approx(2.0, rel=1e-12)
    assert float(capped.stationarity) < 1e-4


@pytest.mark.slow
def test_where_speculation_does_not_pay_the_gradient_finds_no_speedup(x64):
    made = problem(cost="measured")
    slow = made.cost._replace(hardware=made.cost.hardware._replace(round_seconds=jnp.float64(1e-3)))
    made = made._replace(cost=slow)
    found = maximise(made, 64.0, jnp.asarray(spread_starts(8)), 0.1, optimizer="adam", steps=800)
    assert float(found.speedup) < 1
    assert float(found.lookahead) >= 1
    closed = made.optimum()
    assert float(closed.speedup) == 1.0
    assert not bool(closed.speculate)


def test_starts_cover_the_square():
    starts = spread_starts(64)
    assert starts.shape == (64, 2)
    assert all(len(np.unique((starts[:, i] * 8).astype(int))) == 8 for i in range(2))
