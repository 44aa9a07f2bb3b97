"""Launched jobs without a scheduler: processes of this machine, their records and their status."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import claimed
from ladders import assert_equal, write_study

from sdsl_jax.errors import SdslError
from sdsl_jax.launch.records import STOP, Launch, PartRecord, Reporter, launches, new_launch_folder
from sdsl_jax.launch.status import read_status, stop_commands
from sdsl_jax.launch.submission import share, slurm_settings, submit, visible_gpus
from sdsl_jax.launch.task import Task

submitit = pytest.importorskip("submitit")
HOLDOUT = ("--ladder.draft_params=[600,900]", "--holdout.draft_params=[900]")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30", 30),
        ("90:30", 91),
        ("4:00:00", 240),
        ("1:00:01", 61),
        ("2-0", 2880),
        ("1-2:30:0", 1590),
    ],
)
def test_time_limits_are_those_of_sbatch(text, minutes):
    assert slurm_settings([("time", text)])["time"] == minutes


def test_options_of_jobs():
    found = slurm_settings(
        [
            ("partition", "gpu"),
            ("gpus-per-node", "8"),
            ("exclusive", ""),
            ("setup", "module load cuda"),
            ("setup", "source env/bin/activate"),
            ("reservation", "monday"),
        ]
    )
    assert found["partition"] == "gpu"
    assert found["gpus_per_node"] == 8
    assert found["exclusive"] is True
    assert found["setup"] == ["module load cuda", "source env/bin/activate"]
    assert found["additional_parameters"] == {"reservation": "monday"}
    assert found["time"] == 240  # submitit's own limit is five minutes
    for options, message in (
        ([("time", "0")], "must be positive"),
        ([("time", "soon")], "--slurm.time is 'soon'"),
        ([("partition", "a"), ("partition", "b")], "--slurm.partition was given 2 times"),
    ):
        with pytest.raises(SdslError, match=message):
            slurm_settings(options)


def test_processors_are_shared_evenly():
    assert [share(range(8), i, 3) for i in range(3)] == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert [share([3, 5], i, 5) for i in range(5)] == [(3,), (5,), (3,), (5,), (3,)]
    assert share([], 0, 2) == ()


@pytest.fixture
def launched(tmp_path):
    """A launch of two tasks on three rungs, as jobs.json has it; no process belongs to it."""
    parts = [
        PartRecord(name, cost, name, [f"{name}/done"]) for name, cost in zip("abc", (4.0, 2.0, 2.0))
    ]
    folder = new_launch_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    # Numbers of processes that no system has.
    made = Launch("local", "train", parts, [str(2**22 + 7), str(2**22 + 8)], folder=str(folder))
    made.write()
    return made


def test_status_of_parts_and_tasks(tmp_path, launched):
    assert read_status(tmp_path / "elsewhere") is None
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "done").touch()
    reporter = Reporter(folder := Path(launched.folder), 0)
    reporter.start("train", 8)
    reporter.advance(0.5, "a  compiling")
    time.sleep(0.05)
    reporter.advance(0.5, "a  loss 3.2  100 tokens/s")
    reporter.finish()
    with claimed(tmp_path / "a") as claim, open(folder / "task-0.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status = read_status(tmp_path)
        (stage,) = status.stages
        first, second, third = stage.parts
        assert (first.state, first.by) == ("taken", str(claim))
        assert first.share == 0.25
        assert first.detail == "loss 3.2  100 tokens/s"
        assert 0 < first.seconds_left < 3600
        assert (second.state, second.share) == ("done", 1.0)
        assert (third.state, third.share) == ("waiting", 0.0)
        assert stage.share == pytest.approx((1.0 + 2.0) / 8)
        assert [task.state for task in status.tasks] == ["running", "gone"]
        assert status.alive
        assert stop_commands(status) == [f"kill {os.getpid()}"]
    status = read_status(tmp_path)
    assert [task.state for task in status.tasks] == ["gone", "gone"]
    assert status.tasks[0].about == "killed"
    assert not status.alive
    assert stop_commands(status) == []
    reporter.say("failed", "the loss of a became nan.")
    assert read_status(tmp_path).tasks[0].about == "the loss of a became nan."


def test_jobs_of_another_machine_are_not_stopped_here(tmp_path, launched):
    (Path(launched.folder) / "jobs.json").write_text(
        (Path(launched.folder) / "jobs.json").read_text().replace(launched.host, "elsewhere")
    )
    reporter = Reporter(Path(launched.folder), 0)
    reporter.start("train", 8)
    status = read_status(tmp_path)
    assert status.tasks[0].state == "running"
    with pytest.raises(SdslError, match="the jobs are processes of elsewhere; stop them there"):
        stop_commands(status)
    then = time.time() - 3600
    os.utime(os.path.join(launched.folder, "task-0.json"), (then, then))
    assert read_status(tmp_path).tasks[0].state == "unknown"


def test_gpus_may_have_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2e, 3")
    assert visible_gpus() == ["GPU-8f2e", "3"]
    assert share(visible_gpus(), 1, 2) == ("3",)


def test_a_task_that_begins_after_the_stop_does_nothing(tmp_path, launched):
    (Path(launched.folder) / STOP).touch()
    Task("no such function", {}, launch=launched.folder, number=1)()
    assert launched.reports()[1].state == "stopped"


def test_jobs_that_were_submitted_before_a_refusal_are_taken_back(tmp_path, monkeypatch):
    cancelled = []

    class Executor:
        def __init__(self, *_, **__):
            self.parameters = {}

        def update_parameters(self, **values):
            self.parameters |= values

        @contextlib.contextmanager
        def batch(self):
            yield

        def submit(self, task):
            if "dependency" in self.parameters:
                raise submitit.core.utils.FailedJobError("sbatch: error: QOSMaxSubmitJobPerUser")
            cancel = lambda check: cancelled.append(task.number)  # noqa: E731
            return SimpleNamespace(job_id=f"7_{task.number}", cancel=cancel)

    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)
    monkeypatch.setattr("sdsl_jax.launch.submission.shutil.which", lambda _: "sbatch")
    task = Task("train", {})
    with pytest.raises(SdslError, match="Slurm refused the jobs: QOSMaxSubmitJobPerUser"):
        submit([task, task], tmp_path, "slurm", "train", [], last=task)
    assert cancelled == [0, 1]


def test_a_clock_that_is_wrong_is_said(tmp_path, launched):
    reporter = Reporter(Path(launched.folder), 0)
    assert read_status(tmp_path).warnings == []
    path = os.path.join(launched.folder, "task-0.json")
    then = time.time() - 300
    os.utime(path, (then, then))
    (warning,) = read_status(tmp_path).warnings
    assert "300 s ahead of that of the shared folder" in warning
    assert reporter is not None


def test_what_cannot_be_launched_is_one_sentence(tmp_path, monkeypatch):
    task = Task("train", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SdslError, match="sbatch was not found on this machine"):
        submit([task], tmp_path, "slurm", "train", [])
    with pytest.raises(SdslError, match=r"--slurm\.partition goes with --launch slurm"):
        submit([task], tmp_path, "local", "train", [], [("partition", "x")])
    (tmp_path / "file").touch()
    with pytest.raises(SdslError, match=r"cannot write .*file/launch \(Not a directory\)"):
        submit([task], tmp_path / "file", "local", "train", [])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SdslError, match=r"pip install 'sdsl_jax\[cluster\]'"):
        submit([task], tmp_path, "local", "train", [])
    assert not launches(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "status", "DIR"], "nothing was launched in"),
        (["train", "STUDY", "--launch", "local", "--jobs=0"], "--jobs is 0; it must be at least 1"),
        (
            ["train", "STUDY", "--launch", "local", "--part=1/2"],
            "--part and --launch were both given",
        ),
        (["train", "STUDY", "--slurm.partition=x"], "--slurm.partition goes with --launch slurm"),
        (["train", "STUDY", "--jobs", "3"], "--jobs goes with --launch slurm or --launch local"),
        (["train", "STUDY", "--launch", "local", "--rungs=x"], "no rung is named 'x'"),
        (["train", "STUDY", "--launch", "local", "--distributed"], "goes with --launch slurm"),
        (["study", "STUDY", "--launch", "local", "--only=fit"], "do not go with --launch"),
        (["study", "STUDY", "--launch", "local", *HOLDOUT], "a study with [holdout] cannot be"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_two(sdsl, tmp_path, arguments, message):
    places = {"DIR": tmp_path, "STUDY": write_study(tmp_path)}
    given = [places.get(each, each) for each in arguments]
    out = [] if arguments[0] == "launch" else ["--out", tmp_path / "out"]
    status, _, err = sdsl(*given, *out)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not launches(tmp_path / "out")


@pytest.mark.slow
def test_a_ladder_on_this_machine_survives_ctrl_c_a_kill_and_a_stop(tmp_path):
    study = write_study(
        tmp_path, tokens=300_000, checkpoint_every_steps=200, ladder={"seeds": [0, 1]}
    )
    out, whole = tmp_path / "out", tmp_path / "whole"

    def start(*more):
        command = [sys.executable, "-m", "sdsl_jax.cli", "train", study, "--out", out, *more]
        return subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def reports():
        return [r for launch in launches(out) for r in launch.reports() if r and r.detail]

    def until(true):
        deadline = time.monotonic() + 120
        while not (found := true()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    child = start("--launch", "local", "--jobs", 2)
    until(lambda: len(reports()) == 2)
    # Ctrl-C reaches everything that a terminal has started, and ends the command alone.
    os.killpg(child.pid, signal.SIGINT)
    told, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"To stop: sdsl launch stop {out}" in told
    assert "the jobs go on" in err
    assert [task.state for task in read_status(out).tasks] == ["running", "running"]
    os.kill(reports()[0].pid, signal.SIGKILL)
    until(lambda: read_status(out).tasks[0].state == "gone")
    stop = [sys.executable, "-m", "sdsl_jax.cli", "launch", "stop", str(out)]
    assert "kill " in subprocess.run(stop, capture_output=True, text=True, check=True).stdout
    until(lambda: not read_status(out).alive)
    assert read_status(out).tasks[1].state == "stopped"
    assert not read_status(out).stages[0].complete
    child = start("--launch", "local", "--jobs", 2)
    told, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "the ladder is complete" in told
    assert len(launches(out)) == 2
    # A process to a core, as the jobs had.
    alone = {"preexec_fn": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})}
    command = [sys.executable, "-m", "sdsl_jax.cli", "train", str(study), "--out", str(whole)]
    subprocess.run(command, check=True, capture_output=True, **alone)
    assert_equal(out, whole)
