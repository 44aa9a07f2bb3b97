"""Published models as teachers and targets of a study: whatever a study makes of a model of its own
it makes of the same weights in a published folder."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
from conftest import tiny
from published_checkpoints import copy_checkpoint, export_model

from sdsl_jax.checkpoints.loading import load_model, open_model
from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.config.measurement import ClockConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.fits import fit_loss
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table
from sdsl_jax.study import run_study
from sdsl_jax.training.evaluation import given_record
from sdsl_jax.training.ladder import check_given, check_ladder
from sdsl_jax.training.teacher import cache_folder, open_teacher

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def own(measured_study):
    """The target of a tiny study."""
    record = next(r for r in read_table(measured_study / "records", "models") if r.role == "target")
    return load_model_folder(measured_study / record.checkpoint)


@pytest.fixture(scope="module")
def published(own, tmp_path_factory):
    """The same as a Hugging Face folder."""
    return export_model(own, tmp_path_factory.mktemp("published") / own.record.model_id)


def study(target, cache, tokenizer="bytes", **sections):
    """A study of drafts for a target, and of none of its own."""
    return tiny(
        data={"tokenizer": str(tokenizer)},
        ladder={"target_params": [], "target_tokens": []} | sections.pop("ladder", {}),
        distil={"teacher": str(target), "objective": ["ce", "tv"], "cache": str(cache)},
        **sections,
    )


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.slow
def test_the_record_of_a_published_target(own, published, tmp_path):
    """Its losses are those on record of the same weights; they are measured once."""
    config = study(published, tmp_path, published)
    dataset, notes = load_dataset(config.data), Notes()
    record = given_record(config, dataset, published, tmp_path, [], notes)
    assert (record.role, record.train_tokens, record.kind) == ("target", 0, "")
    assert load_model(tmp_path / record.checkpoint).record.params_digest == record.params_digest
    for name in ("params_nonembedding", "params_total", "layers", "width", "evaluation_windows"):
        assert getattr(record, name) == getattr(own.record, name)
    for name in ("loss_nats", "loss_nats_low", "validation_loss_nats", "bits_per_byte"):
        assert getattr(record, name) == pytest.approx(getattr(own.record, name), rel=1e-6)
    assert sum("measuring the losses of" in note for note in notes.notes) == 1
    assert given_record(config, dataset, published, tmp_path, [record], notes) == record
    # The same weights elsewhere keep their losses, and are named from where they lie now.
    shutil.copytree(published, tmp_path / "moved")
    moved = given_record(config, dataset, tmp_path / "moved", tmp_path, [record], notes)
    assert moved == dataclasses.replace(record, model_id="moved", checkpoint="moved")
    assert len(notes.notes) == 1
    # A model of ours keeps the record that it has.
    plain = tiny(), load_dataset(tiny().data)
    kept = given_record(*plain, own.folder, tmp_path, [], notes)
    assert dataclasses.replace(kept, checkpoint=own.record.checkpoint) == own.record


@pytest.mark.slow
def test_what_a_published_teacher_says_is_what_its_weights_say(own, published, tmp_path):
    told = {}
    for name, (target, tokenizer) in {
        "own": (own.folder, "bytes"),
        "published": (published, published),
    }.items():
        config = study(target, tmp_path / name, tokenizer)
        dataset = load_dataset(config.data)
        told[name] = open_teacher(config, dataset, [3, 5], Silent())
        assert cache_folder(config, dataset).parent == tmp_path / name
    for window in (3, 5):
        for field, values in told["own"][window].items():
            np.testing.assert_array_equal(told["published"][window][field], values)


def test_a_model_is_opened_once_unless_its_files_change(published, monkeypatch):
    first = open_model(published)
    assert first.params is None
    assert open_model(published) is first
    (published / "notes.txt").write_text("changed")
    again = open_model(published)
    (published / "notes.txt").unlink()
    assert again is not first
    assert again.record == first.record


def test_another_tokenizer_is_refused_before_training(own, published, tmp_path):
    other = copy_checkpoint("llama-3", tmp_path / "other")
    dataset = load_dataset(tiny().data)
    with pytest.raises(SdslError, match=r"the teacher .*other has another tokenizer \(published"):
        check_given(study(other, tmp_path), dataset)
    given = study(own.folder, tmp_path, ladder={"given_targets": [str(other)]})
    with pytest.raises(SdslError, match=r"the target .*other has another tokenizer \(published"):
        check_given(given, dataset)
    check_ladder(given)
    check_given(study(own.folder, tmp_path), dataset)


@pytest.mark.slow
def test_a_study_of_a_published_target_is_that_of_its_weights(own, published, tmp_path):
    """The same drafts, losses, α, decoded tokens and expected rounds; and the whole study runs."""
    records = {}
    for name, (target, tokenizer) in {
        "own": (own.folder, "bytes"),
        "published": (published, published),
    }.items():
        config = study(target, tmp_path / "cache", tokenizer)
        for stage in ("train", "measure"):
            records[name] = run_study(config, tmp_path / name, only=stage)
    ours, theirs = records["own"], records["published"]
    # Seeds come from names, so the folder has the model's.
    assert [m.model_id for m in ours.trained] == [m.model_id for m in theirs.trained]
    for mine, other in zip(ours.trained, theirs.trained):
        if mine.role == "draft":
            assert mine.params_digest == other.params_digest
        assert mine.loss_nats == pytest.approx(other.loss_nats, rel=1e-6)
    for table in ("measured_acceptance", "measured_rounds", "survival"):
        rows = [getattr(r, table) for r in (ours, theirs)]
        assert len(rows[0]) == len(rows[1]) > 0
        for mine, other in zip(*rows):
            mine, other = (dataclasses.asdict(r) for r in (mine, other))
            for key, value in mine.items():
                if isinstance(value, float):
                    assert other[key] == pytest.approx(value, rel=1e-5, nan_ok=True), key
    whole = run_study(config, tmp_path / "published")
    assert all(math.isfinite(e.speedup or 1.0) for e in whole.codesign)
    assert (tmp_path / "published" / "report.html").exists()
    # No law of size and data is asked about the target, and its rounds cost its own FLOPs.
    assert whole.fits.loss_law.n == 6
    table = tmp_path / "published" / "records"
    assert fit_loss(table, objective="text", starts=4, bootstrap=20).record.n == 6
    assert own.record.model_id not in (whole.fits.loss_law.residuals or {})
    # Nothing is stale, so the losses of the target are not measured again.
    notes = Notes()
    run_study(config, tmp_path / "published", progress=notes)
    assert all("up to date" in note for note in notes.notes)
    timed = dataclasses.replace(
        config, clock=ClockConfig(lookaheads=(1,), repetitions=2, prompts=2)
    )
    runs = run_study(timed, tmp_path / "published", only="clock").runs
    assert {r.target_id for r in runs} == {own.record.model_id}
