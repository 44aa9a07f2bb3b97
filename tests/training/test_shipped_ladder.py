"""The ladder in checkpoints/, and studies of a ladder that was trained before."""

import dataclasses
from pathlib import Path

import pytest

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.config import load_study
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError
from sdsl_jax.records import read_table
from sdsl_jax.training import train_ladder

ROOT = Path(__file__).resolve().parents[2]
LADDER = ROOT / "checkpoints" / "ladder"


@pytest.fixture(scope="module")
def records():
    return read_table(LADDER / "records", "models")


@pytest.fixture
def study(monkeypatch):
    """The study of the shipped ladder, whose path is relative to the repository."""
    monkeypatch.chdir(ROOT)
    return load_study(ROOT / "experiments" / "from-checkpoints.toml")


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_every_model_is_there_and_is_what_its_record_says(records, every):
    """Loading compares the weights with their recorded SHA-256."""
    assert len({r.model_id for r in records}) == len(records) == 65
    assert all((LADDER / record.checkpoint).is_dir() for record in records)
    for record in records[::every]:
        loaded = load_model_folder(LADDER / record.checkpoint)
        assert loaded.record.params_digest == record.params_digest
        assert loaded.record.model_id == record.model_id


def test_the_ladder_is_as_wide_as_it_claims(records):
    drafts = [r for r in records if r.role == "draft"]
    targets = [r for r in records if r.role == "target"]
    sizes = sorted({r.params_nonembedding for r in drafts})
    assert len(sizes) >= 8
    assert sizes[0] < 3_500
    assert len({r.params_nonembedding for r in targets}) == 3
    assert max(r.params_nonembedding for r in targets) > 450_000
    for size in sizes:
        of_size = [r for r in drafts if r.params_nonembedding == size]
        assert len({r.train_tokens for r in of_size}) >= 3
        assert len({r.seed for r in of_size}) == (3 if size < 10_000 else 1)
    assert all(0 < r.epochs < 4 for r in records)
    assert all(r.unique_tokens <= r.train_tokens for r in records)
    assert sum(f.stat().st_size for f in LADDER.rglob("*") if f.is_file()) < 60e6


def test_its_settings_are_the_documented_ones():
    made, documented = (
        load_study(LADDER / "config.toml"),
        load_study(ROOT / "experiments" / "ladder.toml"),
    )
    assert made.data == documented.data
    assert made.ladder == documented.ladder
    assert made.training == documented.training


def test_a_study_of_it_trains_nothing(study, records, tmp_path):
    found = train_ladder(study, load_dataset(study.data), tmp_path)
    assert not list(tmp_path.iterdir())
    by_id = {r.model_id: r for r in records}
    assert {r.role for r in found} == {"draft", "target"}
    for record in found:
        assert dataclasses.replace(record, checkpoint="") == dataclasses.replace(
            by_id[record.model_id], checkpoint=""
        )
        assert (tmp_path / record.checkpoint).resolve().is_relative_to(LADDER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"draft_tokens": (5_000_000,)},
            r"ladder.weights lacks 6 of the 9 models .*draft-3k-s0.* first",
        ),
        ({"draft_params": (4_000, 9_000)}, r"ladder.weights lacks 2 of the 7 models"),
        ({"weights": "nowhere"}, r"ladder.weights is 'nowhere', which is not a folder"),
    ],
)
def test_what_it_lacks_is_named(study, tmp_path, changes, message):
    asked = dataclasses.replace(study, ladder=dataclasses.replace(study.ladder, **changes))
    with pytest.raises(SdslError, match=message):
        train_ladder(asked, load_dataset(asked.data), tmp_path)


def test_another_recipe_is_another_ladder(study, tmp_path):
    asked = dataclasses.replace(
        study, training=dataclasses.replace(study.training, learning_rate=1e-3)
    )
    with pytest.raises(
        SdslError, match=r"lacks 15 of the 15 models .*, was trained by another recipe"
    ):
        train_ladder(asked, load_dataset(asked.data), tmp_path)


def test_drafts_of_two_layers_are_what_their_records_say():
    """Parents of drafts trained for acceptance: one depth, three seeds; loading compares weights with their SHA-256."""
    folder = ROOT / "checkpoints" / "two-layers"
    records = read_table(folder / "records", "models")
    assert {(r.layers, r.trained_for) for r in records} == {(2, "text")}
    assert len(records) == len({(r.params_nonembedding, r.seed, r.train_tokens) for r in records})
    for record in records[::9]:
        loaded = load_model_folder(folder / record.checkpoint)
        assert loaded.record.params_digest == record.params_digest
    made, documented = (
        load_study(folder / "config.toml"),
        load_study(ROOT / "experiments" / "two-layers.toml"),
    )
    assert (made.data, made.ladder, made.training) == (
        documented.data,
        documented.ladder,
        documented.training,
    )
    assert len(records) == 6 * 3 * 2


