"""The product of few rows against XLA's and against double precision."""

import dataclasses
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_checkpoints import copy_checkpoint

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.decoding import NgramDraft, Sampling, autoregress, speculate
from sdsl_jax.errors import SdslError
from sdsl_jax.models import forward, init_params
from sdsl_jax.models import small_matmul as module
from sdsl_jax.models.small_matmul import small_matmul
from sdsl_jax.models.weights import Int8Matrix

needs_compiler = pytest.mark.usefixtures("compiled_product")
EPSILON = np.finfo(np.float32).eps


def random(rows, inner, columns, dtype="float32", seed=0):
    key_x, key_w = jax.random.split(jax.random.key(seed))
    x, w = jax.random.normal(key_x, (rows, inner)), jax.random.normal(key_w, (inner, columns))
    return x, w.astype(dtype)


def _whole_numbers(w):
    """Whole numbers up to 127 and factors, by NumPy; a sketch of what `store` does."""
    scales = np.abs(np.asarray(w)).max(axis=0, initial=1e-3) / 127
    return jnp.asarray(np.round(np.asarray(w) / scales), jnp.int8), jnp.asarray(scales, jnp.float32)


@needs_compiler
@given(
    st.integers(0, 20),
    st.integers(0, 70),
    st.integers(1, 150),
    st.sampled_from(["float32", "bfloat16", "int8"]),
    st.booleans(),
)
@settings(max_examples=9)
def test_it_is_the_product_to_float32_rounding(rows, inner, columns, dtype, transposed):
    """Within D units of rounding of Σ|x·w|, the bound of any order of summation."""
    x, w = random(rows, inner, columns, "float32" if dtype == "int8" else dtype)
    weight = w.T if transposed else w
    if dtype == "int8":
        weight = Int8Matrix(*_whole_numbers(w))
        w = np.asarray(weight.values) * np.asarray(weight.scales)
        weight = Int8Matrix(weight.values.T, weight.scales) if transposed else weight
    found = small_matmul(x, weight, transposed)
    wide_x, wide_w = np.asarray(x, float), np.asarray(w, float)
    bound = (inner + 2) * EPSILON * np.abs(wide_x) @ np.abs(wide_w)
    assert found.shape == (rows, columns)
    assert found.dtype == jnp.float32
    if dtype != "int8":
        assert small_matmul(x.astype(dtype), w, False).dtype == (x.astype(dtype) @ w).dtype
    assert np.all(np.abs(np.asarray(found, float) - wide_x @ wide_w) <= bound)


@needs_compiler
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_is_the_same_to_the_last_bit_however_many_there_are(transposed):
    """On one thread and on several: the second matrix is large enough to be shared."""
    for inner, columns in ((50, 101), (300, 1003)):
        x, w = random(16, inner, columns)
        w = w.T if transposed else w
        every = small_matmul(x, w, transposed)
        for rows in (1, 2, 5, 7, 9):
            np.testing.assert_array_equal(small_matmul(x[:rows], w, transposed), every[:rows])


@needs_compiler
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_and_batches_are_those_of_the_plain_product(transposed):
    x, w = random(3, 20, 30)
    w = w.T if transposed else w
    plain = lambda x, w: x @ (w.T if transposed else w)  # noqa: E731
    own, reference = (
        jax.grad(lambda x, w, f=f: jnp.sin(f(x, w)).sum(), (0, 1))(x, w)
        for f in (lambda x, w: small_matmul(x, w, transposed), plain)
    )
    for one, other in zip(own, reference):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    batch = jnp.stack([x, 2 * x])
    found = jax.vmap(lambda x: small_matmul(x, w, transposed))(batch)
    np.testing.assert_allclose(found, jax.vmap(lambda x: plain(x, w))(batch), rtol=1e-5, atol=1e-5)


@needs_compiler
def test_which_products_it_serves():
    def serves(rows, weight, dtype="float32"):
        x = jax.ShapeDtypeStruct((1, rows, weight[0]), "float32")
        return module.serves(x, jax.ShapeDtypeStruct(weight, dtype))

    assert [serves(n, (1024, 1024)) for n in (0, 1, 16, 17)] == [False, True, True, False]
    assert [serves(n, (512, 512)) for n in (8, 9)] == [True, False]
    assert not serves(2, (64, 64))
    for dtype in ("bfloat16", "int8"):
        assert [serves(n, (64, 64), dtype) for n in (1, 16, 17)] == [True, True, False]
    assert not serves(2, (1024, 1024), "float16")


@needs_compiler
def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(SdslError, match=r"rows of shape \(4, 5\) cannot be multiplied"):
        module.small_matmul(jnp.zeros((4, 5)), jnp.zeros((6, 7)))
    with pytest.raises(SdslError, match=r"weights of shape \(6, 7\), transposed"):
        module.small_matmul(jnp.zeros((4, 6)), jnp.zeros((6, 7)), True)


@pytest.fixture
def everywhere(monkeypatch):
    """Every product of up to 16 rows."""
    monkeypatch.setattr(module, "_MOST_ROWS", ((1, 16),))
    return monkeypatch


