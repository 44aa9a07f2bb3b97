"""The time of a pass: limits, additivity, experts, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.theory import ShapeRule
from sdsl_jax.theory.hardware import (
    Hardware,
    Load,
    Precision,
    Shape,
    family_shape,
    pass_time,
    smooth_maximum,
    weight_bytes,
)
from sdsl_jax.theory.published_models import published_shape

HARDWARE = Hardware(
    2e-4,
    3e-5,
    7e-6,
    3e12,
    8e14,
    4.0,
    matrix_seconds=2e-6,
    wide_seconds=8e-6,
    logit_seconds=1e-11,
    cache_slowdown=1.1,
)
MOE = published_shape("Qwen3-30B-A3B")


def test_attention_runs_after_the_matrices(x64):
    """Context costs the same whether matrices are bound by memory or by arithmetic."""
    shape = published_shape("Qwen3-8B")

    def of_context(rows):
        with_it, without = (
            pass_time(HARDWARE, shape, Precision(), Load(1.0, rows, c)) for c in (8192.0, 0.0)
        )
        return float(with_it - without) / rows

    cache = 1.1 * 2 * 8192 * shape.layers * shape.kv_width * 2 / 3e12
    flops = 4 * 8192 * shape.query_width * shape.layers / 8e14
    assert of_context(1.0) == pytest.approx(float(smooth_maximum(cache, flops, 4.0)), rel=1e-9)
    assert of_context(1024.0) == pytest.approx(of_context(1.0), rel=1e-9)


def test_experts_that_a_pass_reads_are_those_that_some_token_chose(x64):
    """Monte Carlo of uniform routing: 2,000 passes of 8 of 128 experts, 5 standard errors."""
    random, passes, tokens = np.random.default_rng(0), 2000, 24
    chosen = random.random((passes, tokens, 128)).argsort(-1)[..., :8]
    touched = np.asarray([len(np.unique(one)) for one in chosen])
    read = float(MOE.read_params(tokens) - (MOE.params - MOE.expert_params))
    expected = 128 * read / MOE.expert_params
    assert expected == pytest.approx(128 * (1 - (1 - 8 / 128) ** tokens), rel=1e-12)
    assert abs(touched.mean() - expected) < 5 * touched.std() / passes**0.5


def test_one_expert_is_a_dense_model_bit_for_bit():
    dense = Shape(6e9, 32, 4096, 4096, 1024, 128e3, 2)
    one = dense._replace(expert_params=4e9)
    for load in (Load(1.0), Load(5.0, 64.0, 4096.0)):
        assert pass_time(HARDWARE, one, Precision(), load) == pass_time(
            HARDWARE, dense, Precision(), load
        )
    rule = ShapeRule(100.0, 128e3, 0.0, 0.125, 2.0)
    members = (
        family_shape(7e10, rule),
        family_shape(7e10, rule._replace(experts=8.0, active_experts=8.0)),
    )
    assert [float(x) for x in members[0][:7]] == [float(x) for x in members[1][:7]]


def test_a_family_of_experts_keeps_its_active_size(x64):
    """The active experts of a block are as large as a dense MLP: its dense twin has its depth and width."""
    rule = ShapeRule(100.0, 128e3, 0.0, 0.125, 2.0)
    sparse = family_shape(3e10, rule._replace(experts=128.0, active_experts=8.0))
    twin = family_shape(sparse.active_params, rule)
    assert float(sparse.params) == 3e10
    assert float(twin.layers) == pytest.approx(float(sparse.layers), rel=1e-12)
    assert float(twin.width) == pytest.approx(float(sparse.width), rel=1e-12)
    assert float(sparse.matrix_flops()) == pytest.approx(float(twin.matrix_flops()), rel=1e-12)
    few, many = (float(weight_bytes(sparse, Precision(), t)) for t in (1.0, 1e6))
    assert few == pytest.approx(float(weight_bytes(twin, Precision())), rel=1e-12)
    assert many == pytest.approx(2 * float(sparse.params + 128e3 * sparse.width), rel=1e-12)


@pytest.mark.parametrize(
    "shape",
    # A dense model with experts that it does not use: one expert or fewer is outside the domain.
    [MOE, published_shape("Qwen3-8B")._replace(experts=4.0)],
    ids=["experts", "dense"],
)
def test_gradients_are_those_of_finite_differences(x64, shape):
    load = Load(4.7, 12.3, 3000.0, 2.0)
    arguments = jax.tree.map(jnp.asarray, (HARDWARE, shape, load))
    seconds = jax.jit(lambda a: pass_time(a[0], a[1], Precision(), a[2]))
    slopes = jax.grad(seconds)(arguments)
    leaves, structure = jax.tree.flatten(arguments)
    for i, (value, slope) in enumerate(zip(leaves, jax.tree.leaves(slopes))):
        if value == 0 or not np.isfinite(value):
            continue
        ends = [
            seconds(jax.tree.unflatten(structure, [*leaves[:i], value * f, *leaves[i + 1 :]]))
            for f in (1 + 1e-5, 1 - 1e-5)
        ]
        change = float(ends[0] - ends[1]) / 2e-5
        # Central differences of step 1e-5 err by 1e-10 of the time, relative to its curvature.
        assert float(value * slope) == pytest.approx(change, rel=1e-5, abs=1e-9 * float(ends[0]))


def test_without_a_context_attention_costs_nothing_and_has_the_slope_of_any_other(x64):
    slope = jax.grad(lambda c: pass_time(HARDWARE, MOE, Precision(), Load(1.0, 1.0, c)))
    assert float(slope(0.0)) == pytest.approx(float(slope(1000.0)), rel=1e-12)
    assert float(slope(0.0)) > 0
    assert float(smooth_maximum(0.0, 0.0, 4.0)) == 0
