from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsl_jax.theory import (
    BESIROGLU,
    PAPER_PLANE,
    LogitGap,
    Scenario,
    elasticities,
    flags,
    sensitivities,
)

OPT_30B = Scenario(30e9, 180e9, 180e9, BESIROGLU, PAPER_PLANE)

# Under jit, where α ≥ 1 is marked and not an error.
optimum = jax.jit(lambda scenario: scenario.optimum())


@pytest.mark.release
@settings(max_examples=20)
@given(
    st.floats(9.5, 12),
    st.floats(10, 13),
    st.floats(10, 13),
    st.floats(0.2, 2.5),
    st.floats(0.5, 3),
    st.floats(0, 0.1),
)
def test_elasticities_are_those_of_finite_differences(
    target, tokens, target_tokens, level, slope, overhead
):
    with jax.enable_x64(True):
        made = Scenario(
            10**target,
            10**tokens,
            10**target_tokens,
            BESIROGLU,
            LogitGap(level, slope),
            overhead,
            1e5,
        )
        if not bool(optimum(made).interior):
            return
        found, h = elasticities(made), 1e-4
        for name in ("target_params", "draft_tokens", "target_tokens"):
            ahead, behind = (
                float(
                    jnp.log(
                        optimum(made._replace(**{name: getattr(made, name) * np.exp(s)})).params
                    )
                )
                for s in (h, -h)
            )
            assert float(getattr(found, name)) == pytest.approx(
                (ahead - behind) / (2 * h), rel=1e-4, abs=1e-6
            )


@pytest.mark.slow
def test_elasticities_are_what_the_root_finders_derivatives_give(x64):
    """Where a size pays, and where none does."""
    for made in (OPT_30B, OPT_30B._replace(draft_overhead=0.9)):
        found, reference = elasticities(made), sensitivities(made).log_draft_params
        for name in found._fields:
            expected = float(getattr(reference, name)) * getattr(made, name)
            assert float(getattr(found, name)) == pytest.approx(expected, rel=1e-8)


def test_elasticities_on_a_bound_are_those_of_the_bound():
    assert [float(e) for e in elasticities(OPT_30B._replace(smallest_draft=5e9))] == [0, 0, 0]


class Steep(NamedTuple):
    """An acceptance that comes nearest to paying for a draft as large as the target."""

    top: float = 0.99

    def __call__(self, draft, target):
        return self.top * (draft.params / target.params) ** 3


@pytest.mark.slow
def test_a_draft_as_large_as_its_target_grows_with_it():
    made = OPT_30B._replace(acceptance_law=Steep(), smallest_draft=15e9)
    assert float(optimum(made).params) == pytest.approx(30e9)
    assert [float(e) for e in elasticities(made)] == [1, 0, 0]


@pytest.mark.slow
def test_sensitivity_to_every_coefficient(x64):
    """Of N*, γ* and S*, to each coefficient of both laws and to the overhead, against central differences."""
    made = OPT_30B._replace(draft_overhead=0.01)
    found = sensitivities(made)

    checked = 0
    for field in ("loss_law", "acceptance_law", "draft_overhead"):
        law = getattr(made, field)
        leaves, structure = jax.tree.flatten(law)
        for i, value in enumerate(leaves):
            h = 1e-5 * max(abs(value), 1e-4)
            ends = []
            for sign in (1, -1):
                changed = jax.tree.unflatten(
                    structure, [v + sign * h * (j == i) for j, v in enumerate(leaves)]
                )
                best = optimum(made._replace(**{field: changed}))
                ends.append(np.array([np.log(best.params), best.lookahead, np.log(best.speedup)]))
            expected = (ends[0] - ends[1]) / (2 * h)
            ours = [jax.tree.leaves(getattr(row, field))[i] for row in found]
            np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-9)
            checked += 1
    assert checked == 5 + 3 + 1


@pytest.mark.slow
def test_sensitivities_in_single_precision():
    single = sensitivities(OPT_30B)
    with jax.enable_x64(True):
        double = sensitivities(OPT_30B)
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(double)):
        np.testing.assert_allclose(one, other, rtol=2e-4)


@pytest.mark.slow
def test_gradients_are_finite_where_speculation_does_not_pay(x64):
    """A draft step as dear as a target step: N*, γ* and S* do not move, and nothing is NaN."""
    hopeless = OPT_30B._replace(draft_overhead=1.0)
    assert not bool(optimum(hopeless).speculate)
    assert np.isfinite(jax.tree.leaves(sensitivities(hopeless))).all()


def test_flags(x64):
    inside = Scenario(15e9, 180e9, 180e9, BESIROGLU, PAPER_PLANE)
    found = flags(inside, optimum(inside))
    # The 5% interval reaches below 70M; everything else is within the ranges.
    assert [name for name, flag in found._asdict().items() if flag] == ["interval_extrapolated"]
    huge = inside._replace(target_params=1e12)
    found = flags(huge, optimum(huge))
    assert bool(found.target_loss_extrapolated)
    assert bool(found.acceptance_extrapolated)
    assert not bool(found.draft_loss_extrapolated)
    tokens = inside._replace(draft_tokens=3e12)
    assert bool(flags(tokens, optimum(tokens)).draft_loss_extrapolated)
    # A plane that gives every draft a negative acceptance, and one that gives the best more than 1.
    poor = inside._replace(acceptance_law=type(PAPER_PLANE)(-0.0067, 0.0, -0.1))
    found = optimum(poor)
    assert bool(flags(poor, found).acceptance_not_positive)
    assert not bool(found.speculate)
    assert float(found.speedup) == 1.0
    rich = inside._replace(acceptance_law=type(PAPER_PLANE)(-0.0067, 0.0, 1.2))
    assert bool(flags(rich, optimum(rich)).acceptance_saturates)
    edge = inside._replace(smallest_draft=1e9)
    assert bool(flags(edge, optimum(edge)).at_bound)