@needs_compiler
def test_models_and_their_gradients_are_the_same_with_it(everywhere, small_model):
    """Forward passes and gradients, with a tied head and another."""
    for config in (small_model, dataclasses.replace(small_model, tie_embeddings=False)):
        # Closures of their own: no other test has compiled them.
        params = init_params(config, jax.random.key(0))
        tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, config.vocab_size)

        def loss(params, config=config, tokens=tokens):
            return jnp.square(forward(config, params, tokens)[0]).mean()

        own = jax.jit(jax.value_and_grad(loss))(params)
        with everywhere.context() as without:
            without.setattr(module, "_MOST_ROWS", ())
            plain = jax.jit(jax.value_and_grad(lambda params, f=loss: f(params)))(params)
        assert "small_matmul" in jax.jit(loss).lower(params).as_text()
        chex.assert_trees_all_close(own, plain, rtol=1e-4, atol=1e-6)


@needs_compiler
def test_a_bfloat16_model_stays_one(everywhere, small_model):
    """Activations keep their type, as with XLA's product."""
    params = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), init_params(small_model, jax.random.key(0))
    )
    tokens = jnp.arange(4)[None]
    own = jax.jit(lambda params: forward(small_model, params, tokens)[0])(params)
    everywhere.setattr(module, "_MOST_NARROW_ROWS", ())
    plain = jax.jit(lambda params: forward(small_model, params, tokens)[0])(params)
    assert own.dtype == plain.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(own, float), np.asarray(plain, float), atol=0.1)


@needs_compiler
@pytest.mark.slow
def test_published_greedy_tokens_are_those_of_xla(everywhere, tmp_path):
    jax.clear_caches()
    target = load_model(copy_checkpoint("smollm2", tmp_path / "smollm2"))
    prompt = np.arange(1, 9)[None]
    options = dict(new_tokens=12, sampling=Sampling(0.0))
    own = autoregress(target.model, prompt, **options).tokens
    rounds = speculate(
        NgramDraft(target.config.vocab_size), target.model, prompt, lookahead=3, **options
    ).tokens
    everywhere.setattr(module, "_MOST_ROWS", ())
    jax.clear_caches()
    np.testing.assert_array_equal(own, autoregress(target.model, prompt, **options).tokens)
    np.testing.assert_array_equal(own, rounds)
    jax.clear_caches()


def test_without_a_compiler_xla_serves(monkeypatch, tmp_path):
    """And the reason is a sentence that says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    missing = module._register("float32")
    assert missing.why == "no C++ compiler was found"
    with monkeypatch.context() as patched:
        patched.delenv("SDSL_NO_SMALL_MATMUL", raising=False)
        patched.setattr(module, "_load", lambda weights: missing)
        assert module.unavailable() == (
            "No C++ compiler was found; install a C++ compiler, on Debian with apt install g++."
        )
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'x.cc:1: error: no header' >&2; exit 1\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    missing = module._register("float32")
    assert missing.why.endswith("cannot compile it: x.cc:1: error: no header")
    assert "CXX" in missing.remedy
    assert not (tmp_path / "sdsl_jax").exists()


def test_it_is_compiled_once_and_kept(monkeypatch, tmp_path):
    """In a folder of the user's own, and nowhere if no cache is wanted."""
    made, loaded = [], []

    def compile_(output, weights):
        made.append(output)
        output.write_bytes(b"so")
        return output

    def load(path):
        if Path(path).read_bytes() != b"so":
            raise OSError("invalid ELF header")
        loaded.append(Path(path))

    monkeypatch.setattr(module, "_compile", compile_)
    monkeypatch.setattr(module.ctypes, "CDLL", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scratch, folder = tmp_path / "scratch", tmp_path / "cache" / "sdsl_jax" / "kernels"
    scratch.mkdir()

    def library():
        """Whether it was compiled, and the folder that it was loaded from."""
        before = len(made)
        module._library(scratch, "float32")
        return len(made) > before, loaded[-1].parent

    monkeypatch.setenv("SDSL_NO_CACHE", "1")
    assert library() == (True, scratch)
    assert not folder.exists()
    monkeypatch.delenv("SDSL_NO_CACHE")
    assert library() == (True, folder)
    assert library() == (False, folder)
    kept = loaded[-1]
    assert [path.name for path in folder.iterdir()] == [kept.name]
    kept.write_bytes(b"cut off")
    assert library() == (True, folder)
    kept.chmod(0o777)  # anyone may have written it
    assert library() == (True, folder)
    assert library() == (False, folder)
    folder.chmod(0o777)
    assert library() == (True, scratch)
    folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert library() == (True, scratch)


def test_threads_that_trace_at_once_load_it_once(monkeypatch):
    """XLA refuses a second handler of the same name."""
    calls = []

    def register(weights):
        calls.append(weights)
        time.sleep(0.05)

    monkeypatch.setattr(module, "_register", register)
    monkeypatch.setattr(module, "_absences", {})
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(module._load, ["float32"] * 4)) == [None] * 4
    assert calls == ["float32"]


def test_it_can_be_left_out():
    code = "from sdsl_jax.models.small_matmul import unavailable; print(unavailable())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"SDSL_NO_SMALL_MATMUL": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "SDSL_NO_SMALL_MATMUL is set; unset that variable.\n"


def test_on_an_accelerator_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("SDSL_NO_SMALL_MATMUL", "1")
    assert module.absence() is None
    assert module.unavailable() == "It is for CPUs, and JAX computes on gpu."
