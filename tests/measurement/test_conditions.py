"""The stages that measure a whole study, on the tiny one: other conditions, and the decoder for some pairs only."""

import dataclasses
import shutil

import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.checkpoints.loading import load_recorded
from sdsl_jax.config import ConditionsConfig, DomainConfig, load_study, to_toml
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding import Head
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement import check_conditions, conditions, measure_conditions, measure_study
from sdsl_jax.models.feature_head import HeadConfig, graft
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table
from sdsl_jax.study import Study, run_study
from sdsl_jax.study.run import is_fresh

BASE = "sotu since 2009"


class Counted(Silent):
    """Adds up what a task advances by."""

    def __init__(self):
        self.notes, self.total, self.done = [], 0, 0

    def note(self, text):
        self.notes.append(text)

    def start(self, task, total):
        self.total += total

    def advance(self, amount, detail=""):
        self.done += amount


def with_conditions(**conditions):
    return dataclasses.replace(tiny(), conditions=ConditionsConfig(**conditions))


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


@pytest.fixture(scope="module")
def measured(measured_study, dataset, tmp_path_factory):
    """Two temperatures beside the study's own, two domains of which one is missing, and the study's own drafts as others."""
    code = tmp_path_factory.mktemp("code") / "a.txt"
    code.write_text("for i in range(10):\n    print(i)\n" * 60)
    config = with_conditions(
        temperatures=(0.0, 0.6),
        domains=(
            DomainConfig("code", str(code)),
            DomainConfig("absent", "package:no_such_texts/a.txt", optional=True),
        ),
        other_drafts=str(measured_study),
    )
    progress = Counted()
    records = read_table(measured_study / "records", "models")
    return measure_conditions(config, dataset, records, measured_study, progress), progress, records


@pytest.mark.slow
def test_every_pair_has_a_row_under_every_condition(measured):
    found, progress, records = measured
    drafts = [r.model_id for r in records if r.role == "draft"]
    drafts += [f"other-{name}" for name in drafts]
    wanted = {
        (draft, "target-5k-16k-s0", estimator, where, temperature)
        for draft in drafts
        for estimator in ("teacher_forced_text", "teacher_forced_samples")
        for where, temperature in ((BASE, 0.0), (BASE, 0.6), (BASE, 1.0), ("code", 1.0))
    }
    rows = [
        (r.draft_id, r.target_id, r.estimator, r.domain, r.temperature) for r in found.conditions
    ]
    assert len(rows) == len(set(rows))
    assert set(rows) == wanted
    for row in found.conditions:
        assert 0 <= row.alpha_low <= row.alpha <= row.alpha_high <= 1
    assert progress.done == progress.total
    assert [note.split(":")[0] for note in progress.notes] == ["absent is left out"]


@pytest.mark.slow
def test_the_study_s_own_condition_repeats_its_acceptance(measured, measured_study):
    """The same contexts and samples; another program scores them, so that float32 sums may differ in the last digits."""
    found = {
        (r.draft_id, r.estimator): r
        for r in measured[0].conditions
        if (r.domain, r.temperature) == (BASE, 1.0)
    }
    acceptance = [
        r
        for r in read_table(measured_study / "records", "acceptance")
        if r.estimator.startswith("teacher")
    ]
    assert len(acceptance) == 12
    for row in acceptance:
        for prefix in ("", "other-"):  # the others are the same models
            same = found[prefix + row.draft_id, row.estimator]
            assert same.alpha == pytest.approx(row.alpha, rel=1e-5)
            assert same.alpha_low == pytest.approx(row.alpha_low, rel=1e-4)
            assert (same.tokens, same.clusters) == (row.tokens, row.clusters)


@pytest.mark.slow
def test_a_head_is_measured_in_every_domain(measured, measured_study, dataset, monkeypatch):
    """One that reads nothing is the plain draft: its first draft has that draft's α. Another program
    scores it, so float32 sums may differ in the last digits."""
    _, _, records = measured
    draft = next(r for r in records if r.role == "draft")
    target = next(r for r in records if r.role == "target")
    body = load_recorded(draft, measured_study).model
    config = HeadConfig(body.config, target.width, (1,))
    head = Head(config, graft(config, body.params))
    monkeypatch.setattr(
        conditions, "load_heads", lambda *arguments: {"head": (head, target.model_id)}
    )
    study = with_conditions(temperatures=(0.6,), domains=(DomainConfig("early", "validation"),))
    progress = Counted()
    found = measure_conditions(study, dataset, [draft, target], measured_study, progress)
    rows = {
        (r.draft_id, r.estimator, r.domain, r.temperature): r
        for r in found.conditions
        if r.estimator != "by_draft_samples"
    }
    assert len(rows) == 2 * 2 * 3
    for (name, *condition), row in rows.items():
        if name == "head":
            same = rows[draft.model_id, *condition]
            assert row.alpha == pytest.approx(same.alpha, rel=1e-4)
            assert (row.tokens, row.clusters) == (same.tokens, same.clusters)
    later = {(r.domain, r.temperature, r.lookahead) for r in found.conditions if r.lookahead}
    assert len(later) == 3 * study.measure.expected_lookahead
    assert progress.done == progress.total


