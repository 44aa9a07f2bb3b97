"""Every hand-written gradient against the plain formula and its automatic gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdsl_jax.models import ModelConfig, forward, init_params
from sdsl_jax.models.kernels import (
    _fused_attention,
    causal_attention,
    linear,
    rotary_tables,
    rotate,
    token_losses,
)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _same(mine, plain, *arguments, weights):
    """Values and gradients of Σ weights · f agree, to the rounding of sums of some hundred float32 numbers."""

    def total(f, *args):
        values = f(*args)
        return sum((w * y).sum() for w, y in zip(weights, jax.tree.leaves(values))), values

    @jax.jit
    def both(*args):
        every = tuple(range(len(args)))
        return [
            jax.grad(functools.partial(total, f), every, has_aux=True)(*args) for f in (mine, plain)
        ]

    (my_gradients, my_values), (gradients, values) = both(*arguments)
    for got, want in zip(jax.tree.leaves(my_values), jax.tree.leaves(values)):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    for got, want in zip(my_gradients, gradients):
        np.testing.assert_allclose(got, want, atol=5e-5, rtol=5e-5)


def test_linear():
    x, w = _normal(0, 3, 5, 6), _normal(1, 6, 10)
    weights = [_normal(2, 3, 5, n) for n in (4, 4, 2)]
    _same(
        lambda x, w: linear(x, w, (4, 4, 2)),
        lambda x, w: jnp.split(x @ w, [4, 8], -1),
        x,
        w,
        weights=weights,
    )


def test_rotate_turns_each_pair_as_a_complex_number():
    x, (cos, sin) = _normal(0, 2, 7, 3, 8), rotary_tables(jnp.arange(7)[None, :, None], 8, 100.0)

    def plain(x):
        z = (x[..., :4] + 1j * x[..., 4:]) * (cos + 1j * sin)
        return jnp.concatenate([z.real, z.imag], -1)

    _same(lambda x: rotate(x, cos, sin), plain, x, weights=[_normal(1, *x.shape)])
    angle = jnp.arange(7)[:, None] * 100.0 ** (-jnp.arange(4) / 4)[None]
    np.testing.assert_allclose(cos[0, :, 0], jnp.cos(angle), atol=1e-6)


def _plain_attention(q, k, v):
    T = q.shape[2]
    scores = jnp.einsum("ngqh,nhs->ngqs", q, k)
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
    return jnp.einsum("ngqs,nsh->ngqh", jax.nn.softmax(scores, -1), v)


@pytest.mark.parametrize(("length", "groups"), [(1, 1), (64, 1), (65, 2), (150, 3), (530, 1)])
def test_causal_attention(length, groups):
    """Lengths below, at and beside the borders of blocks; 530 needs blocks longer than the smallest."""
    q, k, v = _normal(0, 2, groups, length, 8), _normal(1, 2, 8, length), _normal(2, 2, length, 8)
    _same(causal_attention, _plain_attention, q, k, v, weights=[_normal(3, *q.shape)])


def test_the_call_of_fused_attention():
    """The shapes that are handed to a device's kernel, through the implementation that every device has."""
    q, k, v = _normal(0, 2, 3, 20, 8), _normal(1, 2, 8, 20), _normal(2, 2, 20, 8)
    mine, plain = jax.jit(lambda *x: (_fused_attention(*x, "xla"), _plain_attention(*x)))(q, k, v)
    np.testing.assert_allclose(mine, plain, atol=2e-5)


def test_causal_attention_survives_large_scores():
    q, k, v = 1e4 * _normal(0, 1, 1, 70, 8), _normal(1, 1, 8, 70), _normal(2, 1, 70, 8)
    gradients = jax.jit(jax.grad(lambda *args: causal_attention(*args).sum(), (0, 1, 2)))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)


def test_token_losses():
    logits, labels = 3 * _normal(0, 4, 5, 11), jax.random.randint(jax.random.key(1), (4, 5), 0, 11)

    def plain(logits):
        log_p = jax.nn.log_softmax(logits, -1)
        chosen = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        return -chosen, jax.nn.logsumexp(logits, -1)

    weights = [_normal(2, 4, 5), _normal(3, 4, 5)]
    _same(lambda x: token_losses(x, labels), plain, logits, weights=weights)


def test_gradients_are_those_of_finite_differences(x64):
    q, k, v = (
        x.astype(jnp.float64)
        for x in (_normal(0, 1, 2, 70, 4), _normal(1, 1, 4, 70), _normal(2, 1, 70, 4))
    )
    check_grads(jax.jit(causal_attention), (q, k, v), order=1, modes=["rev"], atol=1e-4, rtol=1e-4)


@pytest.mark.release
def test_rematerialised_blocks_change_neither_logits_nor_gradients(small_model: ModelConfig):
    params, tokens = (
        init_params(small_model, jax.random.key(0)),
        jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
    )

    def loss(params, remat):
        return jnp.square(forward(small_model, params, tokens, remat=remat)[0]).mean()

    for got, want in zip(
        *(jax.tree.leaves(jax.grad(loss)(params, remat)) for remat in (True, False))
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)
