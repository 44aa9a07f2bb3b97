import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, FlopCost, ShapeRule, optimal_draft, optimal_lookahead


def solve(target, target_tokens, draft_tokens=180e9, tolerance=0.01):
    y = BESIROGLU(target, target_tokens)
    return optimal_draft(
        lambda n: PAPER_PLANE(BESIROGLU(n, draft_tokens), y), lambda n: n / target, 1.0, (1e6, target), tolerance
    )


@pytest.mark.parametrize(("target", "tokens", "published"), [(30e9, 180e9, 189e6), (110e9, 3e12, 410e6)])
def test_the_papers_optima(x64, target, tokens, published):
    """arXiv 2603.11053: OPT-30B → 189M and Qwen1.5-110B → 410M, within 1 %."""
    assert float(solve(target, tokens).params) == pytest.approx(published, rel=0.01)


def test_the_optimum_is_flat(x64):
    """At 70e9 the sizes from 169M to 566M are within 1 % of the best."""
    low, high = (float(x) for x in solve(70e9, 15e12).indifference)
    assert low == pytest.approx(169e6, rel=0.02)
    assert high == pytest.approx(566e6, rel=0.02)


def test_optimum_and_interval_against_brute_force(x64):
    found = solve(30e9, 180e9)
    grid = np.geomspace(1e6, 30e9, 200_001)
    y = BESIROGLU(30e9, 180e9)
    values = np.asarray(optimal_lookahead(PAPER_PLANE(BESIROGLU(grid, 180e9), y), grid / 30e9).speedup)
    assert float(found.params) == pytest.approx(grid[values.argmax()], rel=1e-3)
    assert float(found.speedup) >= values.max() * (1 - 1e-13)
    good = grid[values >= 0.99 * values.max()]
    assert [float(x) for x in found.indifference] == pytest.approx([good[0], good[-1]], rel=1e-4)


def test_where_no_size_pays(x64):
    found = optimal_draft(lambda n: 0.2 + 0 * n, lambda n: 0.9 + 0 * n, 1.0, (1e3, 1e6))
    assert np.isnan(found.params)
    assert float(found.speedup) == 1.0


def test_optimum_on_the_edge_is_not_called_interior(x64):
    found = optimal_draft(lambda n: 0.6 + 0 * n, lambda n: n / 1e6, 1.0, (1e3, 1e6))
    assert not bool(found.interior)
    assert float(found.params) == pytest.approx(1e3)


def test_flop_cost_is_the_papers_without_head_and_attention(x64):
    cost = FlopCost(ShapeRule(32.0, 0.0, 0.0), 7e9)
    assert float(cost.draft_step(7e7)) == pytest.approx(0.01, rel=1e-12)
    assert cost.verify_pass == 1.0


def test_solver_is_vmappable(x64):
    targets = jnp.array([13e9, 30e9, 70e9])
    sizes = jax.jit(jax.vmap(lambda m: solve(m, 180e9).params))(targets)
    assert np.all(np.diff(np.asarray(sizes)) > 0)
