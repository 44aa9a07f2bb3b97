"""`sdsl train` in child processes that are really killed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from ladders import assert_equal, write_study
from published_checkpoints import export_model

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.config import load_study
from sdsl_jax.records import read_table
from sdsl_jax.study.shared_training import train_part


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The TOML of two rungs of 44 steps each, with a checkpoint every three steps."""
    return write_study(tmp_path_factory.mktemp("study"), checkpoint_every_steps=3)


def start(study, out, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "sdsl_jax.cli", "train", str(study), "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has it ignored, and what is ignored is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(child):
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """The folder of an uninterrupted run, in this process: a start takes longer than the training."""
    out = tmp_path_factory.mktemp("whole")
    train_part(load_study(study), out)
    return out


def kill(child):
    child.kill()
    child.communicate()
    return child.returncode == -signal.SIGKILL


def at_a_write(child, folder, nth, end=kill):
    """Ends a child when it begins to write its n-th checkpoint; whether it came to that."""

    def partial():
        return {p.name for p in folder.glob("checkpoints/*/*/.*.partial*")}

    # One that was ended before it may have left some.
    left, seen = partial(), set()
    while child.poll() is None:
        seen |= partial() - left
        if len({name.split(".partial")[0] for name in seen}) >= nth:
            return end(child)
        time.sleep(0.001)
    child.communicate()
    return False


def after(child, seconds, end=kill):
    """Ends a child some time after its start; whether it still ran."""
    try:
        child.communicate(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        return end(child)


def interrupt(child):
    """One sentence and nothing else, whatever the moment."""
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    if child.returncode == 0:
        return False
    assert (child.returncode, err) == (
        130,
        "sdsl: interrupted; the same command continues where it stood.\n",
    )
    return True


@pytest.mark.slow
def test_ended_inside_checkpoint_writes(study, whole, tmp_path):
    ended = [
        at_a_write(start(study, tmp_path), tmp_path, nth, end)
        for nth, end in ((2, kill), (5, interrupt))
    ]
    assert ended == [True, True]
    assert not (tmp_path / "records").exists()
    finish(start(study, tmp_path))
    assert_equal(tmp_path, whole)


@pytest.mark.release
# A Python that has not got to the command yet answers an interrupt in its own way, so the earliest
# comes a little later.
@pytest.mark.parametrize(
    ("end", "earliest"), [(kill, 0.5), (interrupt, 0.1)], ids=["kill", "interrupt"]
)
def test_ended_twenty_times_at_random(study, whole, tmp_path, end, earliest):
    """Half of the times anywhere in the child's life, half inside the write of a checkpoint; as many ladders as it takes."""
    rng, ended, ladders = random.Random(5), 0, 0
    began = time.perf_counter()
    finish(start(study, tmp_path / "life"))
    life = time.perf_counter() - began
    while ended < 20:
        out = tmp_path / str(ladders)
        ladders += 1
        alive = True
        while alive:
            child = start(study, out)
            if rng.random() < 0.5:
                alive = at_a_write(child, out, rng.randint(1, 6), end)
            else:
                alive = after(child, rng.uniform(earliest, 1.0) * life, end)
            ended += alive
        assert child.returncode == 0
        assert_equal(out, whole)


def first_checkpoint(child, out):
    while child.poll() is None and not list(out.glob("checkpoints/*/trunk/3")):
        time.sleep(0.002)


@pytest.mark.release
def test_sigterm_ends_with_a_checkpoint_at_once(study, tmp_path):
    """A rung of 585 steps, stopped between two of its regular checkpoints."""
    long = (
        "--rungs",
        "target-*",
        "--ladder.target_tokens=[150000]",
        "--training.checkpoint_every_steps=200",
    )
    finish(start(study, tmp_path / "whole", *long))
    out = tmp_path / "stopped"
    child = start(study, out, *long)
    while child.poll() is None and not list(out.glob("checkpoints/*/trunk/200")):
        time.sleep(0.002)
    before = set(out.glob("checkpoints/*/*/*/manifest.json"))
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert (
        err.splitlines()[-1] == "sdsl: ended by SIGTERM; the same command continues where it stood."
    )
    assert not list(out.rglob("claim"))
    assert not list(out.rglob("record.json"))
    assert set(out.glob("checkpoints/*/*/*/manifest.json")) - before
    finish(start(study, out, *long))
    assert_equal(out, tmp_path / "whole")


@pytest.mark.release
def test_two_processes_on_one_folder(study, whole, tmp_path):
    """Each rung is trained by one of them; when both have ended everything is there."""
    one, two = start(study, tmp_path), start(study, tmp_path)
    out = finish(one) + finish(two)
    for name in ("draft-600-4.096k-s0:", "draft-600-8.192k-s0:", "target-900-8.192k-s0:"):
        assert out.count(f"{name} ") == 1, out
    assert_equal(tmp_path, whole)


@pytest.mark.release
def test_a_process_that_finds_a_dead_one_takes_its_rung(study, whole, tmp_path):
    child = start(study, tmp_path)
    first_checkpoint(child, tmp_path)
    assert kill(child)
    assert list(tmp_path.rglob("claim"))
    out = finish(start(study, tmp_path))
    assert "being trained by" not in out
    assert_equal(tmp_path, whole)


@pytest.mark.release
def test_parts_of_a_job_array(study, whole, tmp_path):
    outs = [finish(start(study, tmp_path, "--part", f"{i}/2")) for i in (1, 2)]
    assert "not finished yet" in outs[0]
    assert "the ladder is complete" in outs[1]
    assert_equal(tmp_path, whole)
    assert os.listdir(tmp_path / "records")


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
def test_killed_while_a_teacher_is_cached_and_while_a_draft_learns_from_it(
    study, whole, tmp_path, published
):
    target = next(r for r in read_table(whole / "records", "models") if r.role == "target")
    teacher, tokenizer = whole / target.checkpoint, "bytes"
    if published:
        pytest.importorskip("safetensors")
        teacher = tokenizer = export_model(load_model(teacher), tmp_path / "published")

    def told(out):
        settings = {
            "distil.teacher": teacher,
            "distil.init_from": whole,
            "distil.objective": "kl",
            "distil.cache": out.with_name(f"{out.name}-cache"),
            "data.tokenizer": tokenizer,
        }
        return [f"--{name}={value}" for name, value in settings.items()]

    def distil(out):
        return start(study, out, "--rungs", "draft-*", *told(out))

    uncut, out = tmp_path / "whole", tmp_path / "cut"
    train_part(load_study(study, told(uncut)), uncut, ["draft-*"])
    child = distil(out)
    while child.poll() is None and not list(tmp_path.glob("cut-cache/*/")):
        time.sleep(0.001)
    assert kill(child)
    assert not list(tmp_path.glob("cut-cache/*/*.json"))
    assert at_a_write(distil(out), out, 2)
    finish(distil(out))
    assert_equal(out, uncut)
    assert [r.objective for r in read_table(out / "records", "models")] == ["kl", "kl"]