def test_drafts_trained_for_acceptance_are_what_their_records_say(records):
    """One for each size and seed of the ladder, by total variation, for its largest target."""
    folder = ROOT / "checkpoints" / "ladder-tv"
    twins = read_table(folder / "records", "models")
    parents = {r.params_digest: r for r in records if r.role == "draft"}
    teacher = next(r for r in records if r.model_id == "target-500k-12M-s0")
    assert len(twins) == len({r.parent_digest for r in twins}) == 14
    for record in twins:
        parent = parents[record.parent_digest]
        assert (record.trained_for, record.teacher_digest) == ("tv", teacher.params_digest)
        assert (record.params_total, record.seed) == (parent.params_total, parent.seed)
        assert parent.train_tokens > 11e6
        assert record.loss_nats > parent.loss_nats  # what acceptance costs
    for record in twins[::5]:
        assert load_model_folder(folder / record.checkpoint).record == record
    made, documented = (
        load_study(folder / "config.toml"),
        load_study(ROOT / "experiments" / "ladder-tv.toml"),
    )
    for section in ("data", "ladder", "training", "distil"):
        assert getattr(made, section) == getattr(documented, section)


def test_drafts_of_other_years_are_what_their_records_say(records):
    """Of the recipe of the ladder, on other text; loading compares the weights with their recorded SHA-256."""
    folder = ROOT / "checkpoints" / "other-years"
    others = read_table(folder / "records", "models")
    assert [(r.role, r.seed) for r in others] == [("draft", 0)] * 8
    assert {r.params_nonembedding for r in others} < {r.params_nonembedding for r in records}
    assert not {r.data_digest for r in others} & {r.data_digest for r in records}
    for record in others:
        loaded = load_model_folder(folder / record.checkpoint)
        assert loaded.record.params_digest == record.params_digest
        assert loaded.data.test_from_year == 1900
    made, documented = (
        load_study(folder / "config.toml"),
        load_study(ROOT / "experiments" / "other-years.toml"),
    )
    ladder = load_study(ROOT / "experiments" / "ladder.toml")
    assert (made.data, made.ladder, made.training) == (
        documented.data,
        documented.ladder,
        documented.training,
    )
    assert dataclasses.replace(documented.data, test_from_year=2009) == ladder.data
    assert (documented.training, documented.family) == (ladder.training, ladder.family)
    assert {*documented.ladder.draft_params} < {*ladder.ladder.draft_params}


def test_several_folders_hold_a_ladder_together(study, tmp_path):
    """A target above `largest_budget_above` is asked for with its largest budget only."""
    folders = ("checkpoints/five-million", "checkpoints/ladder")
    ladder = dataclasses.replace(
        study.ladder,
        weights=folders,
        target_params=(500_000, 5_000_000),
        target_tokens=(3_000_000, 6_000_000, 12_000_000),
        largest_budget_above=1_000_000,
    )
    asked = dataclasses.replace(study, ladder=ladder)
    dataset = load_dataset(asked.data)
    targets = [r for r in train_ladder(asked, dataset, tmp_path) if r.role == "target"]
    assert [(r.params_nonembedding, round(r.train_tokens / 1e6)) for r in targets] == [
        (497_880, 3),
        (497_880, 6),
        (497_880, 12),
        (5_002_592, 12),
    ]
    home = (tmp_path / targets[-1].checkpoint).resolve()
    assert home.is_relative_to(ROOT / "checkpoints" / "five-million")
    all_budgets = dataclasses.replace(
        asked, ladder=dataclasses.replace(ladder, largest_budget_above=0)
    )
    with pytest.raises(SdslError, match=r"lacks 2 of the \d+ models .*target-5M-s0"):
        train_ladder(all_budgets, dataset, tmp_path)


@pytest.mark.parametrize("every", [28, pytest.param(1, marks=pytest.mark.slow)])
def test_the_larger_ladder_is_what_its_records_say(every):
    """At least two layers, one shape of the MLP, and the weights of the records."""
    folder = ROOT / "checkpoints" / "ladder-large"
    records = read_table(folder / "records", "models")
    assert len({r.model_id for r in records}) == len(records) == 56
    assert all((folder / record.checkpoint).is_dir() for record in records)
    assert {r.params_nonembedding for r in records if r.role == "target"} == {798_080, 2_505_024}
    for record in records[::every]:
        loaded = load_model_folder(folder / record.checkpoint)
        assert loaded.record.params_digest == record.params_digest
        assert loaded.config.layers >= 2
        assert 2.2 < loaded.config.hidden / loaded.config.width < 3
    asked = load_study(ROOT / "experiments" / "ladder-large.toml")
    assert load_study(folder / "config.toml").ladder == asked.ladder
