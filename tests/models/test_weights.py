"""Models whose matrices are stored in fewer bytes than they compute in."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.checkpoints.identity import identity
from sdsl_jax.checkpoints.loading import LoadOptions, load_model
from sdsl_jax.checkpoints.model_folder import load_model_folder, write_model_folder
from sdsl_jax.checkpoints.storage import digest
from sdsl_jax.errors import SdslError
from sdsl_jax.models import forward, init_params
from sdsl_jax.models.kernels import linear
from sdsl_jax.models.weights import Int8Matrix, activation_dtype, store, type_name

LADDER = "checkpoints/ladder/checkpoints/"
DRAFT = LADDER + "draft-3k-s0.c3f28f34e3/model-1465"


def widened(params):
    """The same values in float32: what the stored matrices stand for."""

    def one(path, x):
        if not isinstance(x, Int8Matrix):
            return x.astype(jnp.float32)
        rows = "embedding" in jax.tree_util.keystr(path)
        return x.values * jnp.expand_dims(x.scales, int(rows))

    is_matrix = lambda x: isinstance(x, Int8Matrix)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_matrix)


@pytest.mark.parametrize("storage", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_model_computes_with_the_values_that_are_stored(storage, small_model):
    """With a tied head, and with another and an embedding of another width: activations, caches and
    logits are float32, and the logits those of a float32 model with the rounded values."""
    other = dataclasses.replace(small_model, tie_embeddings=False, embedding_width=8)
    for config in (small_model, other):
        stored = store(init_params(config, jax.random.key(0)), storage)
        tokens = jax.random.randint(jax.random.key(1), (2, 20), 0, config.vocab_size)
        run = jax.jit(lambda params, tokens, config=config: forward(config, params, tokens)[0])
        for width in (2, 20):  # few rows, and more than the product of few rows takes
            found = run(stored, tokens[:, :width])
            expected = run(widened(stored), tokens[:, :width])
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert activation_dtype(stored) == jnp.float32
    assert type_name(stored) == f"float32, {storage} weights"
    assert type_name(widened(stored)) == "float32"


def test_int8_is_the_nearest_of_255_values(small_model):
    """Each weight is off by at most half a step of its output's scale; zeros stay zeros."""
    params = init_params(small_model, jax.random.key(0))
    params = jax.tree.map(lambda x: x.at[:, 0].set(0) if x.ndim == 2 else x, params)
    stored = store(params, "int8")
    block, plain = stored["blocks"][0]["mlp"]["down"], params["blocks"][0]["mlp"]["down"]
    matrix, exact = block[...], plain[...]
    chex.assert_shape(matrix.scales, exact.shape[1:])
    assert jnp.abs(matrix.values).max() == 127
    scales = np.asarray(matrix.scales)
    error = np.abs(np.asarray(exact) - np.asarray(matrix.values) * scales)
    assert np.all(error <= scales * (1 + 1e-6) / 2)
    assert matrix.scales[0] == 0
    assert not matrix.values[:, 0].any()
    table = stored["embedding"][...]
    chex.assert_shape(table.scales, (small_model.vocab_size,))
    with pytest.raises(IndexError, match="read whole"):
        table[0]


def test_int8_weights_have_no_gradient(small_model):
    stored = store(init_params(small_model, jax.random.key(0)), "int8")

    def loss(scale):
        scaled = jax.tree.map(lambda x: x * scale if x.ndim == 1 else x, stored)
        return forward(small_model, scaled, jnp.zeros((1, 20), jnp.int32))[0].sum()

    with pytest.raises(SdslError, match="int8 have no gradient"):
        jax.grad(loss)(1.0)


def test_a_rounded_model_has_a_name_and_an_identity_of_its_own():
    plain, narrow, narrower = (
        load_model(DRAFT, LoadOptions(weights=w)) for w in ("as-loaded", "bfloat16", "int8")
    )
    names = [m.record.model_id for m in (plain, narrow, narrower)]
    assert names == [names[0], f"{names[0]}@bfloat16", f"{names[0]}@int8"]
    assert len({identity(m) for m in (plain, narrow, narrower)}) == 3
    assert len({m.record.params_digest for m in (plain, narrow, narrower)}) == 3
    assert np.isnan(narrower.record.loss_nats)
    assert np.isnan(narrower.record.validation_bits_per_byte)
    assert plain.record.weight_bytes > narrow.record.weight_bytes > narrower.record.weight_bytes


def test_a_folder_may_hold_bfloat16(tmp_path):
    """It takes half the room, and loads as float32 with the rounded values."""
    plain = load_model_folder(DRAFT)
    stored = store(plain.params, "bfloat16")
    record = dataclasses.replace(plain.record, params_digest=digest(stored))
    about = (plain.tokenizer, record, plain.data)
    write_model_folder(tmp_path / "model", plain.config, stored, *about)
    again = load_model_folder(tmp_path / "model")
    chex.assert_trees_all_equal(again.params, widened(stored))
    assert '"version": 2' in (tmp_path / "model" / "model.json").read_text()
    # What is loaded may be written again as it is.
    write_model_folder(
        tmp_path / "wide",
        plain.config,
        again.params,
        *about[:1],
        dataclasses.replace(record, params_digest=digest(again.params)),
        plain.data,
    )
    assert '"version": 1' in (tmp_path / "wide" / "model.json").read_text()


def test_int8_factors_keep_their_digits_beside_bfloat16_activations():
    # 301 · 1.003 is 301.9; in bfloat16 301 would be 300, and 1.003 would be 1.
    weight = Int8Matrix(jnp.asarray([[100], [100], [101]], jnp.int8), jnp.float32([1.003]))
    for rows in (1, 20):
        (y,) = linear(jnp.ones((rows, 3), jnp.bfloat16), weight, (1,))
        assert y.dtype == jnp.bfloat16
        assert (y == 302).all()
