import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.theory import (
    BESIROGLU,
    PAPER_PLANE,
    ChinchillaLaw,
    DraftProblem,
    FlopCost,
    Hardware,
    HardwareCost,
    LogitGap,
    ModelPoint,
    ParameterCost,
    Precision,
    Scenario,
    ShapeRule,
    family_shape,
    optimal_draft,
    optimal_lookahead,
)
from sdsl_jax.theory.bracketed import best_lookahead

# One compilation for all examples: everything that varies is a leaf of the argument.
solve = jax.jit(lambda problem: problem.optimum())


def scenario(target, target_tokens, draft_tokens=180e9, law=PAPER_PLANE, **changes) -> Scenario:
    return Scenario(target, draft_tokens, target_tokens, BESIROGLU, law, **changes)


@pytest.mark.parametrize(
    ("target", "tokens", "published"), [(30e9, 180e9, 189e6), (110e9, 3e12, 410e6)]
)
@pytest.mark.parametrize("double", [True, False])
def test_the_papers_optima(target, tokens, published, double):
    """arXiv 2603.11053: OPT-30B → 189M and Qwen1.5-110B → 410M, within 1%, in single precision too."""
    with jax.enable_x64(double):
        assert float(solve(scenario(target, tokens)).params) == pytest.approx(published, rel=0.01)


def test_the_optimum_is_flat(x64):
    """At 70e9 the sizes from 169M to 566M are within 1% of the best, 78M to 1.14B within 5%."""
    found = solve(scenario(70e9, 15e12))
    assert [float(x) for x in found.indifference_1pct] == pytest.approx([169e6, 566e6], rel=0.01)
    assert [float(x) for x in found.indifference_5pct] == pytest.approx([78e6, 1.14e9], rel=0.01)


@pytest.mark.parametrize(
    ("overhead", "published"), [(0.0, 311e6), (0.01, 377e6), (0.05, 478e6), (0.1, 541e6)]
)
def test_overhead_moves_the_optimum(x64, overhead, published):
    found = solve(scenario(70e9, 15e12, draft_overhead=overhead))
    assert float(found.params) == pytest.approx(published, rel=0.003)


# Laws and costs over what could be asked: slopes and levels of acceptance, and every cost model.
LEVEL, SLOPE, OVERHEAD = st.floats(-1.0, 3.0), st.floats(0.3, 4.0), st.floats(0.0, 0.3)
TARGET, TOKENS = st.floats(8.5, 12.5), st.floats(9.5, 13.0)


def brute_force(problem: DraftProblem, points=40_001):
    low, high = (float(b) for b in problem.bounds)
    sizes = np.geomspace(low, high, points)
    best = optimal_lookahead(
        problem.acceptance(sizes), problem.cost.draft_step(sizes), problem.cost.verify_pass
    )
    return sizes, np.asarray(best.speedup)


@pytest.mark.slow
@given(LEVEL, SLOPE, OVERHEAD, TARGET, TOKENS, TOKENS)
def test_optimum_and_intervals_against_brute_force(
    level, slope, overhead, target, tokens, target_tokens
):
    with jax.enable_x64(True):
        made = Scenario(
            10**target,
            10**tokens,
            10**target_tokens,
            BESIROGLU,
            LogitGap(level, slope),
            overhead,
            1e6,
        ).problem()
        found = solve(made)
        sizes, values = brute_force(made)
        assert float(found.speedup) >= values.max() * (1 - 1e-12)
        assert np.isfinite(jax.tree.leaves(found)).all()
        # Plain decoding counts as S = 1 for every size.
        for share, (low, high) in (
            (0.01, found.indifference_1pct),
            (0.05, found.indifference_5pct),
        ):
            good = sizes[values >= (1 - share) * values.max()]
            assert [float(low), float(high)] == pytest.approx([good[0], good[-1]], rel=1e-3)


@given(LEVEL, SLOPE, OVERHEAD, TARGET, TOKENS, st.floats(6, 12.5), st.floats(0, 200))
def test_no_size_and_lookahead_beats_the_optimum(
    level, slope, overhead, target, tokens, size, lookahead
):
    with jax.enable_x64(True):
        made = Scenario(
            10**target, 10**tokens, 1e13, BESIROGLU, LogitGap(level, slope), overhead
        ).problem()
        value = float(made.speedup(min(10**size, 10**target), lookahead))
        assert value <= float(solve(made).speedup) * (1 + 1e-12)


