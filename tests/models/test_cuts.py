"""Smaller models cut out of a larger one: what is kept is kept bit by bit, and what is left out is gone."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdsl_jax.config import FamilyConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, count, forward, init_params
from sdsl_jax.models.cuts import (
    Kept,
    Nested,
    best_blocks,
    cut,
    early_exit,
    exit_of_size,
    importance,
    leading,
    nested_of_sizes,
    pruned,
    pruned_of_size,
)
from sdsl_jax.models.kernels import token_losses
from sdsl_jax.models.weights import store

CONFIG = ModelConfig(vocab_size=11, width=16, layers=3, heads=4, kv_heads=2, head_dim=8, hidden=12)
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 9))


@pytest.fixture(scope="module")
def params():
    """Parameters with norms that are not all ones."""
    noisy = lambda x: x * jnp.linspace(0.5, 1.5, x.size).reshape(x.shape)  # noqa: E731
    return jax.tree.map(noisy, init_params(CONFIG, jax.random.key(0)))


def logits(config, params):
    return np.asarray(forward(config, params, jnp.asarray(TOKENS))[0])


def changed(params, change):
    """Parameters of which `change(name of the block's matrix, block, values)` gives new ones."""
    values = nnx.to_pure_dict(params)
    for number, block in values["blocks"].items():
        block["attention"]["out"] = change("out", number, block["attention"]["out"])
        block["mlp"]["down"] = change("down", number, block["mlp"]["down"])
    return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(values))


def loss(params):
    out, _ = forward(CONFIG, params, jnp.asarray(TOKENS[:, :-1]))
    return token_losses(out, jnp.asarray(TOKENS[:, 1:]))[0].mean(axis=-1)


def test_what_keeps_everything_is_the_model(params):
    config, same = cut(CONFIG, params, leading(CONFIG))
    assert config == CONFIG
    for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(params)):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        jax.tree.leaves(pruned(CONFIG, params, CONFIG, TOKENS)), jax.tree.leaves(params)
    ):
        np.testing.assert_array_equal(one, other)


def test_an_exit_after_the_last_block_is_the_model(params):
    config, own = early_exit(CONFIG, params, 3)
    np.testing.assert_array_equal(logits(config, own), logits(CONFIG, params))
    sizes = count(config, 0)
    assert sizes.total == sum(x.size for x in jax.tree.leaves(own))
    assert sizes.nonembedding == sizes.total - 2 * 11 * 16
    # An exit from a model with a head of its own computes the same products in another order.
    untied = dataclasses.replace(CONFIG, tie_embeddings=False)
    other = init_params(untied, jax.random.key(1))
    np.testing.assert_allclose(
        logits(*early_exit(untied, other, 3)), logits(untied, other), rtol=1e-5, atol=1e-6
    )


def test_what_is_cut_out_gives_nothing(params):
    """The model in which heads and units give zeros, to rounding; a dropped block gives none at all."""
    heads, units = np.array([[1], [0], [1]]), np.array([[0, 3, 7], [1, 2, 11], [4, 5, 6]])
    rows = {"out": np.repeat(np.arange(2), 16), "down": np.arange(12)}

    def gated(name, number, matrix):
        left = (heads if name == "out" else units)[number]
        return matrix * np.isin(rows[name], left)[:, None]

    smaller = cut(CONFIG, params, Kept((0, 1, 2), 16, heads, units))
    np.testing.assert_allclose(
        logits(*smaller), logits(CONFIG, changed(params, gated)), rtol=1e-4, atol=1e-5
    )
    everything = leading(CONFIG)
    two = Kept((0, 2), 16, everything.heads[:2], everything.units[:2])
    without = changed(params, lambda name, number, x: x * (number != 1))
    np.testing.assert_allclose(
        logits(*cut(CONFIG, params, two)), logits(CONFIG, without), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_importance_is_the_slope_of_a_gate(params):
    """Against central differences of the loss of each window."""
    found = importance(CONFIG, params, TOKENS)
    step = 1e-2

    def slope(name, block, rows):
        def moved(by):
            def change(other, number, x):
                if (other, number) != (name, block):
                    return x
                return x.at[np.asarray(rows)].multiply(1 + by)

            return np.asarray(loss(changed(params, change)), float)

        return np.abs((moved(step) - moved(-step)) / (2 * step)).mean()

    for block, head in itertools.product((0, 2), (0, 1)):
        expected = slope("out", block, range(16 * head, 16 * head + 16))
        np.testing.assert_allclose(found.heads[block, head], expected, rtol=0.02, atol=2e-5)
    for unit in (0, 5):
        np.testing.assert_allclose(
            found.units[1, unit], slope("down", 1, [unit]), rtol=0.02, atol=2e-5
        )


def test_a_block_that_does_nothing_goes_first(params):
    idle = changed(params, lambda name, number, x: x * (number != 1))
    assert best_blocks(CONFIG, idle, TOKENS, 2) == (0, 2)
    only = best_blocks(CONFIG, idle, TOKENS, 1)
    everything = leading(CONFIG)

    def loss_of(block):
        kept = Kept((block,), 16, everything.heads[:1], everything.units[:1])
        out = forward(*cut(CONFIG, idle, kept), jnp.asarray(TOKENS[:, :-1]))[0]
        return float(token_losses(out, jnp.asarray(TOKENS[:, 1:]))[0].mean())

    assert only == (min((0, 2), key=loss_of),)


@pytest.mark.slow
def test_a_slice_is_a_model_of_its_own():
    """Its logits in the nested model are those of the model of its shape, bit by bit; and only what it
    holds of the whole has a gradient."""
    family = FamilyConfig(layers=2, head_dim=8)
    small, large = nested_of_sizes(family, [1_500, 6_000], 11)
    assert (small.head_dim, large.head_dim) == (8, 8)
    assert small.width < large.width
    own = init_params(large, jax.random.key(0))
    nested = Nested(large, (small,))
    out = nested.logits(own, jnp.asarray(TOKENS), False)
    config, part = cut(large, own, leading(small))
    assert config == small
    np.testing.assert_array_equal(out[0], logits(small, part))
    np.testing.assert_array_equal(out[1], logits(large, own))
    slopes = jax.jit(
        jax.grad(lambda p: nested.logits(p, jnp.asarray(TOKENS), False)[0].sum() ** 2)
    )(own)
    moved = cut(large, slopes, leading(small))[1]
    assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(moved))
    inside = sum(np.count_nonzero(x) for x in jax.tree.leaves(moved))
    assert inside == sum(np.count_nonzero(x) for x in jax.tree.leaves(slopes))


def test_shapes_of_a_size():
    """The nearest one; beyond 10% none."""
    target = ModelConfig(
        vocab_size=256, width=64, layers=4, heads=4, kv_heads=4, head_dim=16, hidden=160
    )
    assert (
        exit_of_size(target, count(dataclasses.replace(target, layers=2), 0).nonembedding).layers
        == 2
    )
    small = pruned_of_size(target, 30_000, 2)
    assert (small.width, small.layers) == (64, 2)
    assert abs(count(small, 0).nonembedding / 30_000 - 1) < 0.1
    assert pruned_of_size(target, count(target, 0).nonembedding, 0) == target
    with pytest.raises(
        SdslError, match="an early exit of 1000 non-embedding parameters cannot be cut"
    ):
        exit_of_size(target, 1_000)
    with pytest.raises(SdslError, match="an exit after 4 blocks was asked for; the model has 3"):
        early_exit(CONFIG, init_params(CONFIG, jax.random.key(0)), 4)
    with pytest.raises(SdslError, match="does not hold all that is to be kept"):
        cut(CONFIG, init_params(CONFIG, jax.random.key(0)), leading(target))


@pytest.mark.parametrize("tied", [True, False])
def test_a_readout_of_some_ids(tied):
    """Their logits are the model's own, the others have no probability, and the FLOPs are fewer."""
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    own = init_params(config, jax.random.key(2))
    some = dataclasses.replace(config, readout_ids=(1, 4, 9))
    whole, part = logits(config, own), logits(some, own)
    np.testing.assert_allclose(part[..., [1, 4, 9]], whole[..., [1, 4, 9]], rtol=1e-5, atol=1e-6)
    q = np.asarray(jax.nn.softmax(part))
    assert q[..., [0, 2, 3, 5, 6, 7, 8, 10]].max() == 0
    p = np.asarray(jax.nn.softmax(logits(CONFIG, init_params(CONFIG, jax.random.key(3)))))
    alpha, bound = np.minimum(p, q).sum(-1), p[..., [1, 4, 9]].sum(-1)
    assert (alpha <= bound + 1e-6).all()
    assert count(config, 8).flops_per_token - count(some, 8).flops_per_token == 2 * 8 * 16
    with pytest.raises(SdslError, match="different ids below 11, in ascending order"):
        dataclasses.replace(config, readout_ids=(4, 1))


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_truncated_table(tied):
    """It is the whole model with one row for all ids outside the readout, in float32 and int8; ids
    beyond the vocabulary read that row as well. Counts are those of its arrays."""
    whole = dataclasses.replace(CONFIG, tie_embeddings=tied, readout_ids=(1, 4, 9), logit_size=12)
    small = dataclasses.replace(whole, truncated=True)
    own = init_params(small, jax.random.key(4))
    values = nnx.to_pure_dict(own)
    row = np.full(11, 3)
    row[[1, 4, 9]] = range(3)
    same = nnx.to_pure_dict(init_params(whole, jax.random.key(5)))
    same |= values | {"embedding": values["embedding"][row]}
    if not tied:
        same["head"] = jnp.zeros((16, 11)).at[:, jnp.asarray([1, 4, 9])].set(values["head"])
    params = init_params(whole, jax.random.key(5))
    params = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(same))
    tokens = jnp.asarray(TOKENS).at[0, 3].set(11)
    for storage in ("as-loaded", "int8"):
        found, expected = (
            forward(config, store(p, storage), tokens)[0]
            for config, p in ((small, own), (whole, params))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    compact, _ = forward(small, own, tokens, compact=True)
    np.testing.assert_array_equal(compact, forward(small, own, tokens)[0][..., [1, 4, 9]])
    counts = count(small, 8)
    assert counts.total == sum(x.size for x in jax.tree.leaves(own))
    assert counts.nonembedding == count(whole, 8).nonembedding
    assert counts.flops_per_token == count(whole, 8).flops_per_token
    with pytest.raises(SdslError, match="truncated tables need readout_ids"):
        dataclasses.replace(CONFIG, truncated=True)
