import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import claimed, tiny

from sdsl_jax import claims
from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.layout import make_layout
from sdsl_jax.claims import Claim
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import Diverged, SdslError
from sdsl_jax.preemption import Preempted
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table
from sdsl_jax.training import (
    ladder,
    plan_rungs,
    select,
    train_ladder,
    train_rungs,
    write_records,
)
from sdsl_jax.training.loop import RungTrainer, _reading
from sdsl_jax.training.step import TrainState, train_step

LADDER = {
    "draft_params": [600],
    "draft_tokens": [8_000],
    "target_params": [600],
    "target_tokens": [8_000],
}


class Notes(Silent):
    """Remembers what it is told."""

    def __init__(self):
        self.notes, self.details, self.found = [], [], []

    def note(self, text):
        self.notes.append(text)

    def advance(self, amount, detail=""):
        self.details.append(detail)


def config(training=None, **ladder_):
    return tiny(
        ladder=LADDER | ladder_,
        training={"evaluation_windows": 8, "checkpoint_every_steps": 6} | (training or {}),
    )


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp("ladder")
    return folder, train_ladder(config(), dataset, folder)


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "copy")


def tags(study, dataset):
    return [plan.folder.name for plan in plan_rungs(study, dataset, Path())]


@pytest.mark.parametrize(
    "training",
    [
        {"evaluation_windows": 9},
        {"checkpoint_every_steps": 7},
        {"tensorboard": True},
        {"spike_deviations": 3.0},
        {"on_nonfinite": "skip"},
        {"remat": True},
        # The same laws, written from another reference size.
        {"reference_params": 50_000, "learning_rate": 0.003 * 2**0.4},
        # Laws that meet at the only size there is, which has 584 parameters.
        {
            "batch_size_exponent": 0.5,
            "batch_size": 8,
            "reference_params": 584,
            "learning_rate": 0.003 * (584 / 1e5) ** -0.4,
        },
    ],
)
def test_what_changes_no_parameter_trains_nothing_again(dataset, training):
    assert tags(config(training), dataset) == tags(config(), dataset)


@pytest.mark.parametrize(
    "training",
    [
        {"learning_rate": 0.011},
        {"batch_size": 9},
        {"warmup_tokens": 500},
        {"cooldown_fraction": 0.5},
        {"weight_decay": 0.2},
        {"adam_b2": 0.9},
        {"z_loss": 0.0},
        {"compute_dtype": "bfloat16"},
    ],
)
def test_what_changes_parameters_trains_beside(dataset, training):
    assert not {*tags(config(training), dataset)} & {*tags(config(), dataset)}


def test_other_windows_evaluate_the_same_weights(copy, dataset, trained, monkeypatch):
    monkeypatch.setattr(ladder, "RungTrainer", None)
    more = train_ladder(config({"evaluation_windows": 24}), dataset, copy)
    for before, after in zip(trained[1], more, strict=True):
        assert after.params_digest == before.params_digest
        assert (before.evaluation_windows, after.evaluation_windows) == (8, 24)
        assert after.loss_nats != before.loss_nats
        assert after.train_seconds == before.train_seconds
        assert after.validation_bits_per_byte == pytest.approx(
            after.validation_loss_nats / np.log(2)
        )
    again = train_ladder(config(), dataset, copy)
    assert again == trained[1]


def test_records_know_their_data_and_their_costs(trained, dataset):
    for record in trained[1]:
        assert record.batch_size == 8
        assert record.train_tokens == 31 * 8 * 32 == record.unique_tokens
        assert record.epochs == record.train_tokens / len(dataset.splits["train"])
        assert 0 <= record.data_wait_share < 1
        assert 0 <= record.compile_seconds <= record.train_seconds
        assert record.tokens_per_second >= record.train_tokens / record.train_seconds
        assert (record.spikes, record.skipped_steps) == (0, 0)