@pytest.mark.release
@given(TARGET, TOKENS, TOKENS)
def test_single_precision_equals_double(target, tokens, target_tokens):
    """N* to 1e-5 (a slope known to 1e-7, over a curvature of 0.05), S* to 1e-6, the ends of a flat interval to 1e-3."""
    values = [np.float32(10**x) for x in (target, tokens, target_tokens)]
    made = Scenario(*values, BESIROGLU, LogitGap(1.7, 2.1))
    single = solve(made)
    with jax.enable_x64(True):
        double = solve(jax.tree.map(lambda x: jnp.asarray(np.float32(x), jnp.float64), made))
    assert float(single.params) == pytest.approx(float(double.params), rel=1e-5)
    assert float(single.speedup) == pytest.approx(float(double.speedup), rel=1e-6)
    for one, other in zip(single.indifference_1pct, double.indifference_1pct):
        assert float(one) == pytest.approx(float(other), rel=1e-3)


@pytest.mark.slow
def test_linear_costs_against_brute_force(x64):
    rule = ShapeRule(32.0, 256.0, 64.0)
    for cost in (
        ParameterCost(3e5, 0.02),
        FlopCost(rule, 3e5),
    ):
        made = DraftProblem(
            BESIROGLU, 2e6, ModelPoint(3e5, 7.0), LogitGap(3.0, 0.2), cost, (1e3, 3e5)
        )
        found, (sizes, values) = made.optimum(), brute_force(made)
        assert float(found.speedup) >= values.max() * (1 - 1e-12)
        if bool(found.interior):
            assert float(found.params) == pytest.approx(sizes[values.argmax()], rel=2e-3)


