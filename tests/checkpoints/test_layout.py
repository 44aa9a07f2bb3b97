"""Layouts over devices and processes. The number of devices is fixed when JAX starts, so the runs are child processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import parallel_child
import pytest
from jax.sharding import AbstractMesh

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.layout import Layout, make_layout
from sdsl_jax.config import ParallelConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.processes import initialise_distributed
from sdsl_jax.training.step import train_step

CHILD = Path(parallel_child.__file__)

# Meshes differ in the order of sums over some hundred tokens, each rounded to a relative 6e-8; Adam
# divides a gradient by its own size, which enlarges that wherever a gradient is itself near
# rounding.
FIRST, LATER = 2e-6, 1e-5


def start(what: str, folder: Path, devices: int, **environment: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(CHILD.parents[1]),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, str(CHILD), what, str(folder)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(*children: subprocess.Popen) -> None:
    try:
        outputs = [child.communicate(timeout=300)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0, output


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    finish(start("one", folder, 8))
    return json.loads((folder / "one-0.json").read_text())


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [
        start(
            "several", folder, 4, SDSL_COORDINATOR=address, SDSL_PROCESSES="2", SDSL_PROCESS=str(i)
        )
        for i in range(2)
    ]
    finish(*both)
    return folder, [json.loads((folder / f"several-{i}.json").read_text()) for i in range(2)]


def assert_same_training(reported, reference):
    reported, reference = np.array(reported), np.array(reference)
    np.testing.assert_allclose(reported[0], reference[0], rtol=FIRST)
    np.testing.assert_allclose(reported[:, 0], reference[:, 0], rtol=LATER)
    np.testing.assert_allclose(reported[:, 1], reference[:, 1], rtol=10 * LATER)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8x1", "1x8", "2x4"])
def test_every_mesh_trains_alike(one, mesh):
    assert_same_training(one[mesh]["reported"], one["1x1"]["reported"])
    assert one[mesh]["gradient_difference"] < 1e-5
    losses = [loss for loss, _ in one[mesh]["reported"]]
    assert len(set(losses)) == parallel_child.STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "share"), [("1x1", 1), ("8x1", 1), ("1x8", 1 / 8), ("2x4", 1 / 4)]
)
def test_a_device_keeps_its_part_of_the_state(one, mesh, share):
    assert one[mesh]["stays"]
    assert one[mesh]["share"] == pytest.approx(share, abs=0.02)


@pytest.mark.slow
def test_weights_are_gathered_and_activations_stay(one):
    """With many tokens to a batch, what is gathered has the sides of a matrix, or of a part of it; nothing else moves."""
    found, m = one["collectives"], parallel_child.MODEL
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
    query, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    sides = {m.vocab_size, m.width, query, kv, query + 2 * kv, m.hidden, 2 * m.hidden}
    assert all(len(shape) == 2 and sides.issuperset(shape) for shape in found["all-gather"])
    assert len(found["all-gather"]) >= 5


@pytest.mark.slow
def test_a_checkpoint_restores_onto_any_mesh_bit_for_bit(one):
    assert len(set(one["digests"])) == 1
    np.testing.assert_allclose(one["continued"], one["continued"][0], rtol=FIRST)


@pytest.mark.slow
def test_a_resumed_run_on_a_mesh_equals_an_uninterrupted_one(one):
    """Bit for bit, on the mesh that it began on."""
    assert one["resumed"] == one["digests"][0]


@pytest.mark.slow
def test_two_processes_train_as_one_does(several, one):
    folder, results = several
    for i, result in enumerate(results):
        assert (result["devices"], result["mesh"]) == ([8, 4], [2, 4])
        assert_same_training(result["reported"], one["2x4"]["reported"])
        assert result["stays"]
        assert result["share"] == pytest.approx(1 / 4, abs=0.02)
        assert result["refused"].startswith("the processes computed different initial states")
        assert result["signals"] == [signal.SIGTERM]
        assert (result["primary"], result["agreed"], result["any_process"]) == (
            i == 0,
            10,
            [True, False],
        )
    # Parameters are the same, wherever they are, and so is what they are worth.
    digests = {
        *results[0]["digests"],
        *results[1]["digests"],
        parallel_child.read_on_one_device(folder),
    }
    assert len(digests) == 1
    assert results[0]["evaluated"] == results[1]["evaluated"]
    assert storage.restore(folder / "saved", jax.eval_shape(parallel_child.init)).metadata == {
        "by": "both"
    }


def test_one_device_is_left_alone():
    layout = make_layout(ParallelConfig(), jax.devices()[:1])
    assert layout.step(train_step) is train_step
    state = jax.device_put(parallel_child.init(), jax.devices()[0])
    for before, after in zip(
        jax.tree.leaves(state), jax.tree.leaves(layout.place(state)), strict=True
    ):
        assert before.unsafe_buffer_pointer() == after.unsafe_buffer_pointer()
        assert before.sharding == after.sharding
    assert layout.whole(state) is state
    assert (
        layout.place_batch(parallel_child.tokens()[0]).sharding
        == jax.tree.leaves(state)[0].sharding
    )


def test_zero_is_all_that_the_other_axis_leaves():
    for config in (ParallelConfig(0, 1), ParallelConfig(1, 0)):
        assert make_layout(config, jax.devices()[:1]).mesh.devices.shape == (1, 1)


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (
            2,
            1,
            r"parallel.data = 2 and parallel.fsdp = 1 need 2 devices, and there is 1 cpu device\.",
        ),
        (
            0,
            3,
            r"parallel.data is 0, for all devices that parallel.fsdp = 3 leaves, but 3 does not divide the 1 cpu device",
        ),
    ],
)
def test_devices_that_are_not_there(data, fsdp, message):
    with pytest.raises(SdslError, match=message):
        make_layout(ParallelConfig(data, fsdp), jax.devices()[:1])


def imagined(data: int, fsdp: int) -> Layout:
    """A layout of devices that are not there: enough to ask what would be split."""
    return Layout(AbstractMesh((data, fsdp), ("data", "fsdp")))


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((512, 128), 8, ("fsdp",)),
        ((128, 512), 8, ("fsdp",)),
        ((256, 256), 8, ("fsdp",)),
        ((1000, 96), 16, (None, "fsdp")),  # the first axis cannot be split
        ((255, 256), 8, ()),  # small
        ((100_000,), 8, ()),
        ((), 8, ()),
        ((512, 512), 1, ()),
    ],
)
def test_what_is_split_along_which_axis(shape, fsdp, spec):
    sharding = imagined(2, fsdp).state_shardings({"x": jax.ShapeDtypeStruct(shape, np.float32)})[
        "x"
    ]
    assert tuple(sharding.spec) == spec


def test_a_large_array_that_cannot_be_split():
    state = {"w": jax.ShapeDtypeStruct((512, 256), np.float32)}
    with pytest.raises(
        SdslError, match=r"parallel.fsdp is 3, which divides no axis of \['w'\] \[512, 256\]"
    ):
        imagined(1, 3).state_shardings(state)


def test_rows_that_cannot_be_split_evenly():
    imagined(2, 4).check_batch(16)
    with pytest.raises(
        SdslError,
        match=r"12 rows, .* 8 devices \(parallel.data = 2, parallel.fsdp = 4\); .* a multiple of 8",
    ):
        imagined(2, 4).check_batch(12)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SDSL_PROCESSES": "2"}, "SDSL_COORDINATOR and SDSL_PROCESS are not set"),
        (
            {"SDSL_COORDINATOR": "h:1", "SDSL_PROCESSES": "2", "SDSL_PROCESS": "2"},
            "SDSL_PROCESS is '2' of SDSL_PROCESSES '2'",
        ),
        (
            {"SDSL_COORDINATOR": "h", "SDSL_PROCESSES": "2", "SDSL_PROCESS": "1"},
            "SDSL_COORDINATOR is 'h'; it must be host:port",
        ),
        ({}, "could not be joined .*; set SDSL_COORDINATOR, SDSL_PROCESSES, SDSL_PROCESS"),
    ],
)
def test_an_environment_without_sense(monkeypatch, environment, message):
    for name in ("SDSL_COORDINATOR", "SDSL_PROCESSES", "SDSL_PROCESS", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SdslError, match=message):
        initialise_distributed()
