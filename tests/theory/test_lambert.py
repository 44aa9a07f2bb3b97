import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from sdsl_jax.theory import lambertw, solve_branch


@given(st.floats(1e-12, 1e4))
def test_branch_solves_its_equation(lam):
    with jax.enable_x64(True):
        w = float(solve_branch(lam))
        with mpmath.workdps(40):
            assert float(mpmath.mpf(w) - mpmath.log1p(mpmath.mpf(w))) == pytest.approx(
                lam, rel=1e-12
            )


def test_branch_in_single_precision():
    """To 4e-7 over 14 decades, the branch point λ → 0 included."""
    lam = np.geomspace(1e-9, 1e6, 4001).astype(np.float32)
    single = np.asarray(solve_branch(jnp.asarray(lam)))
    with jax.enable_x64(True):
        double = np.asarray(solve_branch(jnp.asarray(lam.astype(np.float64))))
    np.testing.assert_allclose(single, double, rtol=4e-7)


def test_both_branches_against_scipy(x64):
    """To 1e-13, except near the branch point where half the digits of W are lost in x itself."""
    upper = np.concatenate(
        [-np.exp(-1) + np.geomspace(1e-4, 0.36, 200), np.geomspace(1e-10, 1e200, 400)]
    )
    np.testing.assert_allclose(lambertw(upper), scipy.special.lambertw(upper).real, rtol=1e-12)
    lower = -np.geomspace(1e-300, np.exp(-1) - 1e-4, 400)
    np.testing.assert_allclose(
        lambertw(lower, -1), scipy.special.lambertw(lower, -1).real, rtol=1e-12
    )


def test_branch_point_and_outside(x64):
    assert float(lambertw(-np.exp(-1))) == float(lambertw(-np.exp(-1), -1)) == -1.0
    assert float(lambertw(0.0)) == 0.0
    assert np.isnan(lambertw(jnp.array([-0.4, np.nan]))).all()
    assert np.isnan(lambertw(jnp.array([-0.4, 0.1]), -1)).all()
    with pytest.raises(ValueError, match="branches 0 and -1"):
        lambertw(0.5, 1)


@pytest.mark.parametrize(("x", "branch"), [(-0.3, 0), (0.5, 0), (20.0, 0), (-0.3, -1), (-0.1, -1)])
def test_derivatives(x64, x, branch):
    check_grads(lambda x: lambertw(x, branch), (x,), order=2, modes=("fwd", "rev"), rtol=1e-4)
