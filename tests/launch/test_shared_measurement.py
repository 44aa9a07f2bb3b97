"""Measurements in parts that processes share: the same bytes, however many there are."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import claimed, tiny
from small_protocol import write_protocol

from sdsl_jax import claims
from sdsl_jax.claims import Claim
from sdsl_jax.config import to_toml
from sdsl_jax.launch import work
from sdsl_jax.launch.records import launches
from sdsl_jax.launch.submission import submit
from sdsl_jax.launch.task import Task
from sdsl_jax.measurement import pair_records, shared_parts
from sdsl_jax.measurement.shared_parts import Part, measure_parts
from sdsl_jax.progress import Silent
from sdsl_jax.records import AcceptanceRecord, ModelRecord, read_table
from sdsl_jax.study import run_study

TABLES = ("acceptance.csv", "expected.csv", "survival.csv", "events.parquet", "conditions.csv")


def parts(done, count=6, fails=()):
    def part(i):
        def work():
            if i in fails:
                raise RuntimeError(f"part {i} was killed")
            done.append(i)
            return {"x": np.full(3, i), "y\tz": np.array(i / 3)}

        return Part(f"part-{i}", float(i), work, workers=1 + i % 2)

    return [part(i) for i in range(count)]


@pytest.mark.parametrize("keeps", [True, False])
def test_results_come_in_the_order_of_the_parts(tmp_path, keeps):
    done, folder = [], tmp_path if keeps else None
    found = measure_parts(parts(done), folder, Silent())
    assert list(found) == [f"part-{i}" for i in range(6)]
    assert sorted(done) == list(range(6))
    assert done[0] == 4  # those that cost most come first, of those that run alone
    for i in range(6):
        np.testing.assert_array_equal(found[f"part-{i}"]["x"], np.full(3, i))
        assert found[f"part-{i}"]["y\tz"] == i / 3
    again = measure_parts(parts(done), folder, Silent())
    assert len(done) == (6 if keeps else 12)
    for name in found:
        for key, value in found[name].items():
            assert again[name][key].tobytes() == value.tobytes()


def test_each_part_is_measured_once_and_a_lost_one_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_parts, "_POLL_SECONDS", 0.01)
    done, lost = [], []
    with pytest.raises(RuntimeError):
        measure_parts(parts(lost, fails={2}), tmp_path, Silent())
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(measure_parts(parts(done), tmp_path, Silent()))
        )
        for _ in range(4)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(done + lost) == list(range(6))
    assert [list(each) for each in found] == [[f"part-{i}" for i in range(6)]] * 4


def test_a_damaged_result_is_measured_again(tmp_path):
    measure_parts(parts([]), tmp_path, Silent())
    (tmp_path / "part-3" / "result.npz").write_bytes(b"PK\x03\x04 cut")
    done = []
    assert measure_parts(parts(done), tmp_path, Silent())["part-3"]["x"][0] == 3
    assert done == [3]


def test_who_does_not_wait_leaves_a_part_to_a_living_process(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(shared_parts, "_POLL_SECONDS", 0.02)
    with claimed(tmp_path / "part-1"):
        found = measure_parts(parts([]), tmp_path, Silent(), wait=False)
    assert "part-1" not in found
    assert len(found) == 5


@pytest.mark.slow
def test_any_number_of_tasks_gives_the_same_bytes(measured_study, tmp_path):
    """1, 2 and 5 tasks, of which one is killed while it measures."""
    pytest.importorskip("submitit")
    config = tiny(conditions={"temperatures": [0.5]}, measure={"text_windows": 100, "prompts": 70})
    found = {}
    for count in (1, 2, 5):
        folder = tmp_path / str(count)
        shutil.copytree(measured_study, folder)
        (folder / "config.toml").write_text(to_toml(config))
        places = {"file": str(folder / "config.toml"), "folder": str(folder)}
        launch = submit([Task("measure", places)] * count, folder, "local", "study", [])
        if count == 5:
            kill_one_that_measures(folder)
        for job in launch.ids:
            os.waitpid(int(job), 0)
        states = [report.state for report in launches(folder)[0].reports()]
        assert sorted(states) == ["finished"] * (count - (count == 5)) + ["running"] * (count == 5)
        kept = [*folder.glob("parts/measure-*/*/result.npz")]
        assert len(kept) == 2 + 2 + 6  # two chunks of text and of samples, and six pairs
        for stage in ("measure", "conditions"):
            run_study(config, folder, only=stage)
        assert not (folder / "parts").exists()
        found[count] = [(folder / "records" / name).read_bytes() for name in TABLES]
    assert found[1] == found[2] == found[5]


@pytest.mark.slow
def test_five_tasks_give_the_same_records_of_a_protocol(tmp_path):
    pytest.importorskip("submitit")
    command = [sys.executable, "-m", "sdsl_jax.cli", "protocol", *write_protocol(tmp_path), "--out"]

    def sdsl(*more):
        arguments = list(map(str, [*command, *more]))
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

    sdsl(tmp_path / "alone")

    def files(folder):
        names = ("models.csv", "acceptance.csv", "survival.csv", "events.parquet", "protocol.json")
        return {name: (folder / name).read_bytes() for name in (*names, "measurements.json")}

    whole = files(tmp_path / "alone")
    assert len(pandas.read_parquet(tmp_path / "alone" / "events.parquet")) > 50
    out = tmp_path / "out"
    told = sdsl(out, "--launch", "local", "--jobs", 5)
    assert "protocol: 6 of 6 parts done" in told
    assert files(out) == whole
    assert not (out / "parts").exists()
    reports = launches(out)[0].reports()
    assert len(reports) == 6
    assert sum(len(report.done) > 0 for report in reports[:-1]) >= 2  # they shared the pairs


@pytest.mark.slow
def test_two_that_measure_a_protocol_by_hand_share_it(tmp_path):
    """Without jobs: each pair is measured once, and whoever puts the parts together loses none."""
    command = [sys.executable, "-m", "sdsl_jax.cli", "protocol", *write_protocol(tmp_path), "--out"]
    out = tmp_path / "out"
    both = [
        subprocess.Popen([*map(str, command), str(out)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [child.wait(200) for child in both] == [0, 0]
    rows = read_table(out, "acceptance")
    names = [(r.draft_id, r.target_id, r.estimator, r.lookahead) for r in rows]
    assert len({name[:2] for name in names}) == 6
    assert len(names) == len({*names})
    assert not (out / "parts").exists()


@pytest.mark.parametrize("killed", ["nowhere", "before the marks go", "while parts go"])
def test_parts_that_two_put_together_are_neither_lost_nor_doubled(tmp_path, monkeypatch, killed):
    pairs = [(f"draft-{i}", "target") for i in range(3)]
    for draft, target in pairs:
        row = AcceptanceRecord(draft, target, "decoded_tar", 1, 1.0, "text", 0.5)
        name = pair_records.PairName(draft, target, 1.0, "text")
        part = pair_records.part_folder(tmp_path, draft, target)
        answer = {"draft": {"model_id": draft}, "target": {"model_id": target}}
        answer |= {"temperature": 1.0, "prompts": {"source": "text"}}
        models = [ModelRecord(each, "", 9, 9, 9, 0, 1.0, 2.7) for each in (draft, target)]
        pair_records.append_pair(part, name, models, answer, acceptance=[row])
        (part / pair_records.PART_DONE).touch()
    if killed != "nowhere":
        unlink = Path.unlink

        def dies(path, *_, **__):
            if killed == "while parts go" or path.name == pair_records.PART_DONE:
                raise KeyboardInterrupt
            unlink(path, *_, **__)

        with monkeypatch.context() as patch:
            if killed == "while parts go":
                patch.setattr(pair_records.shutil, "rmtree", dies)
            else:
                patch.setattr(Path, "unlink", dies)
            with pytest.raises(KeyboardInterrupt):
                pair_records.merge_parts(tmp_path, pairs)
    threads = [
        threading.Thread(target=pair_records.merge_parts, args=(tmp_path, pairs)) for _ in range(3)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert [r.draft_id for r in read_table(tmp_path, "acceptance")] == [d for d, _ in pairs]


def test_what_is_timed_shares_no_machine(sdsl, tmp_path):
    arguments = write_protocol(tmp_path, ("llama-2",), ("smollm2",))
    text = (tmp_path / "small.toml").read_text()
    (tmp_path / "small.toml").write_text(text.replace("timed = 0", "timed = 2"))
    out = ("--out", tmp_path / "out", "--launch", "local", "--jobs", 2)
    status, _, err = sdsl("protocol", *arguments, *out)
    assert status == 2
    assert "measure.timed is 2, and what is timed needs a node to itself" in err


@pytest.mark.slow
def test_jobs_measure_a_study_whose_models_are_given(measured_study, tmp_path):
    config = tiny(ladder={"weights": str(measured_study)}, measure={"decode": "none"})
    (tmp_path / "study.toml").write_text(to_toml(config))
    places = (str(tmp_path / "study.toml"), str(tmp_path / "out"))
    assert work.measure(Silent(), *places) == "what could be shared is measured"
    assert len([*tmp_path.glob("out/parts/measure-*/*/result.npz")]) == 2
    run_study(config, tmp_path / "out", only="measure")
    found, whole = (
        [r for r in read_table(each / "records", "acceptance") if r.lookahead == 0]
        for each in (tmp_path / "out", measured_study)
    )
    assert found == whole


def kill_one_that_measures(folder):
    """Kills whoever first claims a part."""
    while not (held := [*folder.glob("parts/measure-*/*/claim")]):
        time.sleep(0.002)
    os.kill(int(str(Claim(held[0].parent)).rpartition(":")[2]), signal.SIGKILL)
