import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.decoding import Sampling, probabilities
from sdsl_jax.decoding.noise import round_noise, row_keys
from sdsl_jax.decoding.sampling import over_all_ids
from sdsl_jax.errors import SdslError

jitted = jax.jit(probabilities)


def reference(logits, temperature, top_k, top_p, min_p):
    """The filters spelled out in float64, token by token."""
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    if top_k is not None:
        probs = np.where(probs >= np.sort(probs)[::-1][min(top_k, len(probs)) - 1], probs, 0)
        probs /= probs.sum()
    if top_p is not None:
        kept, mass = [], 0.0
        for token in np.argsort(-probs):
            if mass >= top_p and kept:
                break
            kept.append(token)
            mass += probs[token]
        probs = np.where(np.isin(np.arange(len(probs)), kept), probs, 0)
        probs /= probs.sum()
    if min_p is not None:
        probs = np.where(probs >= min_p * probs.max(), probs, 0)
        probs /= probs.sum()
    return probs


@given(
    st.integers(0, 1000),
    st.sampled_from([0.5, 0.7, 1.0, 1.3]),
    st.sampled_from([None, 1, 3, 50]),
    st.sampled_from([None, 0.1, 0.6, 0.95, 1.0]),
    st.sampled_from([None, 0.0, 0.05, 0.3, 1.0]),
)
def test_filters_against_the_definition(seed, temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(0, 2, 12).astype(np.float32)
    found = np.asarray(jitted(jnp.asarray(logits), Sampling(temperature, top_k, top_p, min_p)))
    expected = reference(logits.astype(float), temperature, top_k, top_p, min_p)
    # At a mass of exactly 1 or a tie the last token may fall on either side of rounding; seeds here
    # meet neither but top_p = 1.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.sum() == pytest.approx(1, abs=1e-6)


def test_temperature_zero_is_greedy_whatever_the_filters():
    logits = jnp.array([[1.0, 3.0, 2.0]])
    for sampling in (Sampling(0.0), Sampling(0.0, top_k=2, top_p=0.5, min_p=0.1)):
        np.testing.assert_array_equal(probabilities(logits, sampling)[0], [0, 1, 0])


def test_temperature_acts_before_the_filters():
    """At T = 2 the second token belongs to the mass of 0.6; at T = 1 the first one alone makes it up."""
    logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    assert (np.asarray(probabilities(logits, Sampling(2.0, top_p=0.6))) > 0).sum() == 2
    assert (np.asarray(probabilities(logits, Sampling(1.0, top_p=0.6))) > 0).sum() == 1


def test_bfloat16_logits_give_float32_probabilities():
    logits = jax.random.normal(jax.random.key(0), (7,), jnp.bfloat16)
    found = probabilities(logits, Sampling())
    assert found.dtype == jnp.float32
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.1}, "min_p is -0.1"),
    ],
)
def test_settings_outside_their_range_are_refused(changes, message):
    with pytest.raises(SdslError, match=message):
        Sampling(**changes).check()


def test_noise_is_that_of_jax_random_to_the_last_bit():
    G, V, starts = 3, 7, np.array([0, 5, 2**31 - 2], np.int32)
    keys = row_keys(11, np.array([0, 1, 2**32 - 1]))
    noise = round_noise(keys, jnp.asarray(starts), G, V)
    tiny = np.finfo(np.float32).tiny
    for row, start in enumerate(starts):
        key = jax.random.fold_in(keys[row], start)
        uniforms = jax.random.uniform(key, (G + 1, V + 1), minval=tiny)
        gumbels = -jnp.log(-jnp.log(uniforms[:, :V]))
        np.testing.assert_array_equal(noise.uniforms[row], uniforms[1:, V])
        np.testing.assert_array_equal(noise.residual[row], gumbels[0])
        for number in range(G):
            found = noise.draft(number, None)[row]
            np.testing.assert_array_equal(found, gumbels[number + 1])
    # A draft of some ids has the noise of these.
    ids = jnp.asarray([[6, 0], [2, 2], [3, 5]])
    np.testing.assert_array_equal(
        noise.draft(1, ids), jnp.take_along_axis(noise.draft(1, None), ids, axis=1)
    )


def test_probabilities_of_some_ids_over_all():
    probs, ids = np.random.default_rng(0).random((2, 3, 2)), np.array([[[4, 1]] * 3, [[0, 0]] * 3])
    whole = np.zeros((2, 3, 5), np.float32)
    for row, at in np.ndindex(2, 3):
        np.add.at(whole[row, at], ids[row, at], probs[row, at].astype(np.float32))
    found = over_all_ids(jnp.asarray(probs, jnp.float32), jnp.asarray(ids), 5)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(over_all_ids(jnp.ones(1), jnp.asarray([2]), 4), np.eye(4)[2])