@pytest.mark.slow
def test_derivatives_of_the_optimum_are_those_of_finite_differences(x64):
    """Implicit derivatives of N* to every order the solver allows, against differences of a scipy optimum."""

    def optimum(theta):
        return solve(
            scenario(30e9, 180e9)._replace(
                acceptance_law=LogitGap(theta[0], theta[1]), draft_overhead=theta[2]
            )
        )

    def log_size(theta):
        return jnp.log(optimum(theta).params)

    slope = jax.jit(jax.grad(log_size))
    theta, h = jnp.array([1.0, 1.5, 0.01]), 1e-4
    gradient = slope(theta)
    # The second derivatives along one direction, through a second use of the implicit function
    # theorem.
    along = jnp.array([0.3, -0.5, 0.02])
    second = jax.jit(lambda x: jax.jvp(slope, (x,), (along,))[1])(theta)
    for i, step in enumerate(np.eye(3) * h):
        ahead, behind = log_size(theta + step), log_size(theta - step)
        assert float(gradient[i]) == pytest.approx(float((ahead - behind) / (2 * h)), rel=1e-5)
    difference = (slope(theta + h * along) - slope(theta - h * along)) / (2 * h)
    np.testing.assert_allclose(second, difference, rtol=1e-4, atol=1e-5)

    # The root itself is not ours: scipy finds the same one.
    made = (
        scenario(30e9, 180e9)
        ._replace(acceptance_law=LogitGap(1.0, 1.5), draft_overhead=0.01)
        .problem()
    )
    theirs = scipy.optimize.minimize_scalar(
        lambda x: (
            -float(
                optimal_lookahead(
                    made.acceptance(np.exp(x)), made.cost.draft_step(np.exp(x))
                ).speedup
            )
        ),
        bounds=(np.log(1e6), np.log(30e9)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert float(log_size(theta)) == pytest.approx(theirs.x, abs=1e-6)


def test_an_optimum_on_a_bound_moves_with_it(x64):
    """Constant acceptance: the smallest draft is the best, whatever it is."""

    def size(low):
        found = optimal_draft(lambda n: 0.6 + 0 * n, lambda n: n / 1e6, (low, 1e6))
        return found.params, found

    slope, found = jax.jit(jax.grad(size, has_aux=True))(1e3)
    assert float(found.params) == pytest.approx(1e3)
    assert float(slope) == pytest.approx(1.0)
    assert not bool(found.interior)


def test_where_no_size_pays(x64):
    """The result is finite, says so, and its gradients are finite."""
    found = jax.jit(
        lambda: optimal_draft(lambda n: 0.2 + 0 * n, lambda n: 0.9 + n / 1e9, (1e3, 1e6))
    )()
    assert not bool(found.speculate)
    assert float(found.speedup) == float(found.speedup_integer) == 1.0
    assert float(found.lookahead) == 0.0
    assert np.isfinite(jax.tree.leaves(found)).all()
    # Every size is as good: plain decoding is.
    assert [float(x) for x in found.indifference_1pct] == pytest.approx([1e3, 1e6])


def test_an_unbounded_law_is_never_clipped_silently(x64):
    """With the plane tiny drafts have α = −1.6 and are not chosen; α ≥ 1 is an error, or marked where it cannot be."""
    found = solve(scenario(30e9, 180e9, smallest_draft=1e5))
    assert float(found.params) == pytest.approx(189.3e6, rel=1e-3)
    assert float(scenario(30e9, 180e9, 1e12).problem().acceptance(1e6)) == pytest.approx(
        -1.6, abs=0.05
    )
    certain = scenario(2e6, 180e9)
    with pytest.raises(ValueError, match="acceptance reaches 1"):
        certain.optimum()
    found = solve(certain)
    assert float(found.acceptance) >= 1
    assert np.isinf(found.lookahead)
    assert float(found.speedup) == pytest.approx(1 / float(found.draft_step))


@pytest.mark.slow
def test_a_kink_is_a_maximum_without_derivatives(x64):
    """A table of acceptances, interpolated: the best size sits on a knot, whatever the other numbers are."""
    knots, values = jnp.log(jnp.array([1e3, 1e5, 1e7, 1e9])), jnp.array([0.1, 0.7, 0.701, 0.702])

    def size(t):
        found = optimal_draft(
            lambda n: t * jnp.interp(jnp.log(n), knots, values), lambda n: n / 1e9, (1e3, 1e9)
        )
        return found.params, found

    slope, found = jax.jit(jax.grad(size, has_aux=True))(1.0)
    assert float(found.params) == pytest.approx(1e5, rel=1e-3)
    assert not bool(found.interior)
    assert float(slope) == 0.0


@pytest.mark.release
def test_where_alpha_touches_one_is_an_error_however_it_rounds():
    def best(shift):
        return optimal_draft(lambda n: 0.2 * jnp.log10(n) - shift, lambda n: n / 1e12, (1e3, 1e12))

    assert np.asarray(
        jax.jit(jax.vmap(lambda shift: best(shift).saturates))(jnp.linspace(0.6, 1.0, 25))
    ).all()
    with pytest.raises(ValueError, match="acceptance reaches 1"):
        best(0.8)


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="positive and rising"):
        optimal_draft(lambda n: 0.5, lambda n: n, (10.0, 1.0))


@pytest.mark.slow
def test_solver_is_vmappable_and_differentiable_in_batches(x64):
    targets = jnp.array([13e9, 30e9, 70e9])
    size = lambda m: jnp.log(scenario(m, 180e9).optimum().params)  # noqa: E731
    together = jax.jit(jax.vmap(jax.value_and_grad(size)))(targets)
    one = jax.jit(jax.value_and_grad(size))
    for i, m in enumerate(targets):
        alone = one(m)
        np.testing.assert_allclose([together[0][i], together[1][i]], alone, rtol=1e-9)


def test_flop_cost_is_the_papers_without_head_and_attention(x64):
    cost = FlopCost(ShapeRule(32.0, 0.0, 0.0), 7e9)
    assert float(cost.draft_step(7e7)) == pytest.approx(0.01, rel=1e-12)
    assert cost.verify_pass == 1.0


RULE = ShapeRule(32.0, 256.0, 64.0)
# Where passes of this size are limited by bytes at first, and by arithmetic from four tokens on.
DEVICE = Hardware(3e-6, 1e-6, 1e-7, 1e10, 2e10, 4.0, 5e-6)


def on_device(
    device: Hardware = DEVICE, rule: ShapeRule = RULE, context: float = 129.0, **changes
) -> DraftProblem:
    """A target of 300k parameters on a device; in the default precision."""
    loss = ChinchillaLaw(E=0.9, A=5.0, B=40.0, a=0.15, b=0.35)
    cost = HardwareCost(device, rule, family_shape(3e5, rule), Precision(4.0, 4.0), 1.0, context)
    made = DraftProblem(
        loss, 2e6, ModelPoint(3e5, 1.6), LogitGap(1.7, 2.1), cost, (1e3, 3e5)
    )._replace(**changes)
    return jax.tree.map(lambda x: jnp.asarray(x, float), made)


@pytest.mark.slow
def test_a_device_that_only_moves_weights_has_the_papers_costs(x64):
    """No overheads, vocabulary or cache, and arithmetic for nothing: C = γ·N/M + 1, and the optimum is the closed form's."""
    bare = Hardware(0.0, 0.0, 0.0, 1e10, jnp.inf)
    made = on_device(bare, RULE._replace(vocab_size=0.0), context=0.0)
    found, closed = (
        made.optimum(),
        made._replace(cost=ParameterCost(jnp.asarray(3e5), jnp.asarray(0.0))).optimum(),
    )
    assert float(closed.lookahead) > 1
    for name in (
        "params",
        "lookahead",
        "lookahead_integer",
        "draft_step",
        "speedup",
        "speedup_integer",
    ):
        assert float(getattr(found, name)) == pytest.approx(
            float(getattr(closed, name)), rel=1e-6
        ), name
    for one, other in zip(found.indifference_1pct, closed.indifference_1pct):
        assert float(one) == pytest.approx(float(other), rel=1e-6)


@pytest.mark.release
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "inside"),
        ({"bytes_per_second": 3e9, "flops_per_second": 2e12}, "inside"),
        ({"flops_per_second": 8e9}, "smallest"),
        ({"matrix_seconds": 3e-6}, "inside"),
        ({"round_seconds": 1e-4}, "plain"),
    ],
)
@pytest.mark.parametrize("double", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_bracketed_roots_against_brute_force(changed, expected, double):
    """Inside the bounds of γ, on the smallest γ, and where nothing pays; in single precision too."""
    with jax.enable_x64(double):
        made = on_device(DEVICE._replace(**changed))
        found = solve(made)
        surface = jax.jit(lambda sizes, lookaheads: made.speedup(sizes[:, None], lookaheads[None]))
        sizes, lookaheads = np.geomspace(1e3, 3e5, 400), np.geomspace(1.0, 64.0, 400)
        for _ in range(2):  # then once more between the neighbours of the best
            values = np.asarray(surface(sizes, lookaheads))
            row, column = np.unravel_index(values.argmax(), values.shape)
            sizes, lookaheads = (
                np.geomspace(of[max(at - 1, 0)], of[min(at + 1, 399)], 400)
                for of, at in ((sizes, row), (lookaheads, column))
            )
        assert float(found.speedup) == pytest.approx(max(1.0, values.max()), rel=1e-6)
        whole = np.asarray(made.speedup(float(found.params), np.arange(1.0, 65.0)))
        if expected == "plain":
            assert values.max() < 1
            assert (
                float(found.lookahead),
                int(found.lookahead_integer),
                bool(found.speculate),
            ) == (0.0, 0, False)
        else:
            assert float(found.params) == pytest.approx(sizes[200], rel=0.02)
            assert int(found.lookahead_integer) == whole.argmax() + 1
            assert (float(found.lookahead) == 1.0) == (expected == "smallest")
        assert np.isfinite(jax.tree.leaves(found)).all()


@pytest.mark.parametrize("matrix_seconds", [0.0, 5e-6, 2e-5])
def test_what_several_tokens_cost_at_once_hides_no_gain_beyond_one_draft(x64, matrix_seconds):
    """At γ = 1 a verify pass feeds two tokens, where the extra time of several tokens is paid in full and no longer grows."""
    made = on_device(DEVICE._replace(matrix_seconds=matrix_seconds))
    cost = made.cost
    best = jax.jit(
        lambda n: best_lookahead(0.6, cost.round_of(n), lambda r, g: r.cost(g), (1.0, 64.0))
    )
    grid = np.linspace(1.0, 8.0, 20_001)
    for size in (5e3, 3e4, 1e5):
        tokens = (1 - 0.6 ** (grid + 1)) / 0.4
        values = tokens / np.asarray(jax.jit(cost.round_cost)(size, grid))
        assert float(best(size)) == pytest.approx(grid[values.argmax()], abs=1e-3)
    assert values.argmax() < 20_000


@pytest.mark.release
def test_sensitivity_to_a_device_is_that_of_finite_differences(x64):
    """∂ ln S*/∂θ and ∂ ln N*/∂θ for the numbers of the device and the load, by the implicit function theorem."""
    names = (
        "pass_seconds",
        "layer_seconds",
        "token_seconds",
        "bytes_per_second",
        "flops_per_second",
        "sharpness",
    )

    def answer(logs):
        device = DEVICE._replace(**dict(zip(names, jnp.exp(logs))), round_seconds=2e-6)
        best = on_device(device).optimum()
        return jnp.stack([jnp.log(best.speedup), jnp.log(best.params), best.lookahead])

    at = jnp.log(jnp.asarray([float(getattr(DEVICE, name)) for name in names]))
    slopes, value = jax.jit(jax.jacrev(answer))(at), jax.jit(answer)
    h = 1e-4
    for i, step in enumerate(np.eye(len(names)) * h):
        difference = (value(at + step) - value(at - step)) / (2 * h)
        np.testing.assert_allclose(slopes[:, i], difference, rtol=1e-4, atol=1e-6, err_msg=names[i])
