import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from sdsl_jax.theory import (
    BESIROGLU,
    PAPER_PLANE,
    PUBLISHED_ACCEPTANCE_LAWS,
    PUBLISHED_LOSS_LAWS,
    AffinePlane,
    ChinchillaLaw,
    KaplanLaw,
    LogitGap,
    LogitLogGap,
    LogitPlane,
    ModelPoint,
    NestedLaw,
    PowerLaw,
    coefficients,
)

LOSS, SIZE = st.floats(0.5, 6.0), st.floats(3.0, 13.0)


@given(st.sampled_from(sorted(PUBLISHED_LOSS_LAWS)), st.floats(6, 13), st.floats(8, 14))
def test_losses_fall_with_size_and_data(name, log_params, log_tokens):
    with jax.enable_x64(True):
        law, n, d = PUBLISHED_LOSS_LAWS[name], 10**log_params, 10**log_tokens
        here = float(law(n, d))
        assert 0 < float(law(2 * n, d)) < here
        assert 0 < float(law(n, 2 * d)) < here


def test_values_of_the_published_laws(x64):
    """Written out by hand from the tables of paper.md: Chinchilla (70e9, 1.4e12), and Kaplan at 1.5e9, 23e9."""
    assert float(BESIROGLU(70e9, 1.4e12)) == pytest.approx(
        1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658
    )
    kaplan = ((6.4e13 / 1.5e9) ** (0.076 / 0.103) + 1.8e13 / 23e9) ** 0.103
    assert float(PUBLISHED_LOSS_LAWS["kaplan"](1.5e9, 23e9)) == pytest.approx(kaplan)
    # Section 5 of paper.md: perplexity 347 at N = 1e6, D = 1e12.
    assert float(jnp.exp(BESIROGLU(1e6, 1e12))) == pytest.approx(347, rel=0.01)


def test_the_nested_law_holds_both_others():
    """κ = 1 is Chinchilla's; E = 0 and b = κ is Kaplan's, with B = D_c^α_D and A = N_c^α_N."""
    params, tokens = np.asarray([1e4, 3e6]), np.asarray([2e6, 5e8])
    sums = ChinchillaLaw(1.2, 12.0, 60.0, 0.35, 0.4)
    nested = NestedLaw(1.2, 12.0, 60.0, 0.35, 0.4, 1.0)
    np.testing.assert_allclose(nested(params, tokens), sums(params, tokens), rtol=1e-12)
    kaplan = KaplanLaw(N_c=2e5, D_c=3e6, alpha_N=0.12, alpha_D=0.2)
    nested = NestedLaw(0.0, 2e5**0.12, 3e6**0.2, 0.12, 0.2, 0.2)
    np.testing.assert_allclose(nested(params, tokens), kaplan(params, tokens), rtol=1e-12)


def test_every_published_law_says_what_it_is():
    for law in [*PUBLISHED_LOSS_LAWS.values(), *PUBLISHED_ACCEPTANCE_LAWS.values()]:
        about = law.about
        assert "arXiv" in about.source
        assert about.params_count in ("total", "non-embedding")
        assert about.valid
        assert all([about.unit, about.text, about.no_interval])
        assert all(low < high for _, low, high in about.valid)


@given(st.floats(-3, 3), st.floats(0, 5), st.floats(0, 5), LOSS, LOSS)
def test_logit_laws_stay_between_0_and_1(level, slope, other, draft, target):
    with jax.enable_x64(True):
        for law in (
            LogitGap(level, slope),
            LogitPlane(level, slope, other),
            LogitLogGap(level, slope, 0.5, other),
        ):
            assert 0 < float(law(ModelPoint(1e6, draft), ModelPoint(1e9, target))) < 1


@given(st.floats(0.01, 100), st.floats(0.01, 1), st.floats(0, 1), SIZE, SIZE)
def test_power_law_stays_below_1(scale, exponent, target_exponent, draft, target):
    with jax.enable_x64(True):
        law = PowerLaw(scale, exponent, target_exponent)
        alpha = float(law(ModelPoint(10**draft, 1.0), ModelPoint(10**target, 1.0)))
        assert alpha < 1
        assert 1 - alpha == pytest.approx(
            scale * 10 ** (target_exponent * target - exponent * draft), rel=1e-9, abs=1e-15
        )


