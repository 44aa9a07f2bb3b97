import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, Transformer, count, init_cache, init_params
from sdsl_jax.models import forward as eager_forward
from sdsl_jax.models.kernels import rotary_tables

forward = jax.jit(eager_forward, static_argnums=0)

VARIANTS = {
    "grouped": {},
    "untied": {"tie_embeddings": False},
    "plain": {"qk_norm": False, "kv_heads": 4},
    "one_head": {"heads": 1, "kv_heads": 1, "layers": 1},
}
# Every variant is run by the full check.
SOME = [
    pytest.param(name, marks=[] if name == "grouped" else pytest.mark.slow) for name in VARIANTS
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_equal_the_instantiated_model(small_model, variant):
    config = dataclasses.replace(small_model, **VARIANTS[variant])
    counts = count(config, context=10)
    leaves = jax.tree_util.tree_leaves_with_path(init_params(config, jax.random.key(0)))
    total = sum(leaf.size for _, leaf in leaves)
    tables = sum(
        leaf.size for path, leaf in leaves if "embedding" in str(path) or "head'" in str(path)
    )
    assert counts.total == total
    assert counts.nonembedding == total - tables
    assert counts.weight_bytes == 4 * total
    cache = init_cache(config, 1, 1)
    assert counts.cache_bytes_per_token == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


def test_flops_equal_those_of_the_compiled_model(small_model):
    """XLA's count of a forward pass: attention covers all T positions of every query, and elementwise work adds a little."""
    config = dataclasses.replace(
        small_model, width=64, heads=4, head_dim=16, hidden=128, vocab_size=256
    )
    T = 64
    tokens = jnp.zeros((1, T), jnp.int32)
    params = init_params(config, jax.random.key(0))
    compiled = jax.jit(lambda p, t: eager_forward(config, p, t)[0]).lower(params, tokens).compile()
    assert count(config, context=T).flops_per_token * T == pytest.approx(
        compiled.cost_analysis()["flops"], rel=0.15
    )


@pytest.mark.parametrize("variant", SOME)
def test_causality_by_gradients(small_model, variant):
    """The logits at position t have a zero gradient to every later embedding and a non-zero one to every earlier."""
    config = dataclasses.replace(small_model, **VARIANTS[variant])
    params = jax.tree.map(lambda x: x * 2, init_params(config, jax.random.key(1)))
    tokens = jnp.arange(9)[None] % config.vocab_size
    model = nnx.merge(
        nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))[0], params
    )

    def from_embeddings(x):
        positions = jnp.arange(9)[None]
        rotation = rotary_tables(positions[..., None], config.head_dim, config.rope_theta)
        for block in model.blocks:
            x, _ = block(x, positions, rotation, None)
        return model.final_norm(x)[0]

    x = params["embedding"][...][tokens]
    jacobian = jax.jit(jax.jacobian(from_embeddings))(x)[:, :, 0]  # [T_out, D, T_in, D]
    size = np.abs(np.asarray(jacobian)).max(axis=(1, 3))
    assert (size[np.triu_indices(9, 1)] == 0).all()
    assert (size[np.tril_indices(9)] > 0).all()


@pytest.mark.parametrize("variant", SOME)
def test_cached_equals_full_forward(small_model, variant):
    """Ragged rows fed in pieces of different widths, with a rollback in between, give the logits of one full pass."""
    config = dataclasses.replace(small_model, **VARIANTS[variant])
    params = init_params(config, jax.random.key(2))
    tokens = jax.random.randint(jax.random.key(3), (3, 12), 0, config.vocab_size)
    full, _ = forward(config, params, tokens)
    cache = init_cache(config, 3, 14)
    offsets = jnp.array([0, 1, 2])  # rows run ahead of one another
    _, cache = forward(config, params, tokens[:, :4], cache=cache)
    wrong = jnp.full((3, 3), 5)
    _, cache = forward(
        config, params, wrong, 4 + jnp.arange(3)[None] + jnp.zeros((3, 1), jnp.int32), cache
    )  # rolled back below
    rows = jnp.arange(3)[:, None]
    for start, width in ((2, 3), (5, 1), (6, 4)):
        positions = offsets[:, None] + start + jnp.arange(width)[None]
        logits, cache = forward(config, params, tokens[rows, positions], positions, cache)
        np.testing.assert_allclose(logits, full[rows, positions], atol=2e-5)


def test_positions_matter_only_by_their_differences(small_model):
    """Rotary attention is invariant to a shift of all positions."""
    params = init_params(small_model, jax.random.key(4))
    tokens = jnp.array([[1, 5, 2, 7, 7, 3]])
    shifted = jnp.arange(6)[None] + 100
    # Without a cache positions only rotate; the causal mask is by order.
    here, _ = forward(small_model, params, tokens)
    there, _ = forward(small_model, params, tokens, shifted)
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_impossible_shapes_are_refused():
    with pytest.raises(SdslError, match="3 query heads cannot share 2"):
        ModelConfig(vocab_size=4, width=8, layers=1, heads=3, kv_heads=2, head_dim=4, hidden=8)
    with pytest.raises(SdslError, match="layers is -1"):
        ModelConfig(vocab_size=4, width=8, layers=-1, heads=1, kv_heads=1, head_dim=4, hidden=8)


def test_what_only_published_models_set_leaves_the_description_of_ours_alone(small_model):
    """Rungs and shipped ladders are found by digests of it."""
    described = dataclasses.replace(small_model, width=32).description()
    assert list(described) == [
        *("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden"),
        *("qk_norm", "tie_embeddings", "rope_theta", "norm_epsilon"),
    ]
    assert dataclasses.replace(small_model, qkv_bias=True).description()["qkv_bias"] is True