def flip(path):
    file = max(
        (p for p in path.rglob("*") if p.is_file() and p.suffix != ".json"),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def cut(path):
    file = max(
        (p for p in path.rglob("*") if p.is_file() and p.suffix != ".json"),
        key=lambda p: p.stat().st_size,
    )
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(copy, dataset, trained, damage):
    rung = next(copy.glob("checkpoints/draft*"))
    shutil.rmtree(rung / "model-31")
    steps = sorted(int(p.name) for p in (rung / "cooldown-31").iterdir() if p.is_dir())
    assert steps == [30, 31]  # the one before is kept
    damage(rung / "cooldown-31" / "31")
    seen = Notes()
    assert [r.params_digest for r in train_ladder(config(), dataset, copy, seen)] == [
        r.params_digest for r in trained[1]
    ]
    (note,) = [n for n in seen.notes if "damaged" in n]
    assert f"the checkpoint {rung / 'cooldown-31' / '31'} is damaged" in note
    assert f"{rung / 'cooldown-31' / '30'} is used instead" in note
    # Nothing good left in the cool-down, and damage in the trunk too: it goes on from the trunk's
    # checkpoint before.
    shutil.rmtree(rung / "model-31")
    shutil.rmtree(rung / "cooldown-31" / "30")
    damage(rung / "cooldown-31" / "31")
    damage(rung / "trunk" / "23")
    seen = Notes()
    after = train_ladder(config(), dataset, copy, seen)
    assert [r.params_digest for r in after] == [r.params_digest for r in trained[1]]
    notes = [n for n in seen.notes if "damaged" in n]
    assert f"{rung / 'cooldown-31'} starts again" in notes[0]
    assert f"{rung / 'trunk' / '18'} is used instead" in notes[1]
    for segment, steps in (("trunk", range(23)), ("cooldown-31", range(23, 31))):
        lines = (rung / segment / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(steps)


def cut(record):
    record.write_text(record.read_text()[:60])


def other_type(record):
    record.write_text(json.dumps(json.loads(record.read_text()) | {"params_total": "many"}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: flip(model / "params"),
        lambda model: (model / "params" / "manifest.json").unlink(),
        lambda model: cut(model / "record.json"),
        lambda model: other_type(model / "record.json"),
    ],
)
def test_a_damaged_model_is_made_again(copy, dataset, trained, damage):
    model = (copy / trained[1][0].checkpoint).parent
    damage(model)
    seen = Notes()
    assert [r.params_digest for r in train_ladder(config(), dataset, copy, seen)] == [
        r.params_digest for r in trained[1]
    ]
    assert f"the model in {model} is damaged" in seen.notes[0]
    seen = Notes()
    train_ladder(config(), dataset, copy, seen)
    assert seen.notes == []


def test_metrics_that_were_damaged_are_said_to_lack_steps(copy, dataset, trained):
    rung = (copy / trained[1][0].checkpoint).parents[1]
    path = rung / "trunk" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[6:]))
    shutil.rmtree(rung / "model-31")
    shutil.rmtree(rung / "cooldown-31")
    shutil.rmtree(rung / "trunk" / "23")
    seen = Notes()
    train_ladder(config(), dataset, copy, seen)
    assert (
        seen.notes[0]
        == f"{path} lacks 2 of the 18 steps before step 18: it was damaged; they are not repeated."
    )


def test_only_rungs_that_resume_say_so(tmp_path, dataset):
    seen = Notes()
    train_ladder(config(), dataset, tmp_path, seen)
    assert not [d for d in seen.details if "resumed" in d]
    shutil.rmtree(next(tmp_path.glob("checkpoints/draft*/model-31")))
    seen = Notes()
    train_ladder(config(), dataset, tmp_path, seen)
    assert [d for d in seen.details if d] == [
        "draft-600-s0  resumed",
        "target-600-s0  already trained",
    ]


def test_sigterm_is_held_back_until_a_checkpoint_is_written(tmp_path, dataset, trained):
    class Terminates(Silent):
        steps = 0

        def advance(self, amount, detail=""):
            self.steps += 1
            if self.steps == 16:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted):
        train_ladder(config(), dataset, tmp_path, Terminates())
    assert signal.getsignal(signal.SIGTERM) is before
    rung = next(tmp_path.glob("checkpoints/draft*"))
    assert not (rung / "claim").exists()
    # The step after the one that had been reported was under way.
    assert max(int(p.name) for p in (rung / "trunk").iterdir() if p.is_dir()) == 17
    after = train_ladder(config(), dataset, tmp_path)
    assert [r.params_digest for r in after] == [r.params_digest for r in trained[1]]


