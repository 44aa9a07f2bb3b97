"""A target that is split over devices, with a draft that each of them holds: the same tokens, and the memory that was foretold.

The number of devices is fixed when JAX starts, so the checks run in a process of their own.
"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from published_checkpoints import copy_checkpoint
from small_protocol import PROMPTS

from sdsl_jax.checkpoints.split import share_devices
from sdsl_jax.models import ModelConfig, count

# Arrays of checkpoints this small are split all the same.
COMMAND = """
import sys
from sdsl_jax.checkpoints import layout
layout._SMALL = 2
from sdsl_jax.cli import main
sys.argv = ["sdsl", *sys.argv[1:]]
main()
"""

CHECKS = """
import math, sys
import jax, jax.numpy as jnp, numpy as np
from sdsl_jax.checkpoints.split import device_memory, split_shardings
from sdsl_jax.decoding import Model, Sampling, autoregress, speculate
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.models import ModelConfig, forward, init_params, prefill

tied, kv_heads = sys.argv[1] == "tied", int(sys.argv[2])
big = ModelConfig(vocab_size=512, width=256, layers=2, heads=8, kv_heads=kv_heads, head_dim=32, hidden=512, tie_embeddings=tied)
small = ModelConfig(vocab_size=512, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, hidden=64)
target, draft = (init_params(c, jax.random.key(i)) for i, c in enumerate((big, small)))
split = jax.device_put(target, split_shardings(big, 8))
whole = jax.device_put(draft, split_shardings(small, 8, repeated=True))
prompts = np.random.default_rng(0).integers(0, 512, (4, 6), dtype=np.int32)

def shard_bytes(tree):
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

# Every large array is split, and so are the cache and the logits.
large = [x for x in jax.tree.leaves(split) if x.size >= 2**16]
assert len(large) == 9 + (not tied) and not any(x.sharding.is_fully_replicated for x in large)
assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(whole))
cache = prefill(big, split, prompts, capacity=32)
foretold = device_memory(big, 8, 4, rows=4, positions=32, width=1)
assert shard_bytes(split) == foretold.weights
assert shard_bytes(cache) == foretold.cache == 2 * 2 * 4 * kv_heads * 32 * 32 * 4 / 8
logits = jax.jit(lambda p, t: forward(big, p, t)[0])(split, prompts)
assert logits.sharding.shard_shape(logits.shape)[-1] == 64, logits.sharding
assert device_memory(small, 8, 4, rows=4, positions=32, width=1, repeated=True).weights == shard_bytes(draft)

for temperature in (0.0, 1.0):
    how = dict(new_tokens=20, sampling=Sampling(temperature), seed=3)
    one = speculate(Model(small, draft), Model(big, target), prompts, lookahead=3, **how)
    many = speculate(Model(small, whole), Model(big, split), prompts, lookahead=3, **how)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_array_equal(one.events.verified, many.events.verified)
    np.testing.assert_array_equal(
        autoregress(Model(big, target), prompts, **how).tokens,
        autoregress(Model(big, split), prompts, **how).tokens,
    )

def alpha(q, p):
    found = pairwise_overlap({"q": Model(small, q)}, {"p": Model(big, p)}, prompts, first=0)
    return found.pairs["q", "p"].acceptance

np.testing.assert_allclose(alpha(draft, target), alpha(whole, split), rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("readout", "kv_heads"), [("tied", 4), ("untied", 1)])
def test_a_split_target_with_a_whole_draft_decodes_the_same_tokens(readout, kv_heads):
    """With 16 heads and rows, and with 4, which 8 devices split within the heads."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # The product of few rows is one of a CPU's, and would gather the weights.
    environment = os.environ | {"XLA_FLAGS": flags, "SDSL_NO_SMALL_MATMUL": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECKS, readout, str(kv_heads)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_pair_of_checkpoints_on_eight_devices_gives_what_one_device_gives(tmp_path):
    """By the command, which says what every device will hold before it reads anything."""
    pytest.importorskip("safetensors")
    target, draft = (copy_checkpoint(name, tmp_path / name) for name in ("llama-2", "smollm2"))
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def measure(devices):
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        command = ["measure", "--target", target, "--draft", draft, "--devices", devices, "--json"]
        command += ["--prompts", tmp_path / "prompts.txt", "--count", 6, "--prompt-tokens", 8]
        command += ["--new-tokens", 8, "--lookahead", "1,3", "--temperature", 0]
        command += ["--tokens", tmp_path / f"{devices}.jsonl"]
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *map(str, command)],
            env=os.environ | {"XLA_FLAGS": flags, "SDSL_NO_SMALL_MATMUL": "1"},
            capture_output=True,
            text=True,
        )

    one, eight = measure(1), measure(8)
    assert (one.returncode, eight.returncode) == (0, 0), eight.stderr
    alphas = [json.loads(each.stdout)["alpha"]["estimate"] for each in (one, eight)]
    assert alphas[0] == pytest.approx(alphas[1], rel=1e-5)
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "8.jsonl").read_text()
    many = measure(9)
    assert many.returncode == 2
    assert "the weights are to be split over 9 devices; there are 8." in many.stderr


def test_what_devices_will_hold_is_said_in_one_line():
    big = ModelConfig(
        vocab_size=32_000, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, hidden=14_336
    )
    small = dataclasses.replace(big, width=512, layers=4, heads=4, kv_heads=2, hidden=1_536)
    sizes = {"rows": 32, "positions": 256, "width": 5}
    alone = share_devices(big, small, 1, 2, **sizes)
    weights = 2 * count(big, 128).total
    assert alone.target.weights == pytest.approx(weights, rel=1e-3)
    assert alone.target.cache == 2 * 2 * 32 * 32 * 8 * 128 * 256
    assert alone.target.logits == 4 * 32 * 5 * 32_000
    assert alone.repeated
    assert "each of 1 devices will hold " in str(alone)
    assert "draft whole" in str(alone)
    assert not share_devices(small, big, 1, 2, **sizes).repeated
