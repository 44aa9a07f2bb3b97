"""Whole ladders on several devices and in several processes, by the command line, against one device."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import tiny

from sdsl_jax.config import to_toml
from sdsl_jax.records import read_table


def _start(folder, out, devices, *arguments, program=(), **environment):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [
            sys.executable,
            *(program or ("-m", "sdsl_jax.cli")),
            "train",
            str(folder / "tiny.toml"),
            "--out",
            str(folder / out),
            *arguments,
        ],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _finish(*children):
    outputs = [child.communicate(timeout=300)[0] for child in children]
    for child, output in zip(children, outputs):
        assert child.returncode == 0, output
    return outputs


def _losses(folder):
    """Losses of every step, by segment."""
    return {
        str(file.relative_to(folder)): [
            json.loads(line)["loss_nats"] for line in file.read_text().splitlines()
        ]
        for file in sorted(folder.rglob("metrics.jsonl"))
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(
        "We the people of the United States, to form a more perfect union. " * 600
    )
    config = tiny(
        data={"source": [str(tmp_path / "text.txt")]},
        ladder={
            "draft_params": [600],
            "draft_tokens": [2_048, 4_096],
            "target_params": [900],
            "target_tokens": [2_048],
        },
        training={"evaluation_windows": 4, "warmup_tokens": 256},
    )
    (tmp_path / "tiny.toml").write_text(to_toml(config))
    return tmp_path


@pytest.mark.release
def test_a_ladder_on_a_mesh_and_in_two_processes_is_that_of_one_device(folder):
    """Within 1e-3 over sixteen steps at most: rounding differs by the order of sums, and training lets it grow."""
    _finish(_start(folder, "one", 1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        _start(
            folder,
            "two",
            2,
            "--distributed",
            "--parallel.data=2",
            "--parallel.fsdp=2",
            SDSL_COORDINATOR=f"127.0.0.1:{port}",
            SDSL_PROCESSES="2",
            SDSL_PROCESS=str(process),
        )
        for process in range(2)
    ]
    outputs = _finish(*both)
    assert "the ladder is complete" in outputs[0]
    assert "Trained models" not in outputs[1]
    _finish(_start(folder, "mesh", 4, "--parallel.data=0", "--parallel.fsdp=2"))
    wanted = _losses(folder / "one")
    assert len(wanted) == 5
    for other in ("two", "mesh"):
        found = _losses(folder / other)
        assert found.keys() == wanted.keys()
        for segment, losses in wanted.items():
            assert found[segment] == pytest.approx(losses, rel=1e-3)
        records = [read_table(folder / name / "records", "models") for name in ("one", other)]
        assert [r.model_id for r in records[0]] == [r.model_id for r in records[1]]
        for one, several in zip(*records):
            assert several.loss_nats == pytest.approx(one.loss_nats, rel=1e-3)


# One process sees the first checkpoint that it reads as damaged, as on a shared file system whose
# views differ for a while; or one cannot write the first manifest.
_FAILING = """
import os, sys
from sdsl_jax.errors import SdslError
from sdsl_jax.checkpoints import storage as checkpoints
what, calls = sys.argv.pop(1), []
name = {"read": "damage", "write": "_manifest"}[what]
real = getattr(checkpoints, name)
def failing(path):
    calls.extend([path] * (what == "write" or path.name.isdecimal()))
    if len(calls) != 1 or os.environ["SDSL_PROCESS"] != ("1" if what == "read" else "0"):
        return real(path)
    if what == "read":
        return "it is not there yet"
    raise OSError(28, "No space left on device")
setattr(checkpoints, name, failing)
from sdsl_jax.cli import main
main()
"""


def _both(folder, *options, program=()):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = dict(SDSL_COORDINATOR=f"127.0.0.1:{port}", SDSL_PROCESSES="2")
    options = ("--distributed", "--parallel.data=2", *options)
    return [
        _start(folder, "two", 1, *options, program=program, **told, SDSL_PROCESS=str(i))
        for i in range(2)
    ]


@pytest.mark.parametrize("what", ["sigterm", "claim"])
@pytest.mark.release
def test_what_ends_one_process_ends_both(folder, what):
    """SIGTERM to the second process alone, or a rung that another program takes over: neither leaves one waiting."""
    long = (
        "--rungs",
        "target-*",
        "--ladder.target_tokens=[2000000]",
        "--training.checkpoint_every_steps=64",
    )
    children = _both(folder, *long)
    while (
        not (found := list((folder / "two").glob("checkpoints/*/trunk/64")))
        and children[0].poll() is None
    ):
        time.sleep(0.01)
    rung = found[0].parents[1]
    before = {p.parent.name for p in rung.glob("*/*/manifest.json")}
    if what == "sigterm":
        children[1].send_signal(signal.SIGTERM)
    else:
        taken = rung / "claim.new"
        taken.write_text(
            "filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=1f\nduration=120.0\n"
        )
        taken.rename(rung / "claim")
        while any(child.poll() is None for child in children):
            os.utime(rung / "claim")  # its heartbeat
            time.sleep(0.5)
    outputs = [child.communicate(timeout=120)[0] for child in children]
    if what == "sigterm":
        # Where the first one is quicker, the second one is ended by the loss of it.
        assert children[0].returncode == 143, outputs[0]
        assert children[1].returncode != 0
        assert {p.parent.name for p in rung.glob("*/*/manifest.json")} - before
    else:
        assert children[0].returncode == 0, outputs[0]
        assert "another process has taken over" in outputs[0]
    assert not list(rung.glob("model-*"))


@pytest.mark.release
def test_what_only_one_process_sees_is_agreed_on(folder):
    """Neither a checkpoint that one process cannot read nor one that it cannot write leaves the other one waiting."""

    failed = _both(folder, program=("-c", _FAILING, "write"))
    outputs = [child.communicate(timeout=120)[0] for child in failed]
    assert "(No space left on device); the checkpoints before it are still there" in outputs[0]
    assert failed[0].returncode == 2
    assert failed[1].returncode != 0
    _finish(*_both(folder))
    (rung,) = (folder / "two").glob("checkpoints/target*")
    before = read_table(folder / "two" / "records", "models")
    for model in rung.glob("model-*"):
        shutil.rmtree(model)
    output = _finish(*_both(folder, program=("-c", _FAILING, "read")))[0]
    assert "is damaged, as another process finds. " in output
    assert "starts again" in output
    assert [r.params_digest for r in read_table(folder / "two" / "records", "models")] == [
        r.params_digest for r in before
    ]


@pytest.mark.release
def test_a_mesh_that_is_not_there_is_one_sentence(folder):
    child = _start(folder, "none", 2, "--parallel.data=4")
    output = child.communicate(timeout=120)[0]
    assert child.returncode == 2
    assert "sdsl: error: parallel.data = 4 and parallel.fsdp = 1 need 4 devices" in output
    assert "Traceback" not in output