@pytest.mark.slow
def test_losses_are_those_of_the_models(measured, dataset):
    """Of the same test windows as in training, 32 of them; evaluated by another program: float32."""
    found, _, records = measured
    by_name = {(r.model_id, r.domain): r for r in found.losses}
    assert len(by_name) == len(found.losses) == 2 * (7 + 6)
    for record in records:
        row = by_name[record.model_id, BASE]
        assert row.loss_nats == pytest.approx(record.loss_nats, rel=1e-4)
        assert row.bits_per_byte == pytest.approx(record.bits_per_byte, rel=1e-4)
        assert row.loss_nats_low < row.loss_nats < row.loss_nats_high
        assert 0 < row.entropy_nats < np.log(256)
        assert row.tokens == 32 * row.windows
        # What was trained on addresses is worse at code.
        assert by_name[record.model_id, "code"].loss_nats > row.loss_nats


@pytest.mark.slow
def test_other_drafts_keep_their_records_under_other_names(measured, measured_study):
    found, _, records = measured
    drafts = [r for r in records if r.role == "draft"]
    assert [r.model_id for r in found.other_models] == [f"other-{r.model_id}" for r in drafts]
    for row, record in zip(found.other_models, drafts):
        assert (measured_study / row.checkpoint).is_dir()
        assert row.params_digest == record.params_digest


def test_nothing_is_asked_for_and_nothing_is_loaded(measured_study, tmp_path):
    folder = shutil.copytree(measured_study, tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    run_study(tiny(), folder, only="conditions", force=True)
    for name in ("conditions", "other_models", "losses"):
        assert read_table(folder / "records", name) == []


@pytest.mark.release
def test_the_stage_notices_other_drafts_and_other_files(measured_study, tmp_path):
    """The settings stay the same; only what they name changes."""
    folder, others = (
        shutil.copytree(measured_study, tmp_path / name) for name in ("copy", "others")
    )
    text = tmp_path / "a.txt"
    text.write_text("some text " * 60)
    config = with_conditions(domains=(DomainConfig("some", str(text)),), other_drafts=str(others))
    assert load_study_of(config, tmp_path) == config
    study = Study(config, folder, Silent())
    run_study(config, folder, only="conditions")
    assert is_fresh(study, "conditions")
    assert {r.domain for r in read_table(folder / "records", "conditions")} == {BASE, "some"}
    text.write_text("other text " * 60)
    assert not is_fresh(study, "conditions")
    run_study(config, folder, only="conditions")
    models = others / "records" / "models.csv"
    models.write_text(
        models.read_text() + models.read_text().splitlines()[1].replace("draft", "more") + "\n"
    )
    assert not is_fresh(study, "conditions")


def load_study_of(config, folder):
    (folder / "study.toml").write_text(to_toml(config))
    return load_study(folder / "study.toml")


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (
            {"domains": (DomainConfig(BASE, "validation"),)},
            "is the name of the study's own test split",
        ),
        (
            {"domains": (DomainConfig("some", "package:no_such_texts/a.py"),)},
            "`pip install --no-deps no_such_texts`",
        ),
        ({"domains": (DomainConfig("some", "nowhere.txt"),)}, "nowhere.txt, which does not exist"),
        ({"other_drafts": "nowhere"}, "'nowhere', which holds no trained ladder"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_trained(conditions, message):
    with pytest.raises(SdslError, match=message):
        check_conditions(with_conditions(**conditions))


def test_other_drafts_must_fit(measured_study, tmp_path, dataset):
    others = shutil.copytree(measured_study, tmp_path / "others")
    records = read_table(measured_study / "records", "models")
    config = with_conditions(other_drafts=str(others))
    longer = dataclasses.replace(dataset, sequence_length=64)
    with pytest.raises(SdslError, match="trained on sequences of 32 tokens; it must be at least"):
        measure_conditions(config, longer, records, measured_study, Silent())
    models = others / "records" / "models.csv"
    digest = next(r.params_digest for r in records if r.role == "draft")
    models.write_text(models.read_text().replace(digest, "0" * 64))
    with pytest.raises(SdslError, match="its digest differs"):
        measure_conditions(config, dataset, records, measured_study, Silent())


@pytest.mark.slow
def test_the_decoder_may_run_for_the_largest_budgets_only(measured_study, dataset):
    config = tiny(measure={"decode": "largest"})
    progress = Counted()
    records = read_table(measured_study / "records", "models")
    found = measure_study(config, dataset, records, measured_study, progress)
    assert progress.done == progress.total
    largest = {r.model_id for r in records if r.role == "draft" and r.train_tokens > 12_000}
    assert len(largest) == 3
    assert {r.draft_id for r in found.survival} == largest
    assert {r.draft_id for r in found.acceptance if r.estimator.startswith("decoded")} == largest
    assert len([r for r in found.acceptance if r.estimator.startswith("teacher")]) == 12
    # Expectations are there for every pair and lookahead.
    assert len(found.expected) == 6 * 4
    assert {r.lookahead for r in found.expected} == {1, 2, 3, 4}


@pytest.mark.slow
def test_expected_rounds_of_a_study_agree_with_its_decoder(measured_study):
    """Eight prompts of sixteen tokens say little: four times the two 90% half-widths."""
    survival = {
        (r.draft_id, r.lookahead): r
        for r in read_table(measured_study / "records", "survival")
        if r.position == 1
    }
    expected = read_table(measured_study / "records", "expected")
    assert len(expected) == 6 * 4
    for row in expected:
        assert row.samples == 8
        assert row.alpha_low <= row.alpha <= row.alpha_high
        if row.lookahead == 1:
            assert row.alpha_change == row.alpha_change_low == row.alpha_change_high == 0
        if (row.draft_id, row.lookahead) in survival:
            live = survival[row.draft_id, row.lookahead]
            width = (row.tokens_per_round_high - row.tokens_per_round_low) + (
                live.tokens_per_round_high - live.tokens_per_round_low
            )
            assert abs(row.tokens_per_round - live.tokens_per_round) < 2 * width
