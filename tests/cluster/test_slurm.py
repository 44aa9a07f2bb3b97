"""Work that is launched on a real Slurm, of one node with two slots, and disturbed there.

python -m pytest -m cluster -rs
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from cluster.one_node_slurm import DidNotStart, slurm, why_not
from ladders import assert_equal, metrics, write_study
from small_protocol import write_protocol

from sdsl_jax.launch.records import launches

pytestmark = pytest.mark.cluster
_SECONDS = 100


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(f"SKIPPED: no test on a real Slurm, for {reason}")
    with contextlib.ExitStack() as running:
        try:
            running.enter_context(slurm(tmp_path_factory.mktemp("slurm")))
        except DidNotStart as error:
            pytest.skip(f"SKIPPED: no test on a real Slurm, for it did not start here: {error}")
        yield


def sdsl(*arguments):
    return [sys.executable, "-m", "sdsl_jax.cli", *map(str, arguments)]


def finish(child):
    out, err = child.communicate(timeout=_SECONDS)
    assert child.returncode == 0, f"{out}\n{err}"
    return out


def start(*arguments):
    return subprocess.Popen(
        sdsl(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(true, seconds=_SECONDS):
    """Waits for something to become true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, queue()
        time.sleep(0.1)
    return found


def queue():
    told = subprocess.run(["squeue", "--array", "-o", "%i %T %r"], capture_output=True, text=True)
    return told.stdout


def start_again(job):
    """Lets a requeued job start at once; Slurm would wait for two minutes."""
    until(lambda: f"{job} PENDING" in queue())
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def report(folder, task, besides=()):
    """What a task says that has begun to train a rung, unless it is one of earlier processes."""
    for launch in launches(folder):
        found = launch.reports()[task]
        if found and found.state == "running" and found.detail and found.pid not in besides:
            return found
    return None


def test_a_ladder_that_is_killed_preempted_and_timed_out_is_the_same(tmp_path):
    study = write_study(
        tmp_path, tokens=700_000, checkpoint_every_steps=200, ladder={"seeds": [0, 1]}
    )
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(start("train", study, "--out", whole))
    options = (
        "--launch",
        "slurm",
        "--jobs",
        2,
        "--slurm.time=0:20:00",
        "--slurm.partition",
        "main",
    )
    child = start("train", study, "--out", out, *options)
    first, second = (until(lambda i=i: report(out, i)).pid for i in (0, 1))
    (launch,) = launches(out)
    assert os.stat(launch.folder).st_mode & 0o777 == 0o700
    job = launch.ids[0].partition("_")[0]
    assert launch.ids == [f"{job}_0", f"{job}_1"]
    # One reaches its time limit: Slurm sends what submitit asked it to send.
    subprocess.run(["scancel", "--signal=USR2", launch.ids[0]], check=True)
    start_again(launch.ids[0])
    again = until(lambda: report(out, 0, {first}))
    # One is preempted.
    subprocess.run(["scontrol", "requeue", launch.ids[1]], check=True)
    start_again(launch.ids[1])
    until(lambda: report(out, 1, {second}))
    told = subprocess.run(
        sdsl("launch", "status", out), capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"tasks: 2 running", told), told
    # And one is killed, which nobody requeues: the other takes its rung.
    os.kill(again.pid, signal.SIGKILL)
    told = finish(child)
    assert "the ladder is complete" in told
    assert f"task {launch.ids[0]} gone: srun: error: " in told
    assert "task 0: Killed" in told
    assert_equal(out, whole)


def test_a_protocol_that_is_killed_and_preempted_is_the_same(tmp_path):
    arguments = write_protocol(tmp_path)
    finish(start("protocol", *arguments, "--out", tmp_path / "alone"))
    out = tmp_path / "out"
    options = ("--launch", "slurm", "--jobs", 2, "--slurm.time=20")
    child = start("protocol", *arguments, "--out", out, *options)
    first, second = (until(lambda i=i: report(out, i)).pid for i in (0, 1))
    os.kill(first, signal.SIGKILL)
    (launch,) = launches(out)
    subprocess.run(["scontrol", "requeue", launch.ids[1]], check=True)
    start_again(launch.ids[1])
    told = finish(child)
    assert "protocol: 6 of 6 parts done" in told
    for name in ("models.csv", "acceptance.csv", "survival.csv", "events.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert second != launches(out)[0].reports()[1].pid


def test_the_processes_of_one_job_train_a_rung_together(tmp_path):
    """jax.distributed finds its processes under srun; losses are those of one process."""
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        pytest.skip("SKIPPED: the name of this machine has no address, which JAX asks Slurm for")
    mesh = {"parallel": {"data": 2}}
    study = write_study(tmp_path, checkpoint_every_steps=20, **mesh)
    options = ("--slurm.ntasks_per_node=2", "--slurm.time=20", "--distributed")
    out = tmp_path / "out"
    told = finish(start("train", study, "--out", out, "--launch", "slurm", *options))
    assert "the ladder is complete" in told
    alone = tmp_path / "alone"
    finish(start("train", study, "--out", alone, "--parallel.data=1"))
    assert metrics(out).keys() == metrics(alone).keys()
    for name, lines in metrics(out).items():
        for ours, theirs in zip(lines, metrics(alone)[name], strict=True):
            assert ours["step"] == theirs["step"]
            # Sums in another order; see the tests of meshes.
            assert ours["loss_nats"] == pytest.approx(theirs["loss_nats"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--slurm.partition=nowhere",),
            "Slurm refused the jobs: invalid partition specified: nowhere",
        ),
        (("--slurm.time=soon",), "--slurm.time is 'soon'; it must be minutes"),
        (("--slurm.gpus_per_node=8",), "Slurm refused the jobs: "),
    ],
)
def test_what_slurm_refuses_is_one_sentence(tmp_path, options, sentence):
    study = write_study(tmp_path)
    command = sdsl("train", study, "--out", tmp_path / "out", "--launch", "slurm", *options)
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert sentence in told.stderr
    assert told.stderr.count("\n") == 1
    assert not launches(tmp_path / "out")