def poisoned(monkeypatch, steps):
    """The loss and gradient of some steps are not finite."""

    def step(state, batch, rate, *tables, **static):
        number = int(state.step)
        if number not in steps:
            return train_step(state, batch, rate, *tables, **static)
        copied = jax.tree.map(lambda x: x.copy(), state)
        _, reported = train_step(copied, batch, rate, *tables, **static)
        nan = jax.numpy.float32("nan")
        skips = static["config"].skip_nonfinite
        return TrainState(state.params, state.optimizer, state.step + 1), reported._replace(
            loss_nats=nan, gradient_norm=nan, skipped=jax.numpy.asarray(skips)
        )

    monkeypatch.setattr("sdsl_jax.training.loop.train_step", step)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path, dataset, monkeypatch):
    poisoned(monkeypatch, {15})
    with pytest.raises(SdslError, match="the loss of draft-600-s0 became nan at step 15;") as error:
        train_ladder(config(), dataset, tmp_path)
    rung = next(tmp_path.glob("checkpoints/draft*"))
    assert f"its last good checkpoint is {rung / 'trunk' / '12'}." in str(error.value)
    assert (rung / "trunk" / "12" / "manifest.json").exists()
    assert not (rung / "claim").exists()
    last = json.loads((rung / "trunk" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["loss_nats"]) == (15, None)


def test_a_rung_that_diverges_stops_no_other(tmp_path, dataset, monkeypatch):
    """The draft comes first and diverges; the target is trained, and stands in the table."""
    run = RungTrainer.run

    def diverges(self, *arguments):
        if self.name.startswith("draft"):
            raise Diverged(f"the loss of {self.name} became nan at step 15")
        return run(self, *arguments)

    monkeypatch.setattr(RungTrainer, "run", diverges)
    for _ in range(2):
        with pytest.raises(Diverged, match="the loss of draft-600-s0 became nan at step 15"):
            train_ladder(config(), dataset, tmp_path)
        assert [r.role for r in read_table(tmp_path / "records", "models")] == ["target"]
    monkeypatch.undo()
    train_ladder(config(), dataset, tmp_path)
    assert [r.role for r in read_table(tmp_path / "records", "models")] == ["draft", "target"]


def test_the_table_holds_finished_models_of_unfinished_rungs(copy, dataset, trained):
    """A budget that is asked for later takes nothing out of the table."""
    more = config(draft_tokens=[8_000, 16_000], target_tokens=[8_000, 16_000])
    found = write_records(more, dataset, copy, plan_rungs(more, dataset, copy))
    assert found == read_table(copy / "records", "models")
    assert [r.model_id for r in found] == [r.model_id for r in trained[1]]


def test_the_table_misses_no_rung_that_ends_while_it_is_written(
    copy, dataset, trained, monkeypatch
):
    plans = plan_rungs(config(), dataset, copy)
    record = plans[1].models[0] / "record.json"
    content, write = record.read_text(), ladder.write_table
    record.unlink()

    def meanwhile(*arguments):
        record.write_text(content)
        write(*arguments)

    monkeypatch.setattr(ladder, "write_table", meanwhile)
    write_records(config(), dataset, copy, plans)
    assert [r.model_id for r in read_table(copy / "records", "models")] == [
        r.model_id for r in trained[1]
    ]


@pytest.mark.slow
def test_skipped_steps_are_counted_across_segments(tmp_path, dataset, monkeypatch):
    poisoned(monkeypatch, {3, 15, 16, 25})
    records = train_ladder(config({"on_nonfinite": "skip"}), dataset, tmp_path)
    assert [r.skipped_steps for r in records] == [4, 4]
    lines = [
        json.loads(x) for x in next(tmp_path.glob("checkpoints/draft*/trunk/metrics.jsonl")).open()
    ]
    assert [x["step"] for x in lines if x.get("skipped")] == [3, 15, 16]


def test_too_many_skipped_steps_stop_all_the_same(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr("sdsl_jax.training.loop._MOST_SKIPPED", 5)
    poisoned(monkeypatch, range(10, 100))
    with pytest.raises(
        SdslError,
        match=r"nan at step 14, after 5 skipped steps in a row; its last good checkpoint is .*12",
    ):
        train_ladder(config({"on_nonfinite": "skip"}), dataset, tmp_path)


@pytest.mark.slow
def test_seeds_share_one_program(tmp_path, dataset):
    jax.clear_caches()
    train_ladder(config({"batch_size": 7}, seeds=[0, 1]), dataset, tmp_path)
    # Two rungs of two seeds, each with a trunk and a cool-down, fresh and resumed.
    assert train_step._cache_size() == 1
    shutil.rmtree(next(tmp_path.glob("checkpoints/draft-600-s0*/model-*")))
    shutil.rmtree(next(tmp_path.glob("checkpoints/draft-600-s0*/cooldown-*")))
    train_ladder(config({"batch_size": 7}, seeds=[0, 1]), dataset, tmp_path)
    assert train_step._cache_size() == 1


def test_batches_read_ahead_are_the_batches(dataset):
    batches = dataset.batches(3, 8)
    with _reading(batches[17:60]) as read:
        found = list(read)
    assert len(found) == 43
    for step, batch in enumerate(found, 17):
        np.testing.assert_array_equal(batch, batches[step])


@pytest.mark.slow
def test_tensorboard_logs_every_segment(tmp_path, dataset):
    pytest.importorskip("tensorboardX")
    train_ladder(config({"tensorboard": True}), dataset, tmp_path)
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 4


def test_a_rung_that_another_process_has_lost_is_not_tried_again(tmp_path, dataset, monkeypatch):
    poisoned(monkeypatch, {3})
    study = config()
    plans = plan_rungs(study, dataset, tmp_path)
    monkeypatch.setattr(ladder.time, "time", lambda: 0.0)  # this process began before the other one
    with pytest.raises(SdslError, match="the loss of draft-600-s0 became nan at step 3"):
        train_rungs(study, dataset, tmp_path, plans[:1])
    monkeypatch.setattr(ladder, "_train_rung", lambda *_: pytest.fail("it was tried again"))
    with pytest.raises(SdslError, match="the loss of draft-600-s0 became nan at step 3"):
        train_rungs(study, dataset, tmp_path, plans[:1])


def test_a_rung_of_another_process_is_left_to_it(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(ladder, "_POLL_SECONDS", 0.02)
    study = config()
    plans = plan_rungs(study, dataset, tmp_path)
    with claimed(plans[0].folder):
        outcome = train_rungs(study, dataset, tmp_path, plans, wait=False)
        assert [r.role for r in outcome.records] == ["target"]
        assert list(outcome.owned_by_others) == ["draft-600-s0"]
    # Nobody waits for a dead process: who would leave watches what is left before it does.
    plans[0].folder.mkdir(exist_ok=True)
    (plans[0].folder / "claim").write_text(
        "filelock/2\npid=7\nhost=elsewhere\nmode=lease\ntoken=1f\nduration=2.0\n"
    )
    outcome = train_rungs(study, dataset, tmp_path, plans, seen := Notes(), wait=False)
    assert [r.role for r in outcome.records] == ["draft", "target"]
    assert outcome.owned_by_others == {}
    assert "draft-600-s0: being trained by elsewhere:7" in seen.notes


def test_a_study_waits_for_rungs_of_other_processes(tmp_path, dataset, trained, monkeypatch):
    monkeypatch.setattr(ladder, "_POLL_SECONDS", 0.02)
    seen = Notes()
    with claimed(plan_rungs(config(), dataset, tmp_path)[0].folder) as claim:
        holder = str(claim)
        thread = threading.Thread(
            target=lambda: seen.found.extend(train_ladder(config(), dataset, tmp_path, seen))
        )
        thread.start()
        while not list(tmp_path.glob("checkpoints/target*/model-31/record.json")):
            time.sleep(0.02)
        time.sleep(0.2)
        assert thread.is_alive()
    thread.join(timeout=60)
    assert [r.params_digest for r in seen.found] == [r.params_digest for r in trained[1]]
    assert [n for n in seen.notes if "being trained" in n] == [
        f"draft-600-s0: being trained by {holder}"
    ]


def test_a_disk_that_was_full_costs_nothing(tmp_path, dataset, trained, monkeypatch):
    save = storage.ocp.save_checkpointables
    with monkeypatch.context() as full:

        def fails(path, *arguments, **options):
            if path.name.startswith(".18."):
                raise OSError(28, "No space left on device")
            save(path, *arguments, **options)

        full.setattr(storage.ocp, "save_checkpointables", fails)
        with pytest.raises(
            SdslError,
            match=r"trunk/18 \(No space left on device\); the checkpoints before it are still there",
        ):
            train_ladder(config(), dataset, tmp_path)
    trunk = next(tmp_path.glob("checkpoints/draft*/trunk"))
    assert sorted(p.name for p in trunk.iterdir()) == ["12", "6", "metrics.jsonl"]
    assert [r.params_digest for r in train_ladder(config(), dataset, tmp_path)] == [
        r.params_digest for r in trained[1]
    ]
    lines = (trunk / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(23))


@pytest.mark.slow
def test_two_that_train_the_same_rung_at_once_do_no_harm(tmp_path, dataset, trained, monkeypatch):
    """Without claims at all: every checkpoint and every metrics file stays whole, and both reach the same parameters."""
    study = config()
    plan = plan_rungs(study, dataset, tmp_path)[0]
    trainer = RungTrainer(study, dataset, plan, make_layout(study.parallel), Silent())
    reached, interleaved = [], []
    save = RungTrainer._save

    def other_first(self, path, state, tally):
        # Before every other write of the first, a second process runs for one checkpoint further.
        if not interleaved and path.name == "12":
            interleaved.append(1)
            ladder._train_rung(trainer, tmp_path)
            reached.append(
                next(tmp_path.glob("checkpoints/draft*/model-31/record.json")).read_text()
            )
        save(self, path, state, tally)

    monkeypatch.setattr(RungTrainer, "_save", other_first)
    ladder._train_rung(trainer, tmp_path)
    digest = trained[1][0].params_digest
    assert json.loads(reached[0])["params_digest"] == digest
    again = train_ladder(study, dataset, tmp_path)
    assert again[0].params_digest == digest
    for segment, steps in (("trunk", range(23)), ("cooldown-31", range(23, 31))):
        lines = (plan.folder / segment / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(steps)
    assert not list(tmp_path.rglob(".*"))


def test_who_has_lost_its_claim_writes_nothing_more(tmp_path, dataset, trained, monkeypatch):
    study = config()
    plan = plan_rungs(study, dataset, tmp_path)[0]
    save, taken = RungTrainer._save, []

    def paused(self, path, state, tally):
        save(self, path, state, tally)
        if not taken:
            (plan.folder / "claim").unlink()
            taken.append(Claim(plan.folder))
            assert taken[0].acquire()

    monkeypatch.setattr(RungTrainer, "_save", paused)
    monkeypatch.setattr(claims, "LEASE_SECONDS", 2.0)
    seen = Notes()
    outcome = train_rungs(study, dataset, tmp_path, [plan], seen, wait=False)
    assert outcome.records == []
    assert "draft-600-s0" in outcome.owned_by_others
    assert any("another process has taken over" in n for n in seen.notes)
    assert [p.name for p in (plan.folder / "trunk").iterdir() if p.is_dir()] == ["6"]
    taken[0].check()
    with taken[0]:
        pass
    outcome = train_rungs(study, dataset, tmp_path, [plan], wait=False)
    assert outcome.records[0].params_digest == trained[1][0].params_digest


def plans_of(*flops):
    def plan(i, f):
        return SimpleNamespace(
            rung=SimpleNamespace(name=f"{'draft' if i < 6 else 'target'}-{i}k-s{i % 2}"), flops=f
        )

    return [plan(i, f) for i, f in enumerate(flops)]


def test_parts_are_disjoint_complete_and_even():
    plans = plans_of(1, 2, 3, 5, 8, 13, 21, 34)
    for n in (1, 2, 3, 4):
        parts = [select(plans, part=(i, n)) for i in range(1, n + 1)]
        names = [p.rung.name for part in parts for p in part]
        assert sorted(names) == sorted(p.rung.name for p in plans)
        loads = [sum(p.flops for p in part) for part in parts]
        assert max(loads) <= max(34, 1.1 * sum(loads) / n)
    assert select(plans, part=(9, 9)) == []


def test_patterns_fit_names_with_and_without_seed():
    plans = plans_of(*range(1, 9))
    names = lambda *patterns: [p.rung.name for p in select(plans, patterns)]  # noqa: E731
    assert names() == [p.rung.name for p in plans]
    assert names("draft-3k") == ["draft-3k-s1"]
    assert names("target-*", "draft-?k-s0") == [
        "draft-0k-s0",
        "draft-2k-s0",
        "draft-4k-s0",
        "target-6k-s0",
        "target-7k-s1",
    ]
    with pytest.raises(SdslError, match="no rung is named 'draft'; the rungs are draft-0k-s0, "):
        names("draft")
    with pytest.raises(SdslError, match="the part is 3/2"):
        select(plans, part=(3, 2))


def test_a_rung_that_does_not_fit_says_what_needs_less(tmp_path, dataset, monkeypatch):
    def run(self, *arguments):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 156931372544 bytes."
        )

    monkeypatch.setattr(RungTrainer, "run", run)
    with pytest.raises(
        SdslError,
        match=r"-s0 does not fit into the device's memory at batches of \d+ × \d+ tokens; a smaller",
    ):
        train_ladder(config(), dataset, tmp_path)
