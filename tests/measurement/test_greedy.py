import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.decoding import Model, Sampling, autoregress, speculate
from sdsl_jax.measurement.greedy import first_divergences
from sdsl_jax.models import ModelConfig, init_params

V = 24


def make(seed: int, dtype, layers: int = 1, width: int = 16) -> Model:
    config = ModelConfig(
        vocab_size=V, width=width, layers=layers, heads=2, kv_heads=1, head_dim=8, hidden=24
    )
    return Model(
        config,
        jax.tree.map(lambda x: (1.5 * x).astype(dtype), init_params(config, jax.random.key(seed))),
    )


def runs(dtype, rows=8, new=40):
    draft, target = make(1, dtype), make(2, dtype, layers=2)
    prompts = np.random.default_rng(0).integers(0, V, (rows, 4))
    plain = autoregress(target, prompts, new_tokens=new, sampling=Sampling(0.0))
    fast = speculate(draft, target, prompts, new_tokens=new, lookahead=3, sampling=Sampling(0.0))
    return target, plain, fast


@pytest.mark.release
def test_float32_runs_agree_token_for_token():
    target, plain, fast = runs(jnp.float32)
    np.testing.assert_array_equal(plain.tokens, fast.tokens)
    assert first_divergences(target, plain, fast) == []


@pytest.mark.slow
def test_bfloat16_runs_part_only_where_the_target_nearly_ties():
    """Whatever parts has a margin of at most three units in the last of bfloat16's 8 bits."""
    target, plain, fast = runs(jnp.bfloat16, rows=64)
    found = first_divergences(target, plain, fast)
    rows = [d.row for d in found]
    assert rows == sorted(set(rows))
    same = np.setdiff1d(np.arange(64), rows)
    np.testing.assert_array_equal(np.asarray(plain.tokens)[same], np.asarray(fast.tokens)[same])
    for d in found:
        assert d.margin <= 3 * 2.0**-7 * d.largest_logit


@pytest.mark.release
def test_a_divergence_is_found_with_its_margin():
    target, plain, _ = runs(jnp.float32)
    tokens = np.asarray(plain.tokens).copy()
    tokens[3, 20:] = (tokens[3, 20:] + 1) % V
    lengths = np.asarray(plain.lengths).copy()
    lengths[5] -= 2
    found = first_divergences(target, plain, plain._replace(tokens=tokens, lengths=lengths))
    assert [(d.row, d.position) for d in found] == [(3, 20), (5, lengths[5])]
    assert all(0 < d.margin < 2 * d.largest_logit for d in found)
