"""Impossible values that are known at call time are errors of the user's; traced ones pass."""

import jax
import numpy as np
import pytest

import sdsl_jax
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, Scenario, elasticities, sensitivities, speedup

OPT_30B = Scenario(30e9, 180e9, 180e9, BESIROGLU, PAPER_PLANE)
LOADED = sdsl_jax.load_law("paper")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.7, 4, 0.05), "the acceptance is 1.7; it must be at most 1"),
        ((np.array([0.5, 70.0]), 4, 0.05), "the acceptance is 70.0; .*: 0.7"),
        (("70%", 4, 0.05), "the acceptance is '70%'; it must be a number"),
        ((None, 4, 0.05), "the acceptance is None; it must be a number"),
        ((float("nan"), 4, 0.05), "not a number"),
        ((0.7, -1, 0.05), "the lookahead is -1.0; it must not be negative"),
        ((0.7, 4, -0.05), "draft step in target steps is -0.05"),
        ((0.7, 4, 0.05, 0), "verify pass in target steps is 0.0; it must be positive"),
    ],
)
def test_a_speedup_of_impossible_values(arguments, message):
    with pytest.raises(sdsl_jax.SdslError, match=message):
        speedup(*arguments)


def test_traced_values_are_not_checked():
    assert float(jax.grad(speedup)(0.7, 4.0, 0.05)) > 0
    inside, outside = jax.jit(jax.vmap(lambda alpha: speedup(alpha, 4.0, 0.05)))(
        np.array([0.7, 1.7])
    )
    assert float(outside) == pytest.approx(5 / 1.2)
    assert float(inside) == pytest.approx(float(speedup(0.7, 4.0, 0.05)))
    # A law may extrapolate below 0, which counts as no acceptance.
    assert float(speedup(-0.2, 4.0, 0.05)) == pytest.approx(1 / 1.2)
    assert float(speedup(jax.numpy.bfloat16(0.5), 4.0, 0.05)) > 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_params", "32B", "target_params is '32B'; it must be a number"),
        ("target_tokens", 0, "target_tokens is 0.0; it must be positive"),
        ("target_params", 32, "target_params is 32 and smallest_draft 1000000.0; a draft must be"),
        ("draft_overhead", -0.1, "draft_overhead is -0.1; it must not be negative"),
        ("acceptance_law", LOADED, "acceptance_law is a LoadedLaw, .*give its attribute law"),
        ("loss_law", "besiroglu", "loss_law is 'besiroglu', .*give a law, such as"),
    ],
)
@pytest.mark.parametrize("ask", [Scenario.optimum, elasticities, sensitivities])
def test_a_scenario_of_impossible_values(ask, field, value, message):
    with pytest.raises(sdsl_jax.SdslError, match=message):
        ask(OPT_30B._replace(**{field: value}))


def test_lists_are_arrays():
    np.testing.assert_allclose(
        speedup([0.6, 0.7], 4, [0.05, 0.1]), [speedup(0.6, 4, 0.05), speedup(0.7, 4, 0.1)]
    )


def test_the_law_that_was_loaded():
    assert OPT_30B._replace(acceptance_law=LOADED.law) == OPT_30B


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.7, lambda n: n / 1e9, (1e6, 1e9)), "the acceptance is 0.7, which cannot be called"),
        ((lambda n: 0.7, lambda n: n / 1e9, ("1M", 1e9)), "a bound of the draft size is '1M'"),
    ],
)
def test_a_best_draft_of_impossible_values(arguments, message):
    with pytest.raises(sdsl_jax.SdslError, match=message):
        sdsl_jax.optimal_draft(*arguments)


def test_a_lookahead_of_text():
    with pytest.raises(sdsl_jax.SdslError, match=r"draft step is '0\.05'; it must be a number"):
        sdsl_jax.optimal_lookahead(0.7, "0.05")
