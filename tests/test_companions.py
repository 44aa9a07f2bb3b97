"""Processes that train beside a study."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny

from sdsl_jax.checkpoints import model_folder
from sdsl_jax.config import to_toml
from sdsl_jax.data import load_dataset
from sdsl_jax.study import companions as module
from sdsl_jax.study.companions import companion_count, companions
from sdsl_jax.training.rungs import plan_rungs


@pytest.fixture
def one_thread(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "computing_threads", lambda: 1)
    monkeypatch.setattr(module, "available_threads", lambda: 3)
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


def plan(flops, whole=False):
    return SimpleNamespace(flops=flops, all_folders=[whole])


def test_a_companion_for_each_idle_processor_that_gains_by_it(monkeypatch, one_thread):
    monkeypatch.setattr(model_folder, "is_whole", lambda whole: whole)
    large, small = 3e12, 3e10
    assert companion_count([plan(large)] * 5) == 2
    assert companion_count([plan(large)] * 2) == 1
    assert companion_count([plan(large), plan(large, whole=True)]) == 0
    assert companion_count([plan(small)] * 5) == 0
    for quota, count in (("max 100000", 2), ("200000 100000", 1), ("50000 100000", 0)):
        one_thread.write_text(quota)
        assert companion_count([plan(large)] * 5) == count
    monkeypatch.setattr(module, "available_threads", lambda: 64)
    one_thread.write_text("max 100000")
    assert companion_count([plan(large)] * 50) == 8
    monkeypatch.setattr(module, "computing_threads", lambda: 2)
    assert companion_count([plan(large)] * 5) == 0


@pytest.mark.slow
def test_a_companion_trains_the_studys_models(tmp_path):
    config = tiny()
    plans = plan_rungs(config, load_dataset(config.data), tmp_path)
    with companions(config, tmp_path, 1):
        deadline = time.monotonic() + 120
        models = [model for plan in plans for model in plan.models]
        while time.monotonic() < deadline and not all(map(model_folder.is_whole, models)):
            time.sleep(0.5)
    assert all(map(model_folder.is_whole, models))


def _runs(pid: int) -> bool:
    """Whether a process has not ended; one that has may be left to be waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_companions_end_when_the_study_fails_or_is_killed(tmp_path):
    study = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from sdsl_jax.config import load_study\n"
        "from sdsl_jax.study import companions as module\n"
        "start = module._start\n"
        "def tell(*a):\n"
        "    process = start(*a)\n"
        "    print(process.pid, flush=True)\n"
        "    return process\n"
        "module._start = tell\n"
        "file, folder = sys.argv[1:]\n"
        "with module.companions(load_study(Path(file)), Path(folder), 1):\n"
        "    sys.stdin.read()\n"
        "    raise ZeroDivisionError\n"
    )
    file = tmp_path / "study.toml"
    # So much to train that it would take minutes.
    file.write_text(to_toml(tiny(ladder={"draft_tokens": [8_000, 16_000_000]})))
    for killed in (False, True):
        folder = tmp_path / f"study-{killed}"
        command = [sys.executable, "-c", study, file, folder]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with subprocess.Popen(command, **pipes) as process:
            companion = int(process.stdout.readline())
            deadline = time.monotonic() + 120
            while not any(folder.glob("checkpoints/*/trunk/10")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if killed:
                process.kill()
            process.communicate()
        deadline = time.monotonic() + 45
        while _runs(companion) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not _runs(companion)