def test_bounded_laws_are_bounded_in_single_precision_too():
    for level in (-200.0, -20.0, 20.0, 200.0):
        for law in (
            LogitGap(level, 1.0),
            LogitPlane(level, 1.0, 1.0),
            LogitLogGap(level, 1.0, 0.5, 1.0),
        ):
            alpha = law(ModelPoint(1e6, 2.0), ModelPoint(1e9, 2.0))
            assert alpha.dtype == np.float32
            assert 0 < float(alpha) < 1
    assert float(PowerLaw(1.0, 1.0)(ModelPoint(1e9, 1.0), ModelPoint(1e9, 1.0))) < 1


def test_a_gap_is_a_plane_with_equal_slopes(x64):
    draft, target = ModelPoint(1e6, 3.1), ModelPoint(1e9, 2.2)
    assert float(LogitGap(1.1, 0.7)(draft, target)) == pytest.approx(
        float(LogitPlane(1.1, 0.7, 0.7)(draft, target))
    )


def test_a_log_gap_lies_between_a_plane_and_certainty(x64):
    """With an offset far above all gaps it is a plane of slope/offset per nat; at a gap of −offset,
    and beyond, α is 1 but for rounding."""
    target, offset = ModelPoint(1e9, 2.2), 1e7
    level = 1.1 + 2.1 * offset * math.log(offset)
    for loss in (2.0, 2.6, 3.4):
        plane = LogitPlane(1.1, 2.1, 1.7)(ModelPoint(1e6, loss), target)
        far = LogitLogGap(level, 2.1 * offset, offset, 1.7 - 2.1)(ModelPoint(1e6, loss), target)
        assert float(far) == pytest.approx(float(plane), abs=1e-6)
    near = LogitLogGap(1.1, 2.1, 0.3, 0.2)
    alpha = [float(near(ModelPoint(1e6, 2.2 + gap), target)) for gap in (1.0, 0.0, -0.29, -0.3, -1)]
    assert alpha == sorted(alpha)
    assert 1 - 1e-9 < alpha[-1] < 1


def test_laws_are_pytrees_of_their_coefficients(x64):
    assert jax.tree.leaves(BESIROGLU) == [1.8172, 482.01, 2085.43, 0.3478, 0.3658]
    assert list(coefficients(PAPER_PLANE)) == ["A", "B", "C"]
    gradient = jax.grad(lambda law: law(1e9, 1e11))(jax.tree.map(jnp.float64, BESIROGLU))
    assert isinstance(gradient, type(BESIROGLU))
    assert float(gradient.E) == 1.0
    assert gradient.about == BESIROGLU.about
    with pytest.raises(dataclasses.FrozenInstanceError):
        BESIROGLU.E = 0.0


def test_laws_are_differentiable_in_every_coefficient(x64):
    draft, target = (
        ModelPoint(jnp.float64(1e8), jnp.float64(2.6)),
        ModelPoint(jnp.float64(1e10), jnp.float64(2.1)),
    )
    for law in (
        AffinePlane(-0.0067, 0.013, 0.64),
        LogitGap(1.0, 2.0),
        LogitPlane(1.0, 2.0, 1.5),
        LogitLogGap(1.0, 2.0, 0.7, -0.5),
        PowerLaw(3.0, 0.2, 0.05),
    ):
        check_grads(
            lambda law: law(draft, target),
            (jax.tree.map(jnp.float64, law),),
            order=2,
            modes=("rev",),
            rtol=1e-4,
        )
    for law in PUBLISHED_LOSS_LAWS.values():
        # In logs of the coefficients, which differ by thirteen orders of magnitude.
        logs = jax.tree.map(lambda x: jnp.log(jnp.float64(x)), law)
        check_grads(
            lambda x: jax.tree.map(jnp.exp, x)(1e9, 1e11),
            (logs,),
            order=1,
            modes=("rev",),
            rtol=1e-4,
        )


def test_ranges_are_told():
    about = BESIROGLU.about
    assert not bool(about.outside(params=1e9, tokens=1e11))
    assert bool(about.outside(params=30e9, tokens=1e11))
    assert bool(about.outside(params=1e9, tokens=1e9))
    np.testing.assert_array_equal(
        about.outside(params=jnp.array([1e6, 1e9, 1e12])), [True, False, True]
    )
    assert not bool(LogitGap(1.0, 1.0).about.outside(draft_params=1e30))  # nothing is known
